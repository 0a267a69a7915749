"""A model endpoint that costs next to nothing: python -m bench.upstream

Chat Completions over plain HTTP/1.1, one HTTP chunk for each token. The name of the model says what it answers:

    text:200       200 tokens of text at once
    text:200@50    the same, 50 tokens a second, the first at once
    mixed:200      200 tokens at once, by turns of reasoning and of text, so that no two neighbours can be joined
    tool           a call of get_secret_code if the last message is the user's and says "tool"; else a short text, which
                   repeats the last message if that is a tool return

A request with `stream` false gets the same in one piece.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from functools import lru_cache

import msgspec

TOKEN = "word "
"""Every token of text:N and mixed:N."""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_END = b"0\r\n\r\n"
_CALL = {"id": "call_1", "type": "function", "function": {"name": "get_secret_code", "arguments": '{"name":"Alice"}'}}
_USAGE = {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20}


class _Message(msgspec.Struct):
    role: str
    content: msgspec.Raw = msgspec.Raw(b"null")


class _Request(msgspec.Struct):
    model: str
    messages: list[_Message]
    stream: bool = False


_decode = msgspec.json.Decoder(_Request).decode
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Script:
    """What a model answers: `kind`, how many tokens, and how many of them a second (0: all at once)."""

    kind: str
    tokens: int = 0
    rate: float = 0.0


@lru_cache
def script(model: str) -> Script:
    """Read from the name of the model. Raises ValueError."""
    found = re.fullmatch(r"(tool)|(text|mixed):(\d+)(?:@(\d+))?", model)
    if found is None:
        raise ValueError(f"model {model!r} says nothing; see python -m bench.upstream --help")
    return Script(found[1] or found[2], int(found[3] or 0), float(found[4] or 0))


def frame(data: bytes) -> bytes:
    """One event in an HTTP chunk of its own."""
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


def _chunk(delta: dict[str, object], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return frame(_encode({**head, "choices": [choice]}))


_FIRST = _chunk({"role": "assistant", "content": ""})
_LAST = _chunk({}, "stop") + frame(b"[DONE]") + _END


@lru_cache
def pieces(kind: str, tokens: int) -> tuple[bytes, ...]:
    """The tokens of an answer, each as it goes over the line."""
    text, reasoning = _chunk({"content": TOKEN}), _chunk({"reasoning_content": TOKEN})
    return tuple(reasoning if kind == "mixed" and number % 2 else text for number in range(tokens))


@lru_cache
def burst(kind: str, tokens: int) -> bytes:
    """The body of an answer that comes at once."""
    return b"".join((_FIRST, *pieces(kind, tokens), _LAST))


def _reply(request: _Request) -> tuple[dict[str, object], str]:
    """The message that the model "tool" answers with, and why it ends."""
    last = request.messages[-1]
    content = bytes(last.content)
    if last.role == "user" and b"tool" in content:
        return {"role": "assistant", "content": None, "tool_calls": [_CALL]}, "tool_calls"
    said = content[1:40].decode(errors="ignore").strip('"') if last.role == "tool" else "as you said"
    return {"role": "assistant", "content": f"The code is {said}; I shall remember it for you."}, "stop"


class Connection(asyncio.Protocol):
    """One connection, kept alive."""

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(self._received, 0, end + 2)
            whole = end + 4 + (int(found[1]) if found else 0)
            if len(self._received) < whole:
                return
            body, self._received = self._received[end + 4 : whole], self._received[whole:]
            self._answer(_decode(body))

    def _answer(self, request: _Request) -> None:
        wanted = script(request.model)
        if wanted.kind == "tool":
            self._transport.write(_streamed(request) if request.stream else _whole(*_reply(request)))
        elif not request.stream:
            self._transport.write(_whole({"role": "assistant", "content": TOKEN * wanted.tokens}, "stop"))
        elif wanted.rate:
            self._transport.write(_STREAM + _FIRST)
            _Paced(self._transport, pieces(wanted.kind, wanted.tokens), 1 / wanted.rate).next()
        else:
            self._transport.write(_STREAM + burst(wanted.kind, wanted.tokens))


class _Paced:
    """Writes one token after the other, each at its time, however late the one before was."""

    def __init__(self, transport: asyncio.Transport, tokens: tuple[bytes, ...], seconds: float) -> None:
        self._transport = transport
        self._tokens = iter(tokens)
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time()

    def next(self) -> None:
        """Writes a token, or the end."""
        token = next(self._tokens, None)
        if self._transport.is_closing():
            return
        if token is None:
            self._transport.write(_LAST)
            return
        self._transport.write(token)
        self._time += self._seconds
        self._loop.call_at(self._time, self.next)


def _streamed(request: _Request) -> bytes:
    message, finish = _reply(request)
    if finish == "tool_calls":
        middle = _chunk({"tool_calls": [{"index": 0, **_CALL}]})
    else:
        middle = b"".join(_chunk({"content": f"{word} "}) for word in str(message["content"]).split())
    return b"".join((_STREAM, _FIRST, middle, _chunk({}, finish), frame(b"[DONE]"), _END))


def _whole(message: dict[str, object], finish: str) -> bytes:
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "usage": _USAGE}
    body = _encode({**head, "choices": [{"index": 0, "message": message, "finish_reason": finish}]})
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


async def serve() -> None:
    """Serves on a free loopback port, which it prints, until it is ended."""
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=1024)
    host, port = server.sockets[0].getsockname()
    print(f"listening on {host}:{port}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve())
