"""Tools and calls: what the model may call, what it called, and how each call stands."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from msgspec import Struct


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call as the model made it; `arguments_json` is its exact text and may be malformed."""

    tool_call_id: str
    name: str
    arguments_json: str


class Executor(StrEnum):
    """Who executes a tool."""

    CLIENT = "client"
    SERVER = "server"


class CallState(StrEnum):
    """PROPOSED -> PENDING -> APPROVED -> STARTED -> one outcome, skipping what does not apply."""

    PROPOSED = "proposed"
    PENDING = "pending"
    APPROVED = "approved"
    STARTED = "started"
    RETURNED = "returned"
    FAILED = "failed"
    DENIED = "denied"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class Outcome(StrEnum):
    """How a call ended. Exactly one per call, for good."""

    RETURNED = "returned"
    FAILED = "failed"
    DENIED = "denied"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


OUTCOMES = frozenset(CallState(outcome.value) for outcome in Outcome)


class PendingKind(StrEnum):
    """What a pending call waits for."""

    CLIENT_EXECUTION = "client_execution"
    APPROVAL = "approval"


class OnTimeout(StrEnum):
    """What happens when nobody answers a call in time."""

    RETURN_ERROR = "return_error"
    FAIL_RUN = "fail_run"
    KEEP_WAITING = "keep_waiting"


class Call(Struct, frozen=True):
    """The row of one call.

    `step` is the number of the model response that made it, `index` its place there. `provider_call_id` is the id the
    endpoint gave, kept beside ours. `answer_digest` is set once the caller answered (a return or a decision), so that
    the same answer again is told from another one; `answer_sequence` is the number of the receipt that took it.
    `pending_time` is since when it waits for the caller; 0 if it never did. `attempts` counts how often the server
    started it. `timeout` is in nanoseconds, 0 for none; `deadline` is set when the run pauses, 0 before.
    `worker_id`, `claim_token` and `claim_expire_time` are of its last claim, empty if there was none. `ends_run`: the
    run ends when it has returned.
    """

    tool_call_id: str
    provider_call_id: str
    step_id: str
    step: int
    index: int
    name: str
    arguments_json: str
    executor: Executor
    state: CallState
    edited_arguments_json: str = ""
    answer_digest: str = ""
    answer_sequence: int = 0
    settle_time: int = 0
    pending_time: int = 0
    attempts: int = 0
    timeout: int = 0
    on_timeout: OnTimeout = OnTimeout.RETURN_ERROR
    deadline: int = 0
    worker_id: str = ""
    claim_token: str = ""
    claim_expire_time: int = 0
    ends_run: bool = False

    @property
    def pending(self) -> bool:
        """Whether it waits for the caller."""
        return self.state is CallState.PENDING

    @property
    def settled(self) -> bool:
        """Whether it has its outcome."""
        return self.state in OUTCOMES

    @property
    def effective_arguments_json(self) -> str:
        """The arguments to execute with: the edited ones if an approval edited them."""
        return self.edited_arguments_json or self.arguments_json


@dataclass(frozen=True, slots=True)
class PendingCall:
    """A call that waits for the caller, as shown. `deadline` is Unix time in nanoseconds, 0 for none."""

    tool_call_id: str
    name: str
    arguments_json: str
    kind: PendingKind
    index: int
    deadline: int = 0


def pending_of(calls: tuple[Call, ...]) -> tuple[PendingCall, ...]:
    """The calls among `calls` that wait for the caller, in the model's order."""
    waiting = sorted((c for c in calls if c.state is CallState.PENDING), key=lambda c: (c.step, c.index))
    return tuple(
        PendingCall(c.tool_call_id, c.name, c.arguments_json, pending_kind(c.executor), c.index, c.deadline)
        for c in waiting
    )


def pending_kind(executor: Executor) -> PendingKind:
    """What a pending call of this executor waits for."""
    return PendingKind.CLIENT_EXECUTION if executor is Executor.CLIENT else PendingKind.APPROVAL


class ToolChoiceMode(StrEnum):
    """Whether the model must call a tool."""

    AUTO = "auto"
    REQUIRED = "required"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """The choice for the first model request of a run; with `tool_name` that tool is forced."""

    mode: ToolChoiceMode = ToolChoiceMode.AUTO
    tool_name: str = ""


@dataclass(frozen=True, slots=True)
class ToolSchema:
    """What the model is told about one tool, and who executes it.

    `parameters_json` is the exact JSON Schema text (an object schema). `result_schema_json` (client tools) is empty
    or a JSON Schema of the returned text; `timeout` (client tools) is how long the caller may take, in nanoseconds, 0
    for as long as the pause may last. `requires_approval`, `idempotent` and
    `parallel_safe` (it may be executed beside others) are for server tools. `edits_memory`: it is one of the
    server's own tools for memory blocks.
    """

    name: str
    description: str
    parameters_json: str
    executor: Executor
    result_schema_json: str = ""
    requires_approval: bool = False
    idempotent: bool = False
    timeout: int = 0
    on_timeout: OnTimeout = OnTimeout.RETURN_ERROR
    parallel_safe: bool = False
    edits_memory: bool = False
