"""A transcript of messages as text, for a model that did not take part."""

from __future__ import annotations

from collections.abc import Iterable

from agent_service.domain.content import Parts, images_of
from agent_service.domain.message import (
    ApprovalContent,
    AssistantContent,
    Content,
    Message,
    ReasoningContent,
    SystemContent,
    ToolCallsContent,
    ToolReturnContent,
    UserContent,
)

LONGEST_RETURN = 2000
"""Characters of arguments or of a tool return; what is more is left out, with a mark."""


def render(messages: Iterable[Message]) -> str:
    """Who said what, in order: calls with their arguments, images as a mark. Reasoning is left out, and so is what
    nobody said."""
    return "\n".join(line for message in messages for line in _lines(message.content))


def shortened(text: str, most: int) -> str:
    """The text, or its beginning and a mark that says how much is left out."""
    left_out = len(text) - most
    return text if left_out <= 0 else f"{text[:most]} [... {left_out} more characters]"


def _lines(content: Content) -> list[str]:
    match content:
        case UserContent(text, name, parts):
            return [f"user{f' ({name})' if name else ''}: {_with_images(text, parts)}"]
        case SystemContent(text):
            return [f"system: {text}"]
        case AssistantContent(text):
            return [f"assistant: {text}"]
        case ToolCallsContent(calls):
            return [f"assistant calls {c.name} with {shortened(c.arguments_json, LONGEST_RETURN)}" for c in calls]
        case ToolReturnContent():
            text = shortened(content.text, LONGEST_RETURN)
            return [f"{content.name} {content.outcome.value}: {_with_images(text, content.parts)}"]
        case ApprovalContent() | ReasoningContent():
            return []
    return []


def _with_images(text: str, parts: Parts) -> str:
    return " ".join([text, *("[image]" for _ in images_of(parts))]).strip()
