"""A conversation as text: who said what, in order, with long returns shortened and images named."""

from __future__ import annotations

from agent_service.domain.content import Image, Part
from agent_service.domain.message import (
    ApprovalContent,
    AssistantContent,
    Content,
    Message,
    ReasoningContent,
    SummaryContent,
    SystemContent,
    ToolCallsContent,
    ToolReturnContent,
    UserContent,
)
from agent_service.domain.tool import Outcome, ToolCall
from agent_service.engine.transcript import MAX_CHARS, render

IMAGE = Part(image=Image(b"\xff" * 1000, "image/png"))


def rendered(*contents: Content) -> list[str]:
    """The paragraphs of the transcript of these."""
    messages = [Message("m", "c", "r", "", number, 0, content) for number, content in enumerate(contents, 1)]
    return render(messages).split("\n\n")


def test_each_message_is_told_with_its_speaker() -> None:
    """Calls with their arguments, returns with how they ended; reasoning and decisions are left out."""
    calls = ToolCallsContent((ToolCall("1", "get", '{"a": 1}'), ToolCall("2", "pay", "{}")))
    assert rendered(
        UserContent("Hi"),
        UserContent("Hi", "bob"),
        SystemContent("Be kind."),
        ReasoningContent("Hm."),
        AssistantContent("Hello."),
        calls,
        ApprovalContent("2", True),
        ToolReturnContent("1", "get", Outcome.RETURNED, "7"),
        ToolReturnContent("2", "pay", Outcome.DENIED, "No."),
        SummaryContent("Long ago.", 1),
        SummaryContent("", 1),
    ) == [
        "User: Hi",
        "User (bob): Hi",
        "System: Be kind.",
        "Assistant: Hello.",
        'Assistant calls get: {"a": 1}',
        "Assistant calls pay: {}",
        "Tool get returns: 7",
        "Tool pay ends with denied: No.",
        "Summary of what was said before: Long ago.",
    ]


def test_images_are_named_and_not_shown() -> None:
    """Their bytes mean nothing as text."""
    assert rendered(UserContent("See:", parts=(Part("See:"), IMAGE, IMAGE))) == ["User: See: [2 images]"]
    assert rendered(ToolReturnContent("1", "photo", Outcome.RETURNED, "", parts=(IMAGE,))) == [
        "Tool photo returns: [1 image]"
    ]


def test_long_returns_lose_their_middle() -> None:
    """And say how much; what people and the model say is whole."""
    text = "a" * MAX_CHARS + "b" * MAX_CHARS
    half = MAX_CHARS // 2
    short = f"{'a' * half} [... {MAX_CHARS} characters left out ...] {'b' * half}"
    assert rendered(ToolReturnContent("1", "get", Outcome.RETURNED, text)) == [f"Tool get returns: {short}"]
    assert rendered(ToolCallsContent((ToolCall("1", "get", text),))) == [f"Assistant calls get: {short}"]
    assert rendered(UserContent(text)) == [f"User: {text}"]
