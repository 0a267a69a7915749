"""Sends bytes to any RPC, judges the end of the call, and says how to repeat it."""

from __future__ import annotations

import asyncio
import shlex
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from tests.fuzz.methods import Method
from tests.fuzz.oracle import OK, Answer, judged

_SECONDS = 3.0
"""How long a call may wait; what waits longer is left by the client."""
_READ = 40
"""So many messages of a stream are read."""
_SHOWN = 4_000


@dataclass(frozen=True)
class Sent:
    """One request. `case` is its number: with the seed it makes the request again."""

    case: int
    method: Method
    data: bytes

    def told(self) -> str:
        """How to repeat it."""
        lines = [f"case {self.case} {self.method.full_name}, {len(self.data)} bytes: {self.data[:_SHOWN].hex()}"]
        try:
            shown = json_format.MessageToJson(self.method.request.FromString(self.data), indent=None)
        except (DecodeError, json_format.Error, ValueError, RecursionError):
            lines.append("no message: only a raw client can send it")
        else:
            if len(shown) <= _SHOWN:
                lines.append(f"grpcurl -plaintext -d {shlex.quote(shown)} TARGET {self.method.full_name}")
            else:
                lines.append(f"as JSON {len(shown)} characters: {shown[:500]}")
        return "\n    ".join(lines)


@dataclass
class Journal:
    """What was found, and counts of what happened. `flying` are requests that are not answered yet."""

    findings: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    flying: dict[int, Sent] = field(default_factory=dict)

    def find(self, what: str, sent: Sent | None = None) -> None:
        """Notes a finding."""
        self.findings.append(what if sent is None else f"{what}\n    {sent.told()}")


class Caller:
    """A connection on which requests are sent as they are."""

    def __init__(self, channel: grpc.aio.Channel, journal: Journal) -> None:
        self._channel = channel
        self._journal = journal

    async def send(
        self, case: int, method: Method, data: bytes, *, seconds: float = _SECONDS
    ) -> tuple[Answer, list[Message]]:
        """The end of the call, and what came before it. What is wrong goes to the journal."""
        sent = Sent(case, method, data)
        key = id(sent)
        self._journal.flying[key] = sent
        received: list[Message] = []
        try:
            answer = await self._answer(method, data, seconds, received)
        finally:
            del self._journal.flying[key]
        self._journal.counts[f"{method.name} {answer.code}"] += 1
        if answer.wrong:
            self._journal.find(answer.wrong, sent)
        return answer, received

    async def _answer(self, method: Method, data: bytes, seconds: float, received: list[Message]) -> Answer:
        make: Any = self._channel.unary_stream if method.streams else self._channel.unary_unary
        call = make(method.path, request_serializer=bytes, response_deserializer=method.response.FromString)
        try:
            if not method.streams:
                received.append(await call(data, timeout=seconds))
                return OK
            stream = call(data, timeout=seconds)
            async for message in stream:
                received.append(message)
                if len(received) >= _READ or "synced" in str(message)[:20]:
                    stream.cancel()
                    return OK
        except grpc.aio.AioRpcError as error:
            return judged(error)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
        return OK


@asynccontextmanager
async def calling(target: str, journal: Journal) -> AsyncIterator[Caller]:
    """A caller on a connection of its own."""
    options = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
    ]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        yield Caller(channel, journal)
