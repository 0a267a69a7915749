"""Estimates of tokens: by an encoding where one is at hand, else by size; never by the network, never for long."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import tiktoken
import tiktoken.load
import tiktoken.registry

from agent_service.domain.content import Image, Part
from agent_service.domain.message import (
    ApprovalContent,
    AssistantContent,
    Content,
    Message,
    ReasoningContent,
    SummaryContent,
    ToolCallsContent,
    ToolReturnContent,
    UserContent,
)
from agent_service.domain.run import AgentKind, Pinned, ResponseFormat
from agent_service.domain.tool import Executor, Outcome, ToolCall, ToolSchema
from agent_service.engine import tokens
from agent_service.engine.limits import Limits
from agent_service.engine.tokens import BY_SIZE, IMAGE_TOKENS, MESSAGE_TOKENS, TOOL_TOKENS, WHOLE_CHARS

pytestmark = pytest.mark.anyio

BYTES = {bytes([number]): number for number in range(256)}


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """No counter is remembered from before, no encoding is loaded, and there is no cache of encodings."""
    monkeypatch.setattr(tokens, "_counters", {})
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "/nonexistent")


@pytest.fixture
def by_byte(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The encoding of the newer models is at hand; it is one in which each byte is a token."""
    made = tiktoken.Encoding("o200k_base", pat_str=r"\S+|\s+", mergeable_ranks=BYTES, special_tokens={})
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "o200k_base", made)
    yield


def message(content: Content) -> Message:
    """A stored message."""
    return Message("msg_1", "conv_1", "run_1", "", 1, 0, content)


@pytest.mark.parametrize(("text", "count"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("äöü", 2), ("\ud83d", 1)])
def test_by_size_four_bytes_are_a_token(text: str, count: int) -> None:
    """Of UTF-8, rounded up."""
    assert BY_SIZE.count(text) == count


async def test_an_encoding_that_is_at_hand_counts(by_byte: None) -> None:
    """For the models that it is for; text that looks like a special token is text."""
    counter = await tokens.counter_for("gpt-4o")
    assert (counter.name, counter.count("Grüße <|endoftext|>")) == ("o200k_base", 21)
    assert await tokens.counter_for("gpt-4o") is counter
    assert await tokens.counter_for("some-other-model") is BY_SIZE


async def test_what_is_not_on_this_machine_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size counts then; and nobody is asked."""
    asked: list[str] = []
    monkeypatch.setattr(tiktoken.load, "read_file", asked.append)
    assert await tokens.counter_for("gpt-4o") is BY_SIZE
    assert asked == []


async def test_without_tiktoken_the_size_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an optional package."""
    monkeypatch.setattr(sys, "path", [])
    for name in [name for name in sys.modules if name.split(".")[0] == "tiktoken"]:
        monkeypatch.delitem(sys.modules, name)
    assert await tokens.counter_for("gpt-4o") is BY_SIZE


async def test_long_texts_are_counted_by_samples(by_byte: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """From all parts of it, so that an estimate of many megabytes takes no longer than one of a few pages."""
    counter = await tokens.counter_for("gpt-4o")
    assert counter.count("ab " * 100_000) == 300_000
    assert counter.count("a" * 200_000 + "ä" * 200_000) == 600_000
    assert counter.count("x" * (WHOLE_CHARS + 1)) == WHOLE_CHARS + 1


async def test_many_messages_are_counted_like_few(by_byte: None) -> None:
    """Many go to a thread, so that they hold nobody up."""
    counter = await tokens.counter_for("gpt-4o")
    many = [Message("m", "c", "r", "", at, 0, UserContent("x" * at)) for at in range(1, 100)]
    found = await tokens.tokens_by_position(counter, many)
    assert found == {at: at + MESSAGE_TOKENS for at in range(1, 100)}
    assert found == {**await tokens.tokens_by_position(counter, many[:5]), **dict(list(found.items())[5:])}


async def test_models_that_callers_make_up_are_not_remembered_for_ever() -> None:
    """The names come from requests."""
    for number in range(3 * tokens._MAX_COUNTERS):
        await tokens.counter_for(f"model-{number}")
    assert len(tokens._counters) <= tokens._MAX_COUNTERS


IMAGES = (Part("abcd"), Part(image=Image(b"\xff" * 100_000, "image/png")), Part(image=Image(url="https://example.org")))


@pytest.mark.parametrize(
    ("content", "count"),
    [
        (UserContent("abcd"), MESSAGE_TOKENS + 1),
        (UserContent("abcd", parts=IMAGES), MESSAGE_TOKENS + 1 + 2 * IMAGE_TOKENS),
        (AssistantContent(""), MESSAGE_TOKENS),
        (ReasoningContent("abcd"), 0),
        (ApprovalContent("call_1", True, "{}", "note"), 0),
        (SummaryContent("", 3), 0),
        (SummaryContent("abcd", 3), MESSAGE_TOKENS + 1),
        (ToolCallsContent((ToolCall("1", "abcd", "{}"), ToolCall("2", "abcd", '{"a":1}'))), 2 * MESSAGE_TOKENS + 5),
        (ToolReturnContent("1", "x", Outcome.RETURNED, "abcd", "out" * 99, parts=IMAGES[1:2]), 5 + IMAGE_TOKENS),
    ],
)
def test_a_message_counts_as_what_the_model_is_shown_of_it(content: Content, count: int) -> None:
    """Images count the same whatever their size; what the model is not shown does not count."""
    assert tokens.message_tokens(BY_SIZE, message(content)) == count


def test_prompt_tools_and_format_count() -> None:
    """With every request."""
    plain = Pinned("a", AgentKind.LLM, "m", "p", "abcdefgh")
    tool = ToolSchema("find", "Finds things", '{"type":"object"}', Executor.SERVER)
    whole = Pinned(
        "a", AgentKind.LLM, "m", "p", "abcdefgh", (tool, tool), response_format=ResponseFormat("x", "{} ", "abcde")
    )
    assert tokens.fixed_tokens(BY_SIZE, plain) == MESSAGE_TOKENS + 2
    assert tokens.fixed_tokens(BY_SIZE, whole) == MESSAGE_TOKENS + 2 + 1 + 2 + 2 * (TOOL_TOKENS + 1 + 3 + 5)


async def test_prompt_and_tools_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also as many tools as a caller may declare: each step asks for all of them."""
    encoded: list[str] = []

    class Encoding:
        name = "listening"

        def encode_ordinary(self, text: str) -> list[int]:
            encoded.append(text)
            return list(text.encode())

    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda model: Encoding())
    counter = await tokens.counter_for("gpt-4o")
    tools = tuple(
        ToolSchema(f"find_{n}", f"Finds {n}", f'{{"title":"{n}"}}', Executor.CLIENT)
        for n in range(Limits().max_client_tools + 64)
    )
    shown = Pinned("a", AgentKind.LLM, "m", "p", "abcdefgh", tools)
    count = tokens.fixed_tokens(counter, shown)
    once = len(encoded)
    assert tokens.fixed_tokens(counter, shown) == count
    assert len(encoded) == once
