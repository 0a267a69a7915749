"""Agents and conversations as they are kept, and how lists of things are asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.domain.etags import etag_of, expect_etag
from agent_service.domain.run import AgentDefinition, RunStatus
from agent_service.domain.tool import PendingCall, PendingKind
from agent_service.domain.values import replace


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """An agent that was made by a call. Times are Unix nanoseconds; `revision` counts its changes from 1."""

    definition: AgentDefinition
    revision: int
    create_time: int
    update_time: int

    @property
    def etag(self) -> str:
        """Tells this state of the agent from every other, also from those of an earlier agent of the same id."""
        return etag_of(self.create_time, self.revision)

    def changed(self, definition: AgentDefinition, now: int) -> AgentRecord:
        """The next revision; the same one if nothing is different."""
        if definition == self.definition:
            return self
        return replace(self, definition=definition, revision=self.revision + 1, update_time=now)

    def expect(self, etag: str) -> None:
        """Raises ETAG_MISMATCH unless the etag is empty or the present one."""
        expect_etag(etag, self.etag, f"agent '{self.definition.agent_id}'")


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation. `active_run_id` is the run that is RUNNING or PAUSED in it, or empty."""

    conversation_id: str
    create_time: int
    labels: dict[str, str] = field(default_factory=dict)
    message_count: int = 0
    active_run_id: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list: at most `limit` rows strictly after `(time, id)` in the order asked for.

    `id` is empty for the beginning. Lists are ordered by `(time, id)`, so that rows that are added or vanish do not
    shift what follows.
    """

    limit: int
    descending: bool = False
    time: int = 0
    id: str = ""

    def takes(self, time: int, row_id: str) -> bool:
        """Whether a row lies after the cursor."""
        if not self.id:
            return True
        return (time, row_id) < (self.time, self.id) if self.descending else (time, row_id) > (self.time, self.id)


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs; what is empty does not count. `create_from` <= start < `create_before`, 0 means open."""

    statuses: frozenset[RunStatus] = frozenset()
    agent_id: str = ""
    conversation_id: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    create_from: int = 0
    create_before: int = 0
    parent_run_id: str = ""


@dataclass(frozen=True, slots=True)
class CallFilter:
    """Which pending calls; what is empty does not count. `labels` are those of the run; `pending_before` is a time."""

    agent_id: str = ""
    conversation_id: str = ""
    tool_name: str = ""
    kind: PendingKind | None = None
    labels: tuple[tuple[str, str], ...] = ()
    pending_before: int = 0


@dataclass(frozen=True, slots=True)
class WaitingCall:
    """A pending call and where it belongs; `pending_time` is since when it waits; `worker_id` has it until
    `claim_expire_time`, or is empty."""

    call: PendingCall
    run_id: str
    conversation_id: str
    agent_id: str
    pending_time: int
    worker_id: str = ""
    claim_expire_time: int = 0

    def at(self, now: int) -> WaitingCall:
        """As it stands at a time: a claim that is over is none."""
        return self if self.claim_expire_time > now else replace(self, worker_id="", claim_expire_time=0)


def check_same_agent(existing: AgentRecord, definition: AgentDefinition) -> AgentRecord:
    """The existing agent if it was made with this content, else AGENT_ID_REUSED."""
    if existing.definition != definition:
        raise AgentServiceError(
            Reason.AGENT_ID_REUSED,
            f"agent.agent_id: there is another agent '{definition.agent_id}'; choose another id, or update it",
            metadata={"agent_id": definition.agent_id},
        )
    return existing


def check_same_conversation(existing: Conversation, labels: dict[str, str]) -> Conversation:
    """The existing conversation if it was made with these labels, else CONVERSATION_ID_REUSED."""
    if existing.labels != labels:
        raise AgentServiceError(
            Reason.CONVERSATION_ID_REUSED,
            f"conversation_id: there is another conversation '{existing.conversation_id}'; choose another id",
            metadata={"conversation_id": existing.conversation_id},
        )
    return existing


def run_active(field_path: str, run_id: str, status: RunStatus) -> AgentServiceError:
    """What is to be deleted is active."""
    return AgentServiceError(
        Reason.RUN_ACTIVE,
        f"{field_path}: {run_id} is {status.value.upper()}; cancel it first",
        metadata={"run_id": run_id},
    )
