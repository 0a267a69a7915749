"""Callers that go on through an outage of the store, repeating what was not answered, and what they were promised."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import grpc
from agentrpc.v1 import agent_service_pb2, events_pb2, runs_pb2

from tests.scripted_openai import Gate, Reply, Request, calls, gated, says
from tests.scripted_openai.tallies import Tally
from tests.service import SECRET, Client, Refusal, durable, refusal_of, returned

T = TypeVar("T")

COMPLETED, PAUSED = runs_pb2.RUN_STATUS_COMPLETED, runs_pb2.RUN_STATUS_PAUSED
ASKS = calls(("get_secret_code", {"name": "Alice"}))
_SECONDS = 30.0
_PAUSE = 0.02


def is_unavailable(refused: Refusal) -> bool:
    """Whether the caller was told that the store is unavailable, and when to repeat the call."""
    told = (refused.code, refused.reason, (refused.retry_seconds or 0) > 0)
    return told == ("UNAVAILABLE", "STORE_UNAVAILABLE", True)


def script(gate: Gate | None = None) -> Callable[[Request], Reply]:
    """Repeats what it is told. For 'ask' it calls the tool first, and to 'slow' its answer waits for the gate."""

    def reply(request: Request) -> Reply:
        said = request.history[0]["content"]
        if said.startswith("ask") and not request.returns:
            return ASKS
        answer = says(f"You said: {said}")
        return gated(answer, gate) if gate is not None and said.startswith("slow") else answer

    return reply


async def until(happens: Callable[[], Awaitable[object]], otherwise: str) -> None:
    """Asks again and again, for as long as a test may take."""
    for _ in range(int(_SECONDS / _PAUSE)):
        if await happens():
            return
        await asyncio.sleep(_PAUSE)
    raise AssertionError(otherwise)


class Callers:
    """Each call of theirs is made until it is answered; no answer but UNAVAILABLE may come between."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.refused = Tally("calls refused")
        self.answered = Tally("calls answered")
        self.kept: dict[str, agent_service_pb2.StepResponse] = {}
        self.receipts: dict[str, agent_service_pb2.SubmitToolReturnsResponse] = {}
        self._going_on = True

    async def insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """The answer, in the end."""
        async with asyncio.timeout(_SECONDS):
            while True:
                try:
                    return await call()
                except grpc.aio.AioRpcError as error:
                    refused = refusal_of(error)
                    assert is_unavailable(refused), refused
                    self.refused.add()
                    await asyncio.sleep(_PAUSE)

    @asynccontextmanager
    async def at_work(self, number: int) -> AsyncIterator[None]:
        """So many of them, until the end of the block; then each finishes what it has begun. One more only reads."""
        working = [asyncio.create_task(self._work(name)) for name in range(number)]
        working.append(asyncio.create_task(self._read()))
        try:
            yield
        finally:
            self._going_on = False
            await asyncio.gather(*working)

    async def _work(self, name: int) -> None:
        done = 0
        while self._going_on:
            done += 1
            run_id = f"run-{name}-{done}"
            text = f"ask {run_id}" if done % 2 else f"tell {run_id}"
            self.kept[run_id] = await self.ask(text, run_id)
            if done % 2:
                await self.answer(run_id)
            self.answered.add()

    async def _read(self) -> None:
        while self._going_on:
            await self.insist(self.client.list_runs)
            await asyncio.sleep(_PAUSE)

    async def ask(self, text: str, run_id: str) -> agent_service_pb2.StepResponse:
        """Starts the run, or joins it."""
        return await self.insist(lambda: self.client.ask(text, SECRET, run_id=run_id))

    async def answer(self, run_id: str) -> None:
        """Answers the call for which the run waits."""
        (call,) = self.kept[run_id].run.pending_tool_calls
        answer = returned(call, f"code of {run_id}")
        self.receipts[run_id] = await self.insist(
            lambda: self.client.answer(run_id, answer, request_id=f"answer-{run_id}")
        )

    async def check(self, client: Client) -> None:
        """Nothing that was acknowledged is lost: it is there, once, and told again to those who repeat it."""
        for run_id, first in self.kept.items():
            run = await client.run(run_id)
            wanted = PAUSED if run_id not in self.receipts and first.run.pending_tool_calls else COMPLETED
            assert run.status == wanted
            messages = {message.message_id: message for message in await client.messages(run.conversation_id)}
            for message in first.messages:
                assert messages[message.message_id] == message
            again = await self.ask(first.messages[0].user.text, run_id)
            assert [m.message_id for m in again.messages] == [m.message_id for m in first.messages]
        for run_id, first_receipt in self.receipts.items():
            (call,) = self.kept[run_id].run.pending_tool_calls
            again_receipt = await client.answer(
                run_id, returned(call, f"code of {run_id}"), request_id=f"answer-{run_id}"
            )
            assert again_receipt.receipt == first_receipt.receipt


class Watcher:
    """Follows a run to its end, attaching again whenever the stream is cut."""

    def __init__(self, client: Client, run_id: str) -> None:
        self.live = asyncio.Event()
        self.events: list[events_pb2.RunEvent] = []
        self._client = client
        self._run_id = run_id
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while not (self.events and self.events[-1].run_stopped.final):
            after = self.events[-1].sequence if self.events else 0
            try:
                async for response in self._client.watching(self._run_id, after):
                    self.events.append(response.event)
                    if response.event.HasField("live"):
                        self.live.set()
            except grpc.aio.AioRpcError as error:
                refused = refusal_of(error)
                assert is_unavailable(refused), refused
                await asyncio.sleep(_PAUSE)

    async def ended(self) -> list[bytes]:
        """The durable events, once the run is over."""
        await asyncio.wait_for(self._watching, _SECONDS)
        return durable(self.events)
