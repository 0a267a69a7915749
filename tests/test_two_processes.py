"""Two server processes on one store: each knows what the other does, and of each race one wins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from agentrpc.v1 import agent_registry_service_pb2 as registry_pb
from agentrpc.v1 import events_pb2, run_service_pb2, runs_pb2

from tests.host_clocks import REPLICAS
from tests.process import API_KEY, environment, running
from tests.scripted_openai import Gate, Request, ScriptedOpenAI, calls, says, silent
from tests.service import SECRET, Client, durable, returned
from tests.tool_desk import Desk

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("clocks"), REPLICAS]

PROMPT = 1.0
"""The longest, in seconds, that news take to the other process."""
NAMES = ("Alice", "Bob", "Carol")
CALLS = calls(*(("get_secret_code", {"name": name}) for name in NAMES))


@asynccontextmanager
async def pair(folder: Path, store: str, script: Any) -> AsyncIterator[tuple[ScriptedOpenAI, Desk, Any, Any]]:
    """A model endpoint, a desk for server tools, and two servers with their clients."""
    flags = ("--store", store)
    async with ScriptedOpenAI(script, api_key=API_KEY) as upstream, Desk() as desk:
        env = environment(upstream, **desk.environment)
        async with running(folder, env, *flags) as a, running(folder, env, *flags) as b:
            yield upstream, desk, a, b
            for server, _ in (a, b):
                assert [line for line in server.log if line["level"] == "error"] == []


class Watcher:
    """Watches a run from its start, with tokens where there are any, and keeps when each event came."""

    def __init__(self, client: Client, run_id: str) -> None:
        self.events: list[events_pb2.RunEvent] = []
        self.times: dict[int, float] = {}
        self.live = asyncio.Event()
        request = run_service_pb2.WatchRunRequest(run_id=run_id, stream_tokens=True)
        self._reading = asyncio.ensure_future(self._read(client, request))

    async def _read(self, client: Client, request: run_service_pb2.WatchRunRequest) -> None:
        async for response in client.runs.WatchRun(request):
            self.events.append(response.event)
            self.times.setdefault(response.event.sequence, asyncio.get_running_loop().time())
            if response.event.HasField("live"):
                self.live.set()

    @property
    def deltas(self) -> bool:
        """Whether it was told that deltas come."""
        return [event.live.deltas for event in self.events if event.HasField("live")] == [True]

    async def attached(self) -> None:
        """Returns once it has read what was there before."""
        await asyncio.wait_for(self.live.wait(), 10)

    async def ended(self) -> events_pb2.RunEvent:
        """The last event."""
        await asyncio.wait_for(self._reading, 10)
        return self.events[-1]


async def test_a_background_run_is_answered_from_the_inbox_of_another_process(
    tmp_path: Path, shared_store: str
) -> None:
    """Started at one, listed and answered at the other, and watched from its beginning at the first, while nobody waits
    for it."""
    async with pair(tmp_path, shared_store, [CALLS, says("Done.")]) as (upstream, _, (_, here), (_, there)):
        run = (await here.ask("Codes?", SECRET, background=True)).run
        watcher = Watcher(here, run.run_id)
        while len(found := (await there.waiting(agent_id="default")).calls) < len(NAMES):
            pass
        assert {call.run_id for call in found} == {run.run_id}
        await there.answer(run.run_id, *(returned(call.call, "A-1") for call in found), background=True)
        assert (await watcher.ended()).run_stopped.status == runs_pb2.RUN_STATUS_COMPLETED
        assert durable(watcher.events) == durable(await there.watch(run.run_id))
        upstream.check_histories()


async def test_a_conversation_made_anew_has_nothing_of_the_one_before(tmp_path: Path, shared_store: str) -> None:
    """Also at a process that knows the earlier one by heart, and was not told that another one deleted it."""
    async with pair(tmp_path, shared_store, [says("One."), says("Two."), says("Three.")]) as (
        upstream,
        _,
        (_, here),
        (_, there),
    ):
        for client in (here, there, here):
            await client.registry.CreateConversation(registry_pb.CreateConversationRequest(conversation_id="conv-1"))
            await client.ask("Hi", conversation_id="conv-1")
            assert [message["content"] for message in upstream.requests[-1].messages[1:]] == ["Hi"]
            await there.registry.DeleteConversation(registry_pb.DeleteConversationRequest(conversation_id="conv-1"))


async def test_a_watcher_at_another_process_gets_every_durable_event_promptly(
    tmp_path: Path, shared_store: str
) -> None:
    """It is told that it gets no deltas, and then the same durable events as a watcher at the owner, within a second
    each, over model calls, tools and a pause that is answered through either process.
    """
    gate = Gate()
    replies = [
        says("Slow.", chunks=2, gate=gate),
        calls(("look_up", {"name": "Alice"})),
        calls(("get_secret_code", {"name": "Bob"})),
        says("Done."),
    ]
    async with pair(tmp_path, shared_store, replies) as (upstream, desk, (_, at_a), (_, at_b)):
        await at_a.ask("Hi", run_id="slow", background=True)
        here, there = Watcher(at_a, "slow"), Watcher(at_b, "slow")
        await asyncio.gather(here.attached(), there.attached())
        assert (here.deltas, there.deltas) == (True, False)
        gate.open()
        for watcher in (here, there):
            assert (await watcher.ended()).run_stopped.status == runs_pb2.RUN_STATUS_COMPLETED
        _same_and_prompt(here, there)

        await at_a.ask("Hi", SECRET, run_id="long", background=True)
        execution = await desk.execution()
        here, there = Watcher(at_a, "long"), Watcher(at_b, "long")
        await asyncio.gather(here.attached(), there.attached())
        execution.answer("7")
        stop = (await at_b.watch("long", stop_at="STOP_AT_NEXT_STOP"))[-1].run_stopped
        await at_b.answer("long", returned(stop.remaining[0], "B-1"))
        await asyncio.gather(here.ended(), there.ended())
        _same_and_prompt(here, there)
        upstream.check_histories()


def _same_and_prompt(one: Watcher, other: Watcher) -> None:
    assert durable(one.events) == durable(other.events)
    late = {n: abs(time - other.times[n]) for n, time in one.times.items()}
    assert max(late.values()) < PROMPT, late


async def test_a_run_is_cancelled_through_any_process(tmp_path: Path, shared_store: str) -> None:
    """Within a second its owner closes the model connection or cancels the tool, and watchers there see the end."""
    replies = [silent("Half", after=1), calls(("look_up", {"name": "Alice"}))]
    async with pair(tmp_path, shared_store, replies) as (upstream, desk, (a, at_a), (_, at_b)):
        await at_a.ask("Hi", run_id="asking", background=True)
        await upstream.wait_for_requests(1)
        await at_a.ask("Hi", run_id="executing", background=True)
        execution = await desk.execution()
        for run_id, given_up in (("asking", upstream.disconnected.wait), ("executing", execution.ended)):
            watcher = Watcher(at_a, run_id)
            await watcher.attached()
            cancelled = await at_b.cancel(run_id)
            assert cancelled.status == runs_pb2.RUN_STATUS_CANCELLED
            async with asyncio.timeout(PROMPT):
                await given_up()
                stopped = (await watcher.ended()).run_stopped
            assert (stopped.final, stopped.status) == (True, runs_pb2.RUN_STATUS_CANCELLED)
            assert await at_a.run(run_id) == await at_b.run(run_id) == cancelled
        taken = [line["run_id"] for line in a.log if line["event"] == "run.taken_away"]
        assert taken == ["asking", "executing"]
        assert (upstream.request_count, desk.count) == (2, 1)


def _asked(request: Request) -> Any:
    """Three calls for a question, and then an answer."""
    return says("Done.") if request.new_returns else CALLS


async def test_of_racing_submits_at_two_processes_each_is_taken_once(
    tmp_path: Path, shared_store: str, races: int
) -> None:
    """Three submits of one call each, and then two equal ones of all calls, all at the same moment: nobody hangs, and
    the model is asked once.
    """
    async with pair(tmp_path, shared_store, _asked) as (upstream, _, (_, at_a), (_, at_b)):
        for number in range(races):
            for equal in (False, True):
                paused = await (at_a, at_b)[number % 2].ask("Codes?", SECRET)
                answers = [returned(call, f"{number}") for call in paused.run.pending_tool_calls]
                shares = [answers] * 2 if equal else [[answer] for answer in answers]
                asked = upstream.request_count
                async with asyncio.timeout(10):
                    submits = [
                        client.answer(paused.run.run_id, *share)
                        for client, share in zip((at_a, at_b, at_a), shares, strict=False)
                    ]
                    got = await asyncio.gather(*submits)
                    events = await at_b.watch(paused.run.run_id)
                assert events[-1].run_stopped.status == runs_pb2.RUN_STATUS_COMPLETED
                assert upstream.request_count == asked + 1
                left = sorted(len(response.receipt.remaining) for response in got)
                assert left == ([0, 0] if equal else [0, 1, 2])
        upstream.check_histories()


async def test_a_run_started_at_two_processes_at_once_is_one_run(tmp_path: Path, shared_store: str, races: int) -> None:
    """Both callers get the same answer, and the model is asked once."""
    async with pair(tmp_path, shared_store, lambda request: says("Hello.")) as (upstream, _, (_, at_a), (_, at_b)):
        for number in range(races):
            async with asyncio.timeout(10):
                one, other = await asyncio.gather(*(c.ask("Hi", run_id=f"run-{number}") for c in (at_a, at_b)))
            assert one == other
            assert one.run.status == runs_pb2.RUN_STATUS_COMPLETED
        assert upstream.request_count == races
