"""What callers do with a server, through the contract: streams that count tokens, rounds with a pause, turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import runs_pb2

from bench.processes import Process
from bench.upstream import TOKEN
from tests.service import SECRET, Client, returned, step

MESSAGE = "Which of these should I read first, and how long would that take? " * 2
"""What users say, where it does not matter."""


class Answers:
    """Counts what streams bring."""

    def __init__(self) -> None:
        self.tokens = 0
        self._wanted = 0
        self._reached = asyncio.Event()

    async def reach(self, tokens: int) -> None:
        """Returns when there are so many."""
        self._wanted = tokens
        self._count(0)
        await self._reached.wait()

    async def read(self, client: Client, model: str, pause: float = 0.0) -> float:
        """Reads one answer to its end; seconds to its first token. Rests `pause` seconds after each message."""
        asked = step(MESSAGE, model=model, on_disconnect=pb.ON_DISCONNECT_CANCEL)
        request = pb.StreamRequest(step=asked, stream_tokens=True)
        began, first, last = time.perf_counter(), 0.0, None
        async for response in client.agent.Stream(request):
            last = response.event
            kind = last.WhichOneof("payload")
            if kind in ("text_delta", "reasoning_delta"):
                first = first or time.perf_counter() - began
                self._count(len(getattr(last, kind).text) // len(TOKEN))
                if pause:
                    await asyncio.sleep(pause)
        assert last is not None
        assert last.run_stopped.status == runs_pb2.RUN_STATUS_COMPLETED, last
        return first

    def _count(self, tokens: int) -> None:
        self.tokens += tokens
        if self.tokens >= self._wanted:
            self._reached.set()


async def one_round(client: Client) -> None:
    """Ask, pause for a client tool, answer, recall, list: three model calls."""
    asked = await client.ask("Ask the tool for the code of Alice.", SECRET, model="tool")
    (call,) = asked.run.pending_tool_calls
    answered = await client.answer(asked.run.run_id, returned(call, "SECRET-4711"))
    assert answered.run.status == runs_pb2.RUN_STATUS_COMPLETED, answered.run
    told = await client.ask("Which code was it?", conversation_id=asked.run.conversation_id, model="tool")
    assert told.run.status == runs_pb2.RUN_STATUS_COMPLETED, told.run
    assert len(await client.messages(asked.run.conversation_id)) >= 5


async def turn(client: Client, conversation_id: str) -> str:
    """One more question and its answer; the conversation."""
    asked = await client.ask(MESSAGE, conversation_id=conversation_id, model="tool")
    assert asked.run.status == runs_pb2.RUN_STATUS_COMPLETED, asked.run
    return str(asked.run.conversation_id)


@dataclass(frozen=True)
class Spent:
    """Of a server: seconds of CPU time, and of the clock."""

    cpu: float
    wall: float


async def spent(server: Process, work: Awaitable[Any]) -> Spent:
    """What a server needs for some work."""
    cpu, wall = server.cpu, time.perf_counter()
    await work
    return Spent(server.cpu - cpu, time.perf_counter() - wall)


async def together(callers: int, times: int, work: Callable[[], Awaitable[Any]]) -> None:
    """So many callers at once, each so many times."""

    async def caller() -> None:
        for _ in range(times):
            await work()

    await asyncio.gather(*(caller() for _ in range(callers)))
