"""What one caller sees of a run's events: a filter over messages and their deltas, nothing else."""

from __future__ import annotations

from agent_service.domain.event import ArgumentsDelta, Event, MessageStored, ReasoningDelta, TextDelta
from agent_service.domain.message import AssistantContent, Message, MessageType, ToolCallsContent, ToolReturnContent
from agent_service.domain.run import Pinned
from agent_service.domain.tool import Executor, Outcome
from agent_service.domain.values import replace
from agent_service.engine.commands import View
from agent_service.engine.schemas import parse_json

_DELTA_TYPES: dict[type, MessageType] = {
    TextDelta: MessageType.ASSISTANT,
    ReasoningDelta: MessageType.REASONING,
    ArgumentsDelta: MessageType.TOOL_CALL,
}


class Viewer:
    """Applies a View to the events of a run with these tools."""

    def __init__(self, view: View, pinned: Pinned) -> None:
        tool = pinned.tool(pinned.message_tool)
        self._tool, self._argument = pinned.message_tool, pinned.message_argument
        self._types = view.types
        self._speaks = view.use_assistant_message and tool is not None and tool.executor is Executor.SERVER

    def show(self, event: Event) -> Event | None:
        """The event as this caller sees it; None if not at all."""
        body = event.body
        if isinstance(body, MessageStored):
            message = self._message(body.message)
            if message is None or not self._wanted(message.type):
                return None
            return event if message is body.message else replace(event, body=MessageStored(message))
        kind = _DELTA_TYPES.get(type(body))
        if kind is None:
            return event
        if self._speaks and isinstance(body, ArgumentsDelta) and body.name == self._tool:
            return None
        return event if self._wanted(kind) else None

    def _wanted(self, kind: MessageType) -> bool:
        return self._types is None or kind in self._types

    def _message(self, message: Message) -> Message | None:
        if not self._speaks:
            return message
        content = message.content
        if isinstance(content, ToolReturnContent) and content.name == self._tool:
            return None if content.outcome is Outcome.RETURNED else message
        if isinstance(content, ToolCallsContent) and len(content.calls) == 1:
            text = self._spoken(content)
            return message if text is None else replace(message, content=AssistantContent(text))
        return message

    def _spoken(self, content: ToolCallsContent) -> str | None:
        """What a lone call of the message tool says."""
        call = content.calls[0]
        if call.name != self._tool:
            return None
        try:
            text = parse_json(call.arguments_json)[self._argument]
            return text.encode().decode() if isinstance(text, str) else None
        except (ValueError, KeyError, TypeError):  # also for half of a surrogate pair, which is no text
            return None
