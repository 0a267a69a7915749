"""How many tokens a request has, about: by tiktoken where it is at hand, else by the size of its text.

The estimate only decides when a conversation is compacted; the endpoint alone knows.
"""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Protocol

from agent_service.domain.content import images_of
from agent_service.domain.message import (
    ApprovalContent,
    Message,
    ReasoningContent,
    SummaryContent,
    ToolCallsContent,
    ToolReturnContent,
    UserContent,
)
from agent_service.domain.run import Pinned

BYTES_PER_TOKEN = 4
"""Of UTF-8, without tiktoken. English prose has a little more, code and JSON a little less."""
MESSAGE_TOKENS = 4
"""What a message or a call takes besides its text."""
TOOL_TOKENS = 10
"""What the schema of a tool takes besides its text."""
IMAGE_TOKENS = 1000
"""An image, whatever its size: endpoints scale them, each by its own rule."""
WHOLE_CHARS = 8192
"""Longer texts are counted by samples, so that one message never takes more than some milliseconds."""
_SAMPLES = 4
_AT_ONCE = 16
"""More messages are counted in a thread; tiktoken lets others go on meanwhile."""
_MAX_REMEMBERED = 1024
"""Texts: more than a run has, of which each tool has three. With less, a run of many tools would find none of them."""
_MAX_COUNTERS = 256


class TokenCounter(Protocol):
    """Counts the tokens of text. `name` tells counters apart that count differently."""

    name: str

    def count(self, text: str) -> int:
        """How many tokens the text has, about; 0 only for an empty one."""


class _BySize:
    name = "size"

    def count(self, text: str) -> int:
        size = len(text) if text.isascii() else len(text.encode(errors="replace"))
        return -(-size // BYTES_PER_TOKEN)


class _Encoding(Protocol):
    name: str

    def encode_ordinary(self, text: str) -> list[int]: ...


class _ByEncoding:
    def __init__(self, encoding: _Encoding) -> None:
        self.name = encoding.name
        self._encoding = encoding
        # Every step asks for the same prompt and tools.
        self.remembered = lru_cache(_MAX_REMEMBERED)(self.count)

    def count(self, text: str) -> int:
        if len(text) <= WHOLE_CHARS:
            return len(self._encoding.encode_ordinary(text))
        size, stride = WHOLE_CHARS // _SAMPLES, len(text) // _SAMPLES
        starts = range(0, stride * _SAMPLES, stride)
        counted = sum(len(self._encoding.encode_ordinary(text[start : start + size])) for start in starts)
        return counted * len(text) // WHOLE_CHARS


BY_SIZE: TokenCounter = _BySize()
_counters: dict[str, TokenCounter] = {}
_loading = threading.Lock()


async def counter_for(model: str) -> TokenCounter:
    """The best counter for a model that is at hand, the same one for the life of the process. Uses no network."""
    found = _counters.get(model)
    if found is None:
        installed = importlib.util.find_spec("tiktoken") is not None
        # In a thread: it reads a large file.
        found = await asyncio.to_thread(_find, model) if installed else BY_SIZE
        if len(_counters) >= _MAX_COUNTERS:  # Callers name models as they like.
            _counters.clear()
        _counters[model] = found
    return found


def _find(model: str) -> TokenCounter:
    try:
        import tiktoken
        import tiktoken.load
    except ImportError:
        return BY_SIZE

    def refuse(blobpath: str) -> bytes:
        raise FileNotFoundError(blobpath)

    with _loading:
        # It reads its cache before this; what is not there, or is damaged there, it would fetch by this.
        fetch, tiktoken.load.read_file = tiktoken.load.read_file, refuse
        try:
            return _ByEncoding(tiktoken.encoding_for_model(model))
        except (KeyError, OSError, ValueError):
            return BY_SIZE
        finally:
            tiktoken.load.read_file = fetch


async def tokens_by_position(counter: TokenCounter, messages: Sequence[Message]) -> dict[int, int]:
    """What the model is shown of each of these messages, about."""

    def count() -> dict[int, int]:
        return {message.position: message_tokens(counter, message) for message in messages}

    return count() if counter is BY_SIZE or len(messages) <= _AT_ONCE else await asyncio.to_thread(count)


def message_tokens(counter: TokenCounter, message: Message) -> int:
    """What the model is shown of a message, about."""
    content = message.content
    if isinstance(content, ReasoningContent | ApprovalContent):
        return 0
    if isinstance(content, SummaryContent) and not content.text:
        return 0
    if isinstance(content, ToolCallsContent):
        return sum(
            MESSAGE_TOKENS + counter.count(call.name) + counter.count(call.arguments_json) for call in content.calls
        )
    images = images_of(content.parts) if isinstance(content, UserContent | ToolReturnContent) else ()
    return MESSAGE_TOKENS + counter.count(content.text) + IMAGE_TOKENS * len(images)


def fixed_tokens(counter: TokenCounter, shown: Pinned) -> int:
    """What a request holds besides the conversation, about: system prompt, tools, response format."""
    wanted = shown.response_format
    texts = [shown.system_prompt, wanted.schema_json if wanted else "", wanted.description if wanted else ""]
    return (
        _all(counter, texts)
        + MESSAGE_TOKENS
        + sum(TOOL_TOKENS + _all(counter, (tool.name, tool.description, tool.parameters_json)) for tool in shown.tools)
    )


def _all(counter: TokenCounter, texts: Iterable[str]) -> int:
    count = counter.remembered if isinstance(counter, _ByEncoding) else counter.count
    return sum(map(count, texts))
