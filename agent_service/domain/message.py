"""Messages of a conversation: one value each, used by the store, the model clients and the transport alike."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agent_service.domain.content import Parts
from agent_service.domain.tool import Outcome, ToolCall


class MessageType(StrEnum):
    """The kinds of message, as callers choose them for an answer."""

    USER = "user"
    SYSTEM = "system"
    ASSISTANT = "assistant"
    REASONING = "reasoning"
    TOOL_CALL = "tool_call"
    TOOL_RETURN = "tool_return"
    APPROVAL = "approval"
    SUMMARY = "summary"


@dataclass(frozen=True, slots=True)
class UserContent:
    """What the caller said; `name` is the speaker's, or empty. `text` is all text, also where there are `parts`."""

    text: str
    name: str = ""
    parts: Parts = ()


@dataclass(frozen=True, slots=True)
class SystemContent:
    """An instruction given as input, or, in a message with a step, what was wrong with the answer of that step."""

    text: str


@dataclass(frozen=True, slots=True)
class AssistantContent:
    """The model's text, exact."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningContent:
    """The model's reasoning, exact; never sent back to it."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallsContent:
    """The tool calls of one model answer, in its order; at least one."""

    calls: tuple[ToolCall, ...]


@dataclass(frozen=True, slots=True)
class ToolReturnContent:
    """The one outcome of one call. The model is told `text`, which is all text, and shown the images among `parts`."""

    tool_call_id: str
    name: str
    outcome: Outcome
    text: str
    stdout: str = ""
    stderr: str = ""
    truncated: bool = False
    parts: Parts = ()


@dataclass(frozen=True, slots=True)
class ApprovalContent:
    """A decision about a call; a record for people, not shown to the model."""

    tool_call_id: str
    approved: bool
    edited_arguments_json: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class SummaryContent:
    """Stands for the messages up to `through_position` in what the model is shown; `text` may be empty."""

    text: str
    through_position: int


InputContent = UserContent | SystemContent
Content = (
    UserContent
    | SystemContent
    | AssistantContent
    | ReasoningContent
    | ToolCallsContent
    | ToolReturnContent
    | ApprovalContent
    | SummaryContent
)

CONTENT_TYPES: dict[MessageType, type[Content]] = {
    MessageType.USER: UserContent,
    MessageType.SYSTEM: SystemContent,
    MessageType.ASSISTANT: AssistantContent,
    MessageType.REASONING: ReasoningContent,
    MessageType.TOOL_CALL: ToolCallsContent,
    MessageType.TOOL_RETURN: ToolReturnContent,
    MessageType.APPROVAL: ApprovalContent,
    MessageType.SUMMARY: SummaryContent,
}
_TYPE_OF_CONTENT = {content: kind for kind, content in CONTENT_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Message:
    """One stored message.

    `position` counts 1, 2, 3, ... in the conversation; `create_time` is Unix time in nanoseconds by the store's clock;
    `step_id` is empty for input.
    """

    message_id: str
    conversation_id: str
    run_id: str
    step_id: str
    position: int
    create_time: int
    content: Content

    @property
    def type(self) -> MessageType:
        """The kind of its content."""
        return _TYPE_OF_CONTENT[type(self.content)]
