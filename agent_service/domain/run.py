"""A run and what it is pinned to: frozen values, and the one mapping from stop reason to status."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from msgspec import Struct

from agent_service.domain.content import Parts
from agent_service.domain.errors import Reason
from agent_service.domain.memory import SeenBlock
from agent_service.domain.policy import DEFAULT_POLICY, ContextPolicy
from agent_service.domain.rules import NO_CALLS, RuleState, ToolRule
from agent_service.domain.tool import ToolChoice, ToolSchema


class RunStatus(StrEnum):
    """Where a run stands."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    INTERRUPTED = "interrupted"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        """Never changes again."""
        return self in _TERMINAL

    @property
    def active(self) -> bool:
        """Has more to come by itself or by its caller: QUEUED, RUNNING or PAUSED."""
        return self in (RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.PAUSED)


_TERMINAL = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.EXPIRED})


class StopReason(StrEnum):
    """Why a run stopped."""

    END_TURN = "end_turn"
    REQUIRES_APPROVAL = "requires_approval"
    MAX_STEPS = "max_steps"
    TOOL_RULE = "tool_rule"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    EXPIRED = "expired"
    ERROR = "error"
    LLM_API_ERROR = "llm_api_error"
    INVALID_LLM_RESPONSE = "invalid_llm_response"
    INVALID_TOOL_CALL = "invalid_tool_call"
    NO_TOOL_CALL = "no_tool_call"
    MAX_TOKENS_EXCEEDED = "max_tokens_exceeded"
    CONTEXT_WINDOW_OVERFLOW_IN_SYSTEM_PROMPT = "context_window_overflow_in_system_prompt"
    INSUFFICIENT_CREDITS = "insufficient_credits"


_STATUS_OF = {
    StopReason.END_TURN: RunStatus.COMPLETED,
    StopReason.MAX_STEPS: RunStatus.COMPLETED,
    StopReason.MAX_TOKENS_EXCEEDED: RunStatus.COMPLETED,
    StopReason.REQUIRES_APPROVAL: RunStatus.PAUSED,
    StopReason.CANCELLED: RunStatus.CANCELLED,
    StopReason.SUPERSEDED: RunStatus.CANCELLED,
}
_STATUS_WITHOUT_ERROR = {
    StopReason.EXPIRED: RunStatus.EXPIRED,
    StopReason.TOOL_RULE: RunStatus.COMPLETED,
}


@dataclass(frozen=True, slots=True)
class RunError:
    """What went wrong; `retry_after` is in seconds. `message` holds no secrets."""

    reason: Reason
    message: str
    retryable: bool = False
    retry_after: float | None = None
    metadata: dict[str, str] = field(default_factory=dict)


def status_of(stop_reason: StopReason, error: RunError | None) -> RunStatus:
    """The status a run has after stopping for this reason.

    A retryable error interrupts, any other error fails. A pause whose own time ran out has no error and expires; one
    call's deadline that ends its run has one and fails it. Tool rules complete a run, unless they leave it no tool.
    """
    if stop_reason in _STATUS_OF:
        return _STATUS_OF[stop_reason]
    if error is None and stop_reason in _STATUS_WITHOUT_ERROR:
        return _STATUS_WITHOUT_ERROR[stop_reason]
    return RunStatus.INTERRUPTED if error is not None and error.retryable else RunStatus.FAILED


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as the endpoint counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_prompt_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.total_tokens + other.total_tokens,
            self.cached_prompt_tokens + other.cached_prompt_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


MESSAGE_TOOL = "send_message"
"""The server tool that an agent speaks through, unless its definition names another."""
MESSAGE_ARGUMENT = "message"
"""The argument of that tool that holds the text."""


class AgentKind(StrEnum):
    """Which Agent class a definition is for."""

    LLM = "llm"
    RESPONDER = "responder"
    SLEEPTIME = "sleeptime"


DEFAULT_EVERY = 5
"""After how many runs of a conversation memory agents read what was said, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Which agents read what was said in a conversation, after every `every`-th run of it that is COMPLETED."""

    memory_agent_ids: tuple[str, ...]
    every: int = DEFAULT_EVERY


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """What a memory run is given: the messages after position `after` up to `through` of the conversation that was made
    then."""

    conversation_id: str
    conversation_time: int
    memory_agent_id: str
    after: int
    through: int


@dataclass(frozen=True, slots=True)
class Sleeptime:
    """The agent that a sleeptime agent answers through, and who reads what was said."""

    foreground_agent_id: str
    plan: MemoryPlan


@dataclass(frozen=True, slots=True)
class AgentDefinition:
    """An agent: instructions, model (empty means the server's default) and the names of its server tools.

    Calls of `message_tool` are the agent's way to speak: its argument `message_argument` holds the text.
    """

    agent_id: str
    kind: AgentKind
    instructions: str
    model: str = ""
    server_tools: tuple[str, ...] = ()
    description: str = ""
    message_tool: str = MESSAGE_TOOL
    message_argument: str = MESSAGE_ARGUMENT
    tool_rules: tuple[ToolRule, ...] = ()
    memory_block_ids: tuple[str, ...] = ()
    context: ContextPolicy = DEFAULT_POLICY
    sleeptime: Sleeptime | None = None


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """What the answer of a run has to be: a JSON object that satisfies this JSON Schema, whose text is exact.

    `strict` asks the endpoint to make sure of it by itself.
    """

    name: str
    schema_json: str
    description: str = ""
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Pinned:
    """What a run keeps from its start to its end, whatever happens to the agent meanwhile.

    `tools` is the merge of server tools and client tools, in the order the model sees; the names in
    `overridden_tools` are server tools that a client tool replaced. `provider` names the model client.
    """

    agent_id: str
    kind: AgentKind
    model: str
    provider: str
    system_prompt: str
    tools: tuple[ToolSchema, ...] = ()
    overridden_tools: tuple[str, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool | None = None
    agent_revision: int = 0
    message_tool: str = MESSAGE_TOOL
    message_argument: str = MESSAGE_ARGUMENT
    response_format: ResponseFormat | None = None
    tool_rules: tuple[ToolRule, ...] = ()
    memory_block_ids: tuple[str, ...] = ()
    context: ContextPolicy = DEFAULT_POLICY

    def tool(self, name: str) -> ToolSchema | None:
        """The tool of this name, if there is one."""
        return next((tool for tool in self.tools if tool.name == name), None)


@dataclass(frozen=True, slots=True)
class QueuedInput:
    """An input message of a run that has not begun."""

    system: bool
    text: str
    name: str = ""
    parts: Parts = ()


DEFAULT_PAUSE_TTL = 7 * 24 * 3600 * 10**9
"""How long a run may be paused unless its request says otherwise, in nanoseconds."""


class Run(Struct, frozen=True):
    """The row of a run. Times are Unix nanoseconds by the store's clock, 0 when not yet.

    `epoch` counts owners: a write of an owner is refused when another epoch is on the row. `invalid_steps` counts
    model answers in a row that held nothing but refused calls, `invalid_answers` all that were against the response
    format. `request_start_time` is the caller's clock.
    `first_position` is the place of its first message. `run_timeout` (0 means none) and `running_time` are nanoseconds;
    `running_since` is 0 unless it is RUNNING, and `lease_expire_time` if its owner handed it over. `losses` counts the
    owners that were lost since the last progress. `pause_ttl` (nanoseconds) is how long it may be PAUSED at a time;
    `pause_expire_time` is when a PAUSED or INTERRUPTED run is given up, 0 in any other status.
    `queued_inputs` is what a QUEUED run will say when its turn comes. `conversation_time` is when its conversation was
    made, which tells it from an earlier one of the same id. `rule_state` is for its tool rules.
    `server_tools_wait`: while a call of an answer is PENDING, no server tool of it starts. `memory_seen` are the memory
    blocks that its last answer was told. `trace` is the W3C traceparent of the last work on it that was traced.
    `memory_plan`: who reads the conversation when it is COMPLETED. `memory_part`: what a memory run was given, because
    of the end of `parent_run_id`.
    """

    run_id: str
    conversation_id: str
    agent_id: str
    model: str
    digest: str
    status: RunStatus
    max_steps: int
    create_time: int
    update_time: int
    stop_reason: StopReason | None = None
    error: RunError | None = None
    usage: Usage = Usage()
    steps_taken: int = 0
    model_attempts: int = 0
    invalid_steps: int = 0
    last_sequence: int = 0
    epoch: int = 0
    owner: str = ""
    lease_expire_time: int = 0
    end_time: int = 0
    first_token_time: int = 0
    request_start_time: int = 0
    labels: dict[str, str] = {}
    overridden_tools: tuple[str, ...] = ()
    agent_revision: int = 0
    first_position: int = 0
    run_timeout: int = 0
    running_time: int = 0
    running_since: int = 0
    losses: int = 0
    pause_ttl: int = DEFAULT_PAUSE_TTL
    pause_expire_time: int = 0
    queued_inputs: tuple[QueuedInput, ...] = ()
    conversation_time: int = 0
    invalid_answers: int = 0
    rule_state: RuleState = NO_CALLS
    server_tools_wait: bool = False
    memory_seen: tuple[SeenBlock, ...] = ()
    parent_run_id: str = ""
    memory_plan: MemoryPlan | None = None
    memory_part: MemoryPart | None = None
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that works on runs. A claim of it lasts `lease` nanoseconds, and as long again from each heartbeat."""

    name: str
    lease: int


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to write as the owner of a run, until another epoch takes it away."""

    tenant: str
    run_id: str
    epoch: int
