"""The Python client on a network that cuts, loses, delays and holds back: nothing is lost or happens twice."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from agentrpc.v1 import events_pb2

from agent_service.client import (
    AgentClient,
    DeadlineError,
    Event,
    Restarted,
    Retry,
    RunResult,
    RunStream,
    TextDelta,
    ToolArgumentsDelta,
    ToolCall,
    UnavailableError,
    client_tool,
)
from tests.process import API_KEY, environment, lease, running
from tests.proxy import Proxy, proxied
from tests.scripted_openai import Gate, ScriptedOpenAI, calls, says
from tests.service import Client, durable, event_kinds, scripted

pytestmark = pytest.mark.anyio

QUICK = Retry(attempts=100, first=0.005, most=0.02)
PATIENT = Retry(attempts=1000, first=0.02, most=0.1)
NAMES = ("Alice", "Bob", "Carol")
SCRIPT = [
    calls(*(("get_code", {"name": name}) for name in NAMES), text="I look."),
    calls(("get_code", {"name": "Dave"})),
    says(["The codes", " are: ä", "😀 and", " more."]),
]


@dataclass
class Tool:
    """A tool that counts its executions by call."""

    executed: Counter[str] = field(default_factory=Counter)
    before: Callable[[], Any] = lambda: None

    async def get_code(self, name: str, call: ToolCall) -> str:
        """Returns a code."""
        self.executed[call.tool_call_id] += 1
        self.before()
        return f"code of {name}"


@asynccontextmanager
async def behind(script: Any, store: str, **settings: Any) -> AsyncIterator[tuple[AgentClient, Proxy, Client]]:
    """A client whose way to the service leads through a proxy, and stubs that go straight there."""
    async with (
        scripted(script, store, **settings) as (direct, _),
        proxied(direct.target) as proxy,
        AgentClient(proxy.address, retry=QUICK) as client,
    ):
        yield client, proxy, direct


async def seen(stream: RunStream) -> list[Event]:
    """All events of a stream."""
    async with asyncio.timeout(30):
        return [event async for event in stream]


def raw(events: list[Event]) -> list[events_pb2.RunEvent]:
    """Those of the contract."""
    return [event.raw for event in events]


async def check(events: list[Event], result: RunResult, direct: Client) -> None:
    """What was seen is the log, once and in order, and the deltas of a message join to it."""
    assert durable(raw(events)) == durable(await direct.watch(result.run_id))
    folded: dict[tuple[str, int], str] = {}
    for event in events:
        if isinstance(event, TextDelta | ToolArgumentsDelta):
            key = (event.message_id, event.index if isinstance(event, ToolArgumentsDelta) else 0)
            assert event.offset == len(folded.get(key, ""))
            folded[key] = folded.get(key, "") + event.text
    whole = {(m.message_id, 0): m.assistant.text for m in result.messages if m.HasField("assistant")}
    for message in result.messages:
        for index, call in enumerate(message.tool_call.tool_calls):
            whole[message.message_id, index] = call.arguments_json
    assert folded == whole
    assert list(result.messages) == await direct.messages(result.conversation_id)


async def total_bytes(store: str) -> int:
    """The bytes that a client gets in an undisturbed run."""
    tool = Tool()
    async with behind(SCRIPT, store) as (client, proxy, _):
        await seen(client.stream("Codes?", tools=[tool.get_code]))
        return proxy.answered_bytes


async def test_a_run_through_cuts_at_any_place_is_seen_as_it_is_stored(store: str) -> None:
    """Wherever the connection is cut, before the headers or in the middle of anything: the events are those of the log,
    deltas join to the messages, each call is executed once and each of its model requests is made once."""
    total = await total_bytes(store)
    places = [0, 1, 9, 20, *range(40, total, max(1, total // 12))]
    chance = random.Random(11)
    several = [[chance.randrange(total // 2) for _ in range(6)] for _ in range(8)]
    for budgets in [*([place] for place in places), *several]:
        tool = Tool()
        async with (
            scripted(SCRIPT, store) as (direct, upstream),
            proxied(direct.target, budgets) as proxy,
            AgentClient(proxy.address, retry=QUICK) as client,
        ):
            stream = client.stream("Codes?", tools=[tool.get_code])
            events = await seen(stream)
            await check(events, stream.result, direct)
            assert stream.result.text == "The codes are: ä😀 and more.", budgets
            assert sorted(tool.executed.values()) == [1, 1, 1, 1], budgets
            assert len(upstream.requests) == 3
            assert proxy.connections > 1 or budgets[0] >= total // 2


async def test_a_slow_network_changes_nothing() -> None:
    """Each piece of data comes late."""
    tool = Tool()
    async with behind(SCRIPT, "memory") as (client, proxy, direct):
        proxy.delay = 0.01
        stream = client.stream("Codes?", tools=[tool.get_code])
        await check(await seen(stream), stream.result, direct)


async def accepted(direct: Client, run_id: str) -> None:
    """Returns once the service has taken a submit of the run."""
    async for response in direct.watching(run_id):
        if response.event.HasField("tool_returns_accepted"):
            return


async def test_a_submit_whose_answer_is_lost_is_repeated_as_the_same(store: str) -> None:
    """The service has taken it and the client does not know: it sends the same request_id and gets the same receipt."""
    async with behind([calls(("get_code", {"name": "Alice"})), says("Done.")], store) as (client, proxy, direct):
        called = asyncio.Event()

        def lose() -> None:
            proxy.lost_answers = True
            called.set()

        tool = Tool(before=lose)
        stream = client.stream("Code?", tools=[tool.get_code])
        reading = asyncio.create_task(seen(stream))
        await called.wait()
        await accepted(direct, stream.run_id)
        proxy.lost_answers = False
        proxy.cut()
        events = await reading
        await check(events, stream.result, direct)
        assert event_kinds(raw(events)).count("tool_returns_accepted") == 1
        assert sum(tool.executed.values()) == 1
        assert stream.result.text == "Done."


async def test_a_submit_that_arrives_late_beside_its_repeat_counts_once(store: str) -> None:
    """A network holds a request back, the client repeats it on another connection, and then the first one arrives."""
    script = [calls(("get_code", {"name": "Alice"})), says("Done.")]
    async with behind(script, store) as (client, proxy, direct):
        tool = Tool(before=lambda: setattr(proxy, "held_requests", True))
        stream = client.stream("Code?", tools=[tool.get_code])
        reading = asyncio.create_task(seen(stream))
        await proxy.holding.wait()
        proxy.held_requests = False
        proxy.cut(service=False)
        events = await reading
        proxy.release()
        await check(events, stream.result, direct)
        assert event_kinds(await direct.watch(stream.run_id)).count("tool_returns_accepted") == 1


@pytest.mark.parametrize("when", ["connect", "answer"])
async def test_a_deadline_is_kept_in_a_black_hole(when: str) -> None:
    """Neither a connection nor an answer comes; the call ends when it has to, and names the run."""
    async with behind([says("Unheard.")] if when == "connect" else SCRIPT, "memory") as (client, proxy, _):
        tool = Tool(before=lambda: setattr(proxy, "black_hole", True))
        proxy.black_hole = when == "connect"
        began = time.monotonic()
        with pytest.raises(DeadlineError) as caught:
            await client.run("Codes?", tools=[tool.get_code], run_id="run_b", timeout=0.5)
        assert 0.4 < time.monotonic() - began < 3
        assert caught.value.run_id == "run_b"
        assert isinstance(caught.value, TimeoutError)
        proxy.cut()


async def test_attempts_are_bounded() -> None:
    """Without a service, the call ends with the last error."""
    async with proxied("127.0.0.1:1") as proxy:
        proxy.refused = True
        async with AgentClient(proxy.address, retry=Retry(attempts=3, first=0.001, most=0.002)) as client:
            with pytest.raises(UnavailableError) as caught:
                await client.run("Hi")
    assert caught.value.code == "UNAVAILABLE"
    assert caught.value.reason == ""


async def test_a_service_that_is_killed_and_started_again_goes_on(tmp_path: Path, shared_store: str) -> None:
    """Killed while a tool is executed here: its return reaches the next process, and the run ends there."""
    flags = ("--store", shared_store)
    script = [calls(("get_code", {"name": "Alice"})), says(["Do", "ne."])]
    async with ScriptedOpenAI(script, api_key=API_KEY) as upstream:
        env = environment(upstream, **lease(shared_store))
        started, go_on = asyncio.Event(), asyncio.Event()
        executed: Counter[str] = Counter()

        @client_tool
        async def get_code(name: str, call: ToolCall) -> str:
            """Returns a code."""
            executed[call.tool_call_id] += 1
            started.set()
            await go_on.wait()
            return name

        async with (
            running(tmp_path, env, *flags) as (server, _),
            proxied(server.target) as proxy,
            AgentClient(proxy.address, retry=PATIENT) as client,
        ):
            stream = client.stream("Code?", tools=[get_code])
            reading = asyncio.create_task(seen(stream))
            await started.wait()
            proxy.refused = True
            await server.kill()
            async with running(tmp_path, env, *flags) as (second, direct):
                proxy.target, proxy.refused = second.target, False
                go_on.set()
                events = await reading
                await check(events, stream.result, direct)
                assert stream.result.text == "Done."
                assert list(executed.values()) == [1]


async def test_a_service_that_is_killed_while_the_model_writes_goes_on(tmp_path: Path, shared_store: str) -> None:
    """What was told of the broken answer is dropped, and the whole one is told."""
    flags = ("--store", shared_store)
    gate = Gate()
    async with ScriptedOpenAI([says(["Lo", "st."], gate=gate), says(["Fo", "und."])], api_key=API_KEY) as upstream:
        env = environment(upstream, **lease(shared_store))
        async with (
            running(tmp_path, env, *flags) as (server, _),
            proxied(server.target) as proxy,
            AgentClient(proxy.address, retry=PATIENT) as client,
        ):
            stream = client.stream("Hi")
            events: list[Event] = []
            gate.release()
            async for event in stream:
                events.append(event)
                if isinstance(event, TextDelta):
                    break
            proxy.refused = True
            await server.kill()
            async with running(tmp_path, env, *flags) as (second, direct):
                proxy.target, proxy.refused = second.target, False
                events += await seen(stream)
                (dropped,) = (event.dropped for event in events if isinstance(event, Restarted))
                assert dropped == tuple(e.message_id for e in events if isinstance(e, TextDelta) and e.text == "Lo")
                assert durable(raw(events)) == durable(await direct.watch(stream.run_id))
                (answer,) = (m.message_id for m in stream.result.messages if m.HasField("assistant"))
                told = [e.text for e in events if isinstance(e, TextDelta) and e.message_id == answer]
                assert "".join(told) == stream.result.text == "Found."
            gate.open()
