"""Events of a run. Durable ones are stored and numbered; the others repeat the last durable number."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agent_service.domain.message import Message
from agent_service.domain.policy import Strategy
from agent_service.domain.run import RunError, RunStatus, StopReason, Usage
from agent_service.domain.tool import PendingCall


class RunCause(StrEnum):
    """What made a run start or go on."""

    START = "start"
    SUBMIT = "submit"
    DEADLINE = "deadline"
    RETRY = "retry"
    RECOVERY = "recovery"


@dataclass(frozen=True, slots=True)
class RunAccepted:
    """The start is stored; always number 1."""

    conversation_id: str
    agent_id: str
    overridden_tools: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A process begins to work on the run."""

    epoch: int
    cause: RunCause


@dataclass(frozen=True, slots=True)
class RunResumed:
    """A process goes on with the run after a stop, or after its owner was lost."""

    epoch: int
    cause: RunCause


@dataclass(frozen=True, slots=True)
class MessageStored:
    """A whole message is stored."""

    message: Message


@dataclass(frozen=True, slots=True)
class ToolReturnsAccepted:
    """The receipt of a submit."""

    request_id: str
    accepted: tuple[str, ...]
    already_settled: tuple[str, ...]
    remaining: tuple[PendingCall, ...]


@dataclass(frozen=True, slots=True)
class StepRestarted:
    """The model is asked again for this step."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class BlockRead:
    """A memory block that the model was shown, and in which state."""

    memory_block_id: str
    label: str
    revision: int


@dataclass(frozen=True, slots=True)
class MemoryRead:
    """What the step's answer was told of the memory, if that is not what the one before was told."""

    blocks: tuple[BlockRead, ...]


@dataclass(frozen=True, slots=True)
class Compaction:
    """Older messages of the conversation are not shown to the model any more. Tokens are estimates of its next request;
    `left_out` counts messages."""

    strategy: Strategy
    message_id: str
    position: int
    through_position: int
    tokens_before: int
    tokens_after: int
    left_out: int


@dataclass(frozen=True, slots=True)
class RunStopped:
    """The run stopped, for now or (`final`) for good."""

    status: RunStatus
    stop_reason: StopReason
    final: bool
    remaining: tuple[PendingCall, ...]
    usage: Usage
    error: RunError | None = None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of an assistant message; `offset` in Unicode code points."""

    message_id: str
    offset: int
    text: str
    attempt: int


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of a reasoning message; `offset` in Unicode code points."""

    message_id: str
    offset: int
    text: str
    attempt: int


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """A piece of the arguments of call `index`; `offset` in Unicode code points."""

    message_id: str
    index: int
    name: str
    offset: int
    text: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life."""


@dataclass(frozen=True, slots=True)
class ToolCallProgress:
    """What the worker that has a call tells of it."""

    tool_call_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Live:
    """A watcher has caught up; `deltas` says whether it will see any."""

    deltas: bool


DurableBody = (
    RunAccepted
    | RunStarted
    | RunResumed
    | MessageStored
    | ToolReturnsAccepted
    | StepRestarted
    | MemoryRead
    | Compaction
    | RunStopped
)
DeltaBody = TextDelta | ReasoningDelta | ArgumentsDelta
Body = DurableBody | DeltaBody | Heartbeat | ToolCallProgress | Live

DURABLE_TYPES: dict[str, type[DurableBody]] = {
    "run_accepted": RunAccepted,
    "run_started": RunStarted,
    "run_resumed": RunResumed,
    "message_stored": MessageStored,
    "tool_returns_accepted": ToolReturnsAccepted,
    "step_restarted": StepRestarted,
    "memory_read": MemoryRead,
    "compaction": Compaction,
    "run_stopped": RunStopped,
}
_DURABLE = frozenset(DURABLE_TYPES.values())


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `create_time` is Unix time in nanoseconds by the store's clock."""

    run_id: str
    sequence: int
    step_id: str
    create_time: int
    body: Body

    @property
    def durable(self) -> bool:
        """Whether it is stored and numbered."""
        return type(self.body) in _DURABLE
