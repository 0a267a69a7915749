"""What a hostile model endpoint answers. Each reply writes bytes, and says whether the connection is still good."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from tests.fuzz import json_schemas, values

_MOST_BYTES = 200 * 1024 * 1024
"""What has no end ends here all the same, so that an attacked server that takes all of it is told from a dead one."""


@dataclass(frozen=True)
class Asked:
    """What kind of answer is wanted, the names of the tools that may be called, and randomness of this request."""

    kind: str
    names: tuple[str, ...]
    rng: Random


class Writer:
    """Writes HTTP by hand."""

    def __init__(self, stream: asyncio.StreamWriter) -> None:
        self._stream = stream
        self._written = 0

    async def raw(self, data: bytes) -> None:
        """Bytes as they are. Raises ConnectionError when the other side is gone, or after very many bytes."""
        self._written += len(data)
        if self._written > _MOST_BYTES or self._stream.is_closing():
            raise ConnectionError
        self._stream.write(data)
        await self._stream.drain()

    async def head(self, status: str = "200 OK", **headers: str) -> None:
        """The beginning of a chunked answer."""
        lines = {"content_type": "text/event-stream", "transfer_encoding": "chunked"} | headers
        told = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items() if value)
        await self.raw(f"HTTP/1.1 {status}\r\n{told}\r\n".encode("latin-1"))

    async def chunk(self, data: bytes) -> None:
        """A piece of the body."""
        await self.raw(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def event(self, data: bytes | str) -> None:
        """A server-sent event."""
        await self.chunk(b"data: " + (data if isinstance(data, bytes) else data.encode()) + b"\n\n")

    async def delta(self, **fields: Any) -> None:
        """An event of an answer."""
        await self.event(json.dumps({"choices": [{"index": 0, "delta": fields}]}))

    async def finish(self, reason: str = "stop") -> bool:
        """The end of a good answer."""
        await self.event(json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}))
        await self.event("[DONE]")
        await self.raw(b"0\r\n\r\n")
        return True

    async def failure(self, status: int, body: str, **headers: str) -> None:
        """An answer that is not a stream."""
        data = body.encode()
        await self.head(
            f"{status} No",
            transfer_encoding="",
            content_type="application/json",
            content_length=str(len(data)),
            **headers,
        )
        await self.raw(data)


Reply = Callable[[Writer, Asked], Awaitable[bool]]
REPLIES: dict[str, Reply] = {}
"""All replies by name."""


def _reply(function: Reply) -> Reply:
    REPLIES[function.__name__] = function
    return function


def _call(index: int | None, name: str, arguments: str, call_id: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {"id": call_id or f"call_{index}", "function": {"name": name, "arguments": arguments}}
    return found if index is None else {"index": index, **found}


def _name(asked: Asked) -> str:
    return asked.rng.choice(asked.names) if asked.names else "client_a"


@_reply
async def says(out: Writer, asked: Asked) -> bool:
    await out.head()
    await out.delta(content="Well.")
    return await out.finish()


@_reply
async def odd_text(out: Writer, asked: Asked) -> bool:
    await out.head()
    for _ in range(asked.rng.randrange(1, 6)):
        word = asked.rng.choice(("content", "reasoning_content", "refusal", "reasoning"))
        await out.delta(**{word: asked.rng.choice((values.edge_text(asked.rng)[:200_000], "\ud83d", "\ude00", "\x00"))})
    return await out.finish(asked.rng.choice(("stop", "length", "content_filter", "odd", "tool_calls", "\x00")))


@_reply
async def calls(out: Writer, asked: Asked) -> bool:
    if not asked.names:
        return await says(out, asked)
    await out.head()
    for index in range(asked.rng.randrange(1, 4)):
        await out.delta(tool_calls=[_call(index, _name(asked), json_schemas.hitting(asked.rng))])
    return await out.finish("tool_calls")


@_reply
async def odd_calls(out: Writer, asked: Asked) -> bool:
    rng = asked.rng
    await out.head()
    for index in range(rng.randrange(1, 5)):
        name = rng.choice((_name(asked), _name(asked), "", "nobody", "a\x00b", "x" * 70_000, "é", "\ud800"))
        arguments = rng.choice((values.edge_json(rng), values.edge_text(rng), "", json_schemas.hitting(rng)))
        await out.delta(
            tool_calls=[_call(rng.choice((index, 0, -1, 2**63 - 1, None)), name, arguments, rng.choice(("", "x")))]
        )
    return await out.finish("tool_calls")


@_reply
async def flood(out: Writer, asked: Asked) -> bool:
    """Hundreds of calls in one answer."""
    await out.head()
    many = asked.rng.choice((100, 128, 129, 900))
    for index in range(many):
        await out.delta(tool_calls=[_call(index, _name(asked), '{"a":1}', asked.rng.choice(("same", "")))])
    return await out.finish("tool_calls")


@_reply
async def one_event_flood(out: Writer, asked: Asked) -> bool:
    """Very many calls in one event."""
    await out.head()
    await out.delta(tool_calls=[_call(None, "client_a", "{}")] * 30_000)
    return await out.finish("tool_calls")


@_reply
async def giant_arguments(out: Writer, asked: Asked) -> bool:
    await out.head()
    size = asked.rng.choice((1_000_000, 1_200_000, 3_000_000, 9_000_000))
    await out.delta(tool_calls=[_call(0, _name(asked), '{"a":"')])
    for _ in range(size // 100_000):
        await out.delta(tool_calls=[{"index": 0, "function": {"arguments": "x" * 100_000}}])
    await out.delta(tool_calls=[{"index": 0, "function": {"arguments": '"}'}}])
    return await out.finish("tool_calls")


@_reply
async def repeated_keys(out: Writer, asked: Asked) -> bool:
    """The one key that stands twice stands last."""
    await out.head()
    keys = ",".join(f'"k{i}":0' for i in range(90_000))
    await out.delta(tool_calls=[_call(0, _name(asked), "{" + keys + ',"k89999":1}')])
    return await out.finish("tool_calls")


@_reply
async def deep(out: Writer, asked: Asked) -> bool:
    """Deep JSON as arguments, as an event, or beside what is known in an event."""
    levels = asked.rng.choice((500, 990, 5_000, 200_000))
    nest = "[" * levels + "]" * levels
    await out.head()
    match asked.rng.randrange(4):
        case 0:
            await out.delta(tool_calls=[_call(0, _name(asked), '{"a":' + nest + "}")])
        case 1:
            await out.event(nest)
        case 2:
            await out.event('{"choices":[{"index":0,"delta":{"content":"a","x":' + nest + "}}]}")
        case _:
            await out.event('{"error":' + '{"error":' * levels + "1" + "}" * levels + "}")
    return await out.finish("tool_calls")


@_reply
async def bad_utf8(out: Writer, asked: Asked) -> bool:
    await out.head()
    bad = asked.rng.choice(values.BROKEN_UTF8)
    await out.event(b'{"choices":[{"index":0,"delta":{"content":"' + bad + b'"}}]}')
    await out.event(b'{"choices":[{"index":0,"delta":{"content":"\\ud800 \\udc00\\ud800"}}]}')
    return await out.finish()


@_reply
async def odd_events(out: Writer, asked: Asked) -> bool:
    rng = asked.rng
    await out.head()
    for _ in range(4):
        odd: Any = rng.choice(
            (None, 0, "", "x", [], {}, [None], [{}], 10**30, -1, True, {"index": 10**30}, "9" * 5_000)
        )
        word = rng.choice(("choices", "usage", "error", "id", "object"))
        await out.event(json.dumps({"choices": [{"index": 0, "delta": {"content": "a"}}], word: odd}))
        inner = rng.choice(("delta", "finish_reason", "index", "logprobs"))
        await out.event(json.dumps({"choices": [{"index": 0, "delta": {"content": "b"}, inner: odd}]}))
    return await out.finish()


@_reply
async def odd_usage(out: Writer, asked: Asked) -> bool:
    rng = asked.rng
    await out.head()
    await out.delta(content="Counted.")
    odd = [rng.choice((-1, 0, 1, 2**31, 2**63 - 1, 2**63, 2**64, 10**40, 1.5, None, "7", True)) for _ in range(5)]
    usage = {
        "prompt_tokens": odd[0],
        "completion_tokens": odd[1],
        "total_tokens": odd[2],
        "prompt_tokens_details": {"cached_tokens": odd[3]},
        "completion_tokens_details": {"reasoning_tokens": odd[4]},
    }
    await out.event(json.dumps({"choices": [], "usage": usage}))
    return await out.finish()


@_reply
async def huge_line(out: Writer, asked: Asked) -> bool:
    await out.head()
    await out.chunk(b"data: ")
    while True:
        await out.chunk(b"x" * 100_000)


@_reply
async def endless_events(out: Writer, asked: Asked) -> bool:
    """As fast as it can, and nothing in them."""
    await out.head()
    empty = rb'data: {"choices":[{"index":0,"delta":{}}]}' + b"\n\n"
    while True:
        await out.chunk(asked.rng.choice((empty, b": still here\n", b"event: x\n", b"\n\n")) * 1_000)


@_reply
async def endless_text(out: Writer, asked: Asked) -> bool:
    await out.head()
    while True:
        await out.delta(content="word " * 100)


@_reply
async def drip(out: Writer, asked: Asked) -> bool:
    """A few bytes a second, for longer than anybody waits."""
    await out.head()
    for byte in b'data: {"choices":[{"index":0,"delta":{"content":"slow"}}]}\n\n':
        await out.chunk(bytes([byte]))
        await asyncio.sleep(0.03)
    return await out.finish()


@_reply
async def dripping_head(out: Writer, asked: Asked) -> bool:
    await out.raw(b"HTTP/1.1 200 OK\r\n")
    for index in range(100):
        await out.raw(f"x-{index}: y\r\n".encode())
        await asyncio.sleep(0.02)
    return False


@_reply
async def endless_head(out: Writer, asked: Asked) -> bool:
    await out.raw(b"HTTP/1.1 200 OK\r\n")
    index = 0
    while True:
        index += 1
        await out.raw(b"".join(b"x-%d-%d: yyyyyyyyyyyyyyyyyy\r\n" % (index, i) for i in range(1_000)))


@_reply
async def huge_head(out: Writer, asked: Asked) -> bool:
    await out.raw(b"HTTP/1.1 200 OK\r\nx: " + b"y" * asked.rng.choice((7_000, 70_000, 9_000_000)) + b"\r\n\r\n")
    return False


@_reply
async def bomb(out: Writer, asked: Asked) -> bool:
    """Little that becomes much once it is unpacked."""
    kind = asked.rng.choice(("gzip", "deflate"))
    plain = asked.rng.choice((b"data: ", b"data: x\n\n", b": x\n"))
    await out.head(content_encoding=kind)
    for piece in _packed(kind, plain):
        await out.chunk(piece)
    return False


@_reply
async def packed_failure(out: Writer, asked: Asked) -> bool:
    """The same as an error."""
    await out.head("500 No", content_type="application/json", content_encoding="gzip")
    for _ in range(100):
        for piece in _packed("gzip", b"x"):
            await out.chunk(piece)
    return False


@cache
def _packed(kind: str, plain: bytes) -> tuple[bytes, ...]:
    packed = zlib.compressobj(9, wbits=31 if kind == "gzip" else 15)
    pieces = (packed.compress(plain + bytes(1_000_000)) + packed.flush(zlib.Z_SYNC_FLUSH) for _ in range(100))
    whole = b"".join(pieces)
    return tuple(whole[at : at + 65_536] for at in range(0, len(whole), 65_536))


@_reply
async def wrong_encoding(out: Writer, asked: Asked) -> bool:
    await out.head(content_encoding=asked.rng.choice(("gzip", "deflate", "br", "zstd", "x", "gzip, gzip", "identity")))
    await out.chunk(asked.rng.choice((b"not packed", gzip.compress(b"data: [DONE]\n\n"), b"")) + b"\0")
    return False


@_reply
async def endless_failure(out: Writer, asked: Asked) -> bool:
    """An error whose text does not end."""
    await out.head(asked.rng.choice(("400 No", "500 No", "429 No")), content_type="application/json")
    while True:
        await out.chunk(b'{"error": {"message": "' + b"x" * 100_000)


@_reply
async def odd_failure(out: Writer, asked: Asked) -> bool:
    rng = asked.rng
    levels = rng.choice((300, 900, 970, 985, 995, 100_000))
    inner: Any = rng.choice(
        (None, 0, "", "x\x00y", [], {}, {"code": 10**30}, {"code": "٣٣٣"}, {"message": {"a": 1}}, "<html>")
    )
    body = rng.choice(
        (
            json.dumps({"error": inner}),
            '{"error":' * levels + "1" + "}" * levels,
            "[" * levels,
            "",
            "\ufeff",
            "null",
            "[]",
        )
    )
    wait = rng.choice(("1e300", "-1", "nan", "inf", "9" * 400, "x", "", "99999999999", "Sun, 06 Nov 9999 08:49:37 GMT"))
    status = rng.choice((400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 500, 503, 529, 599))
    await out.failure(status, body, retry_after=wait, x_should_retry=rng.choice(("", "true", "false", "x")))
    return True


@_reply
async def odd_status(out: Writer, asked: Asked) -> bool:
    rng = asked.rng
    line = rng.choice(
        (
            "200",
            "204 No Content",
            "304 Not Modified",
            "206 Part",
            "100 Continue",
            "101 Switch",
            "999 Odd",
            "0 Zero",
            "-1 x",
            "x",
        )
    )
    await out.head(
        line, content_type=rng.choice(("text/event-stream", "text/html", "", "text/event-stream; charset=\x7f"))
    )
    return False


@_reply
async def redirect(out: Writer, asked: Asked) -> bool:
    where = asked.rng.choice(
        ("/v1/chat/completions", "http://127.0.0.1:1/", "file:///etc/passwd", "//", "", "http://[::1", "\t")
    )
    await out.failure(asked.rng.choice((301, 302, 307, 308)), "", location=where)
    return True


@_reply
async def no_http(out: Writer, asked: Asked) -> bool:
    await out.raw(
        asked.rng.choice(
            (b"\0" * 100, b"SSH-2.0-x\r\n", b"HTTP/9.9 200\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"")
        )
    )
    return False


@_reply
async def odd_chunks(out: Writer, asked: Asked) -> bool:
    await out.head()
    await out.raw(
        asked.rng.choice(
            (b"zz\r\nx\r\n", b"-1\r\n\r\n", b"ffffffffffffffff\r\nx", b"5;" + b"e" * 100_000, b"5\r\nab\r\n0\r\n\r\n")
        )
    )
    return False


@_reply
async def odd_lengths(out: Writer, asked: Asked) -> bool:
    length = asked.rng.choice(("-1", "0", "99999999999999999999", "5, 6", "x", "3"))
    await out.head(transfer_encoding=asked.rng.choice(("", "chunked", "gzip, chunked")), content_length=length)
    await out.raw(b"data: [DONE]\n\n")
    return False
