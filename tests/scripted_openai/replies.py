"""The replies a script is made of, and the functions that build them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from itertools import zip_longest
from typing import Any, TypedDict, Unpack

from .framing import Framing
from .refusals import error_body
from .tallies import Gate

# Small enough that words are cut, and a long text still makes a bounded number of chunks.
_PIECE_CHARS = 5
_MOST_PIECES = 200


@dataclass(frozen=True)
class Usage:
    """Token counts for the usage chunk, sent only when the request asks for it."""

    prompt: int = 10
    completion: int = 5
    cached: int = 0
    reasoning: int = 0

    def as_json(self) -> dict[str, Any]:
        """The value of `usage` in the last chunk."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }


@dataclass(frozen=True)
class Delta:
    """A chunk with one choice."""

    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Raw:
    """An event whose data is sent as it is."""

    data: str


class Ending(Enum):
    """What follows the last chunk of a reply."""

    FINISHED = auto()  # the finish reason, usage if asked for, `[DONE]`
    CUT = auto()  # the connection breaks
    CLOSED = auto()  # the body ends in good order, but unannounced
    HELD = auto()  # nothing, until the client goes away


@dataclass(frozen=True)
class Failure:
    """An answer that is not a stream."""

    status: int
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """One answer of the model. Build it with the functions of this module."""

    chunks: tuple[Delta | Raw, ...] = ()
    ending: Ending = Ending.FINISHED
    finish_reason: str = "stop"
    called: tuple[str, ...] = ()
    failure: Failure | None = None
    # Whether the chunk that names the role comes first. It is not a step of the gate.
    opening: bool = True
    # Not even the response headers are sent.
    mute: bool = False
    usage: Usage = Usage()
    gate: Gate | None = None
    framing: Framing | None = None
    # The reply may break what the request asks for, as small models do.
    unruly: bool = False


class Options(TypedDict, total=False):
    """What every builder takes besides its own arguments."""

    gate: Gate
    framing: Framing
    usage: Usage
    unruly: bool


def says(
    text: str | Sequence[str],
    *,
    chunks: int | None = None,
    reasoning: str | None = None,
    reasoning_field: str = "reasoning_content",
    **options: Unpack[Options],
) -> Reply:
    """A text answer.

    A str is cut into small pieces, or into about `chunks` equal ones; a sequence is sent chunk
    by chunk as it stands. `reasoning` comes first, under the field that providers use for it.
    """
    thought = tuple(Delta({reasoning_field: piece}) for piece in _split(reasoning or ""))
    spoken = _split(text, chunks) if isinstance(text, str) else list(text)
    return Reply((*thought, *(Delta({"content": piece}) for piece in spoken)), **options)


def calls(
    *wanted: tuple[str, Mapping[str, Any] | str],
    ids: Sequence[str] | None = None,
    text: str = "",
    fragments: int | None = None,
    **options: Unpack[Options],
) -> Reply:
    """Tool calls, in parallel if there are several, each a name and its arguments.

    Arguments given as a str are sent verbatim: for malformed JSON. The id and the name are only
    in the first fragment of a call, and the fragments of the calls alternate. The ids are
    call_0, call_1, ... again in every answer, as some providers do: ids that a history needs to
    be unique must come from the service. `fragments=1` sends each call whole. `text` is said
    before the calls.
    """
    names = ids if ids is not None else [f"call_{index}" for index in range(len(wanted))]
    streams = [
        _call_fragments(index, names[index], name, _arguments(given), fragments)
        for index, (name, given) in enumerate(wanted)
    ]
    said = tuple(Delta({"content": piece}) for piece in _split(text))
    alternating = tuple(
        Delta({"tool_calls": [fragment]}) for row in zip_longest(*streams) for fragment in row if fragment is not None
    )
    called = tuple(name for name, _ in wanted)
    return Reply((*said, *alternating), finish_reason="tool_calls", called=called, **options)


def empty(**options: Unpack[Options]) -> Reply:
    """A stream that ends well and holds no content at all."""
    return Reply(**options)


def fails(
    status: int,
    message: str = "The server had an error while processing your request.",
    *,
    code: str | None = None,
    kind: str | None = None,
    retry_after: float | None = None,
    body: str | None = None,
    **options: Unpack[Options],
) -> Reply:
    """An HTTP error with OpenAI's error JSON, or with `body` as it stands.

    `retry_after` is in seconds and goes out as a Retry-After header.
    """
    headers = {"Content-Type": "application/json" if body is None else "text/html"}
    if retry_after is not None:
        headers["Retry-After"] = f"{retry_after:g}"
    shown = kind or ("server_error" if status >= 500 else "invalid_request_error")
    answer = error_body(message, kind=shown, code=code) if body is None else body
    return Reply(failure=Failure(status, answer, headers), **options)


def breaks_off(
    reply: Reply | str = "This answer breaks off.",
    *,
    after: int = 1,
    politely: bool = False,
    **options: Unpack[Options],
) -> Reply:
    """The connection breaks after that many chunks of the reply.

    With `politely` the body ends in good order instead, without finish reason and ``[DONE]``.
    """
    ending = Ending.CLOSED if politely else Ending.CUT
    return _first(reply, after, ending=ending, **options)


def hangs_up(**options: Unpack[Options]) -> Reply:
    """The connection breaks before any answer."""
    return Reply(ending=Ending.CUT, mute=True, **options)


def error_in_stream(
    message: str = "The server had an error while processing your request.",
    *,
    code: str | None = "server_error",
    reply: Reply | str = "This answer fails.",
    after: int = 1,
    **options: Unpack[Options],
) -> Reply:
    """The stream carries an error after that many chunks of the reply, and ends."""
    started = _first(reply, after, ending=Ending.CLOSED, **options)
    error = Raw(error_body(message, kind="server_error", code=code))
    return replace(started, chunks=(*started.chunks, error))


def silent(
    reply: Reply | str = "",
    *,
    after: int = 0,
    before_headers: bool = False,
    **options: Unpack[Options],
) -> Reply:
    """The headers, that many chunks of the reply, then nothing until the client goes away.

    With `before_headers` not even the headers are sent.
    """
    held = _first(reply, after, ending=Ending.HELD, **options)
    return replace(held, mute=before_headers, opening=after > 0)


def cut_by_length(reply: Reply | str, *, after: int | None = None, **options: Unpack[Options]) -> Reply:
    """The reply stops with finish reason "length" after that many chunks, or half of them.

    Given `calls(...)` it stops in the middle of the arguments.
    """
    return replace(_first(reply, after, **options), finish_reason="length")


def content_filter(
    reply: Reply | str = "This answer is withheld.",
    *,
    after: int | None = None,
    **options: Unpack[Options],
) -> Reply:
    """The reply stops with finish reason "content_filter" after that many chunks, or half."""
    return replace(_first(reply, after, **options), finish_reason="content_filter")


def garbage(data: str | Mapping[str, Any] = '{"id": "chatcmpl-', **options: Unpack[Options]) -> Reply:
    """A stream whose one event is not a chat completion chunk.

    A str is sent verbatim; a mapping as JSON, for example ``{"object": "list"}`` (no choices).
    """
    event = Raw(data if isinstance(data, str) else json.dumps(data))
    return Reply((event,), ending=Ending.CLOSED, opening=False, **options)


def gated(reply: Reply, gate: Gate) -> Reply:
    """The reply, each step of which waits for the gate."""
    return replace(reply, gate=gate)


def _first(
    reply: Reply | str,
    after: int | None,
    *,
    ending: Ending = Ending.FINISHED,
    **options: Unpack[Options],
) -> Reply:
    whole = says(reply) if isinstance(reply, str) else reply
    kept = max(1, len(whole.chunks) // 2) if after is None else after
    return replace(whole, chunks=whole.chunks[:kept], ending=ending, **options)


def _split(text: str, pieces: int | None = None) -> list[str]:
    wanted = pieces or _MOST_PIECES
    size = -(-len(text) // wanted) if pieces else max(_PIECE_CHARS, -(-len(text) // wanted))
    return [text[at : at + size] for at in range(0, len(text), max(size, 1))]


def _arguments(given: Mapping[str, Any] | str) -> str:
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


def _call_fragments(
    index: int, call_id: str, name: str, arguments: str, fragments: int | None
) -> Iterator[dict[str, Any]]:
    whole = fragments == 1
    function = {"name": name, "arguments": arguments if whole else ""}
    yield {"index": index, "id": call_id, "type": "function", "function": function}
    for piece in [] if whole else _split(arguments, fragments):
        yield {"index": index, "function": {"arguments": piece}}
