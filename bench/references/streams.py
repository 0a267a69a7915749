"""AgentService.Stream, as cheap as it can be and as it is usually written.

bare: the messages are ready beforehand. socket: tokens are read from a bare connection to the model endpoint. durable:
the same, once the request is stored and flushed. sdk: they are those that `chat.completions.create(stream=True)` of the
openai library yields.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import grpc
import msgspec
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import events_pb2, run_service_pb2, runs_pb2

from bench.references.methods import add_methods

_ID = "msg_0123456789abcdef01234567"


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta


class _Chunk(msgspec.Struct):
    choices: list[_Choice]


_decode = msgspec.json.Decoder(_Chunk).decode


def _event(body: events_pb2.TextDelta | events_pb2.ReasoningDelta | events_pb2.RunStopped) -> pb.StreamResponse:
    """A message of the length that the service's have."""
    event = events_pb2.RunEvent(run_id="run_0123456789abcdef01234567", sequence=3, step_id="step_0123456789abcdef")
    event.create_time.FromNanoseconds(1_790_000_000_123_456_789)
    match body:
        case events_pb2.TextDelta():
            event.text_delta.CopyFrom(body)
        case events_pb2.ReasoningDelta():
            event.reasoning_delta.CopyFrom(body)
        case _:
            event.run_stopped.CopyFrom(body)
    return pb.StreamResponse(event=event)


def _text(text: str, offset: int) -> pb.StreamResponse:
    return _event(events_pb2.TextDelta(message_id=_ID, offset=offset, text=text, attempt=1))


def _thought(text: str, offset: int) -> pb.StreamResponse:
    return _event(events_pb2.ReasoningDelta(message_id=_ID, offset=offset, text=text, attempt=1))


def _stopped() -> pb.StreamResponse:
    return _event(events_pb2.RunStopped(status=runs_pb2.RUN_STATUS_COMPLETED, final=True))


class _Offsets:
    """Makes the messages of one answer."""

    def __init__(self) -> None:
        self._text = self._thought = 0

    def message(self, text: str | None, thought: str | None) -> pb.StreamResponse | None:
        """Of a token; none of a chunk without one."""
        if text:
            self._text += len(text)
            return _text(text, self._text - len(text))
        if thought:
            self._thought += len(thought)
            return _thought(thought, self._thought - len(thought))
        return None


def _messages(request: pb.StreamRequest) -> list[dict[str, str]]:
    return [{"role": "user", "content": message.text} for message in request.step.input_messages]


class Bare:
    """Sends so many messages, made beforehand; the first call for so many makes them. Its watchers see nothing."""

    async def WatchRun(self, request: Any, context: Any) -> AsyncIterator[run_service_pb2.WatchRunResponse]:
        """See RunService."""
        yield run_service_pb2.WatchRunResponse(event=events_pb2.RunEvent(live=events_pb2.Live()))
        await asyncio.Event().wait()

    async def Stream(self, request: pb.StreamRequest, context: Any) -> AsyncIterator[pb.StreamResponse]:
        """See AgentService."""
        for message in self._made(request.step.model):
            yield message
        yield _stopped()

    @staticmethod
    @lru_cache
    def _made(model: str) -> list[pb.StreamResponse]:
        kind, _, tokens = model.partition(":")
        offsets = _Offsets()
        made = [
            offsets.message(None, "word ") if kind == "mixed" and number % 2 else offsets.message("word ", None)
            for number in range(int(tokens))
        ]
        return [message for message in made if message is not None]


class Socket:
    """Reads the answer from a connection of its own, line by line, and sends a message for each token."""

    def __init__(self, base_url: str, db: sqlite3.Connection | None = None) -> None:
        self._url = urlsplit(base_url)
        self._db = db

    async def Stream(self, request: pb.StreamRequest, context: Any) -> AsyncIterator[pb.StreamResponse]:
        """See AgentService."""
        if self._db is not None:
            self._db.execute("INSERT INTO requests VALUES (?)", (request.SerializeToString(),))
        reader, writer = await asyncio.open_connection(self._url.hostname, self._url.port)
        try:
            body = json.dumps({"model": request.step.model, "messages": _messages(request), "stream": True}).encode()
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%b"
                % (len(body), body)
            )
            offsets = _Offsets()
            while (line := await reader.readline()) != b"data: [DONE]\n":
                if line.startswith(b"data: "):
                    delta = _decode(line[6:]).choices[0].delta
                    message = offsets.message(delta.content, delta.reasoning_content)
                    if message is not None:
                        yield message
            yield _stopped()
        finally:
            writer.close()


class Sdk:
    """Iterates the chunks of the openai library, as its documentation shows it."""

    def __init__(self, base_url: str) -> None:
        from openai import AsyncOpenAI

        self._client = AsyncOpenAI(base_url=base_url, api_key="none")

    async def Stream(self, request: pb.StreamRequest, context: Any) -> AsyncIterator[pb.StreamResponse]:
        """See AgentService."""
        messages: Any = _messages(request)
        stream = await self._client.chat.completions.create(model=request.step.model, messages=messages, stream=True)
        offsets = _Offsets()
        async for chunk in stream:
            delta = chunk.choices[0].delta
            message = offsets.message(delta.content, getattr(delta, "reasoning_content", None))
            if message is not None:
                yield message
        yield _stopped()


def _store() -> sqlite3.Connection:
    db = sqlite3.connect("requests.sqlite3", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE requests (body BLOB)")
    return db


async def add(server: grpc.aio.Server, name: str, base_url: str) -> None:
    """Adds the service of this name."""
    made: dict[str, Callable[[], Bare | Socket | Sdk]] = {
        "bare": Bare,
        "socket": lambda: Socket(base_url),
        "durable": lambda: Socket(base_url, _store()),
        "sdk": lambda: Sdk(base_url),
    }
    servicer = made[name]()
    add_methods(server, "AgentService", Stream=servicer.Stream)
    if isinstance(servicer, Bare):
        add_methods(server, "RunService", WatchRun=servicer.WatchRun)
