"""A conversation as text, for a model that is to read it and not to take part in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent_service.domain.content import Parts, images_of
from agent_service.domain.message import (
    ApprovalContent,
    AssistantContent,
    Message,
    ReasoningContent,
    SummaryContent,
    SystemContent,
    ToolCallsContent,
    ToolReturnContent,
    UserContent,
)
from agent_service.domain.tool import Outcome

MAX_CHARS = 4000
"""Of a return, or of the arguments of a call; of longer ones the middle is left out."""


def render(messages: Iterable[Message]) -> str:
    """Who said what, which tools were called and what they returned. Reasoning and decisions are left out."""
    return "\n\n".join(line for message in messages for line in _lines(message))


def _lines(message: Message) -> Iterator[str]:
    match message.content:
        case UserContent(text, name, parts):
            yield _said(f"User ({name})" if name else "User", text, parts)
        case SystemContent(text):
            yield f"System: {text}"
        case AssistantContent(text):
            yield f"Assistant: {text}"
        case ToolCallsContent(calls):
            for call in calls:
                yield f"Assistant calls {call.name}: {_shortened(call.arguments_json)}"
        case ToolReturnContent(name=name, outcome=outcome, text=text, parts=parts):
            how = "returns" if outcome is Outcome.RETURNED else f"ends with {outcome.value}"
            yield _said(f"Tool {name} {how}", _shortened(text), parts)
        case SummaryContent(text) if text:
            yield f"Summary of what was said before: {text}"
        case ReasoningContent() | ApprovalContent() | SummaryContent():
            pass


def _said(who: str, text: str, parts: Parts) -> str:
    images = len(images_of(parts))
    marks = [f"[{images} image{'s' if images > 1 else ''}]"] if images else []
    return f"{who}: {' '.join(filter(None, (text, *marks)))}"


def _shortened(text: str) -> str:
    if len(text) <= MAX_CHARS:
        return text
    half = MAX_CHARS // 2
    return f"{text[:half]} [... {len(text) - 2 * half} characters left out ...] {text[-half:]}"
