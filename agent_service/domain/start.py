"""Starting a run: joins an equal start, refuses a busy conversation, settles an interrupted run, begins the new one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent_service.domain.draft import Change, Draft, NewId, RunState
from agent_service.domain.errors import MAX_NAMED, AgentServiceError, Reason
from agent_service.domain.message import InputContent, Message
from agent_service.domain.moves import abandon, begin
from agent_service.domain.run import Owner, Pinned, Run, RunStatus
from agent_service.domain.tool import PendingCall, pending_of


@dataclass(frozen=True, slots=True)
class NewRun:
    """A start to be stored. `run` has the row as it will be but for what the store knows (times, epoch, numbers).

    With `new_conversation` the conversation `run.conversation_id` is made; else it must exist.
    """

    run: Run
    pinned: Pinned
    inputs: tuple[InputContent, ...]
    owner: Owner
    new_conversation: bool


@dataclass(frozen=True, slots=True)
class ConversationState:
    """What a start sees of its conversation: the next message's position, and its busy or interrupted run."""

    next_position: int
    current: RunState | None


@dataclass(frozen=True, slots=True)
class Started:
    """The run; `joined` if an equal start had been stored before.

    `messages` are those the start appended, `last_position` the place of the last of them; both only when not joined.
    """

    run: Run
    joined: bool
    last_position: int = 0
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class StartPlan:
    """What to write for a start, in order, and what to answer."""

    changes: tuple[Change, ...]
    started: Started


def plan_start(
    new: NewRun, existing: Run | None, conversation: ConversationState | None, now: int, new_id: NewId
) -> StartPlan:
    """Decides a start from what the store holds under its locks."""
    if existing is not None:
        return StartPlan((), _join(new, existing))
    if conversation is None:
        raise AgentServiceError(
            Reason.CONVERSATION_NOT_FOUND,
            f"conversation_id: no conversation '{new.run.conversation_id}'; leave it empty to begin one",
        )
    changes = []
    position = conversation.next_position
    if conversation.current is not None:
        settled = _make_room(replace(conversation.current, next_position=position), new_id)
        changes.append(settled)
        position = settled.next_position
    run = replace(new.run, create_time=now, update_time=now)
    draft = Draft(RunState(run, (), position, None, now), new_id)
    begin(draft, new.inputs, new.owner)
    change = draft.change()
    assert change is not None
    changes.append(change)
    messages = tuple(message for c in changes for message in c.messages)
    return StartPlan(tuple(changes), Started(change.run, False, change.next_position - 1, messages))


def _join(new: NewRun, existing: Run) -> Started:
    if existing.digest != new.run.digest:
        raise AgentServiceError(
            Reason.RUN_ID_REUSED,
            f"run_id: '{existing.run_id}' was used for another request; send that one again, or a new run_id",
            metadata={"run_id": existing.run_id},
        )
    return Started(existing, True)


def _make_room(current: RunState, new_id: NewId) -> Change:
    """Settles an interrupted run; a busy one is an error that says what it waits for."""
    run = current.run
    if run.status is not RunStatus.INTERRUPTED:
        raise _busy(run, pending_of(current.calls))
    draft = Draft(current, new_id)
    abandon(draft)
    change = draft.change()
    assert change is not None
    return change


def _busy(run: Run, pending: tuple[PendingCall, ...]) -> AgentServiceError:
    if run.status is not RunStatus.PAUSED:
        return AgentServiceError(
            Reason.CONVERSATION_BUSY,
            f"conversation {run.conversation_id} is busy with {run.run_id} ({run.status.value.upper()}); "
            "try again when it has stopped",
            metadata={"run_id": run.run_id},
        )
    named = ", ".join(f"{call.tool_call_id} ({call.name})" for call in pending[:MAX_NAMED])
    if len(pending) > MAX_NAMED:
        named += f" and {len(pending) - MAX_NAMED} more"
    metadata = {"run_id": run.run_id, "pending_total": str(len(pending))}
    for number, call in enumerate(pending[:MAX_NAMED]):
        metadata[f"pending_{number}"] = f"{call.tool_call_id} {call.name} {call.kind.value.upper()}"
    return AgentServiceError(
        Reason.CONVERSATION_PAUSED,
        f"conversation {run.conversation_id} is paused by {run.run_id}, which waits for: {named}; "
        "submit their returns first",
        metadata=metadata,
    )
