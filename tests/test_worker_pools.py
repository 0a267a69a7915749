"""What a pool of workers relies on: work that is free is told to all, and what is given out can be done."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import pytest
from agentrpc.v1 import inbox_service_pb2 as inbox_pb
from agentrpc.v1 import runs_pb2, tools_pb2
from google.protobuf.duration_pb2 import Duration

from agent_service.domain.claims import Extended, extend
from agent_service.domain.moves import PlannedCall
from agent_service.domain.registry import CallFilter
from agent_service.domain.tool import OnTimeout
from agent_service.domain.values import replace
from agent_service.engine import inbox
from tests.scripted_openai import ScriptedOpenAI, calls, says
from tests.service import SECRET, connected, refusal, returned, scripted, serving
from tests.store_contract import TENANT, Kept, client, opened
from tests.test_claims import CALL, THREE, claimed, watched

pytestmark = pytest.mark.anyio

LEASE = 1_000
SECONDS = 5.0
"""The longest that a test waits for something to be told."""


async def given(kept: Kept, limit: int = 100, lease: int = LEASE) -> dict[str, str]:
    """The token of each call that a worker is given."""
    found = await kept.store.claim_calls(TENANT, CallFilter(), "w1", lease, limit)
    return {call.call.tool_call_id: token for call, token in found}


def timed(name: str, on_timeout: OnTimeout = OnTimeout.RETURN_ERROR) -> PlannedCall:
    """A call of a client tool that has 50 nanoseconds."""
    return replace(client(name), timeout=50, on_timeout=on_timeout)


async def told(stream: Any) -> Any:
    """The next word of a stream of the inbox."""
    return await asyncio.wait_for(stream.read(), SECONDS)


# What is given out


async def test_a_call_whose_time_is_over_is_not_given_out(store: str) -> None:
    """Though it is not settled yet: an answer would be refused. One whose deadline changes nothing is given out."""
    async with opened(store) as kept:
        await kept.paused(timed("call_1"), timed("call_2", OnTimeout.KEEP_WAITING))
        kept.clock.now += 50
        assert list(await given(kept)) == ["call_2"]


async def test_a_call_of_a_pause_that_is_over_is_not_given_out(store: str) -> None:
    """Though it is not settled yet."""
    async with opened(store) as kept:
        run = (await kept.paused(client("call_1"))).run
        kept.clock.now = run.pause_expire_time
        assert await given(kept) == {}


async def test_a_worker_is_told_to_stop_when_the_calls_time_is_over(store: str) -> None:
    """By its sign of life, though the call is not settled yet. The claim is as it was."""
    async with opened(store) as kept:
        await kept.paused(timed("call_1"))
        token = (await given(kept))["call_1"]
        until = kept.clock.now + LEASE
        kept.clock.now += 50
        extended = await kept.store.move(TENANT, "run_1", lambda draft: extend(draft, "call_1", token, LEASE))
        assert extended == Extended(until, cancel_requested=True)


async def test_what_is_given_out_at_once_fits_into_an_answer(store: str) -> None:
    """Large calls come one by one and the rest stays free; each is more than a third of what a client takes."""
    people = [name * 700_000 for name in "abcdefgh"]
    script = [calls(("get_secret_code", {"name": name})) for name in people]
    async with scripted(script, store) as (client_, _):
        for _ in people:
            await client_.ask("Code?", SECRET)
        got: list[str] = []
        while batch := await claimed(client_, "w1", 100):
            assert sum(call.ByteSize() for call in batch) < 3 * 1024 * 1024
            got += [json.loads(call.call.call.arguments_json)["name"] for call in batch]
        assert sorted(got) == people


async def test_workers_of_two_processes_never_get_the_same_call(shared_store: str) -> None:
    """Two services on one store, asked at once, fifty times for three calls."""
    async with (
        ScriptedOpenAI([THREE] * 50) as upstream,
        serving(upstream, shared_store) as here,
        serving(upstream, shared_store) as there,
    ):
        for _ in range(50):
            run = (await here.ask("Codes?", SECRET)).run
            both = await asyncio.gather(claimed(here, "w1", 2), claimed(there, "w2", 2))
            got = [call.call.call.tool_call_id for batch in both for call in batch]
            assert sorted(got) == sorted(call.tool_call_id for call in run.pending_tool_calls)
            await there.cancel(run.run_id)


# What is told


async def synced(stream: Any) -> None:
    """Reads up to the end of the beginning."""
    while not (await told(stream)).HasField("synced"):
        pass


async def test_a_watcher_is_told_when_a_claim_is_over(store: str) -> None:
    """By `added`, so that another worker takes the call of a dead one; then it is told of the new claim."""
    async with scripted([CALL, says("It is A-1.")], store) as (client_, _):
        run = (await client_.ask("Code?", SECRET)).run
        async with watched(client_) as stream:
            await synced(stream)
            await claimed(client_, "w1", lease=Duration(seconds=1))
            assert (await told(stream)).added.worker_id == "w1"
            assert await claimed(client_, "w2") == []
            free = (await told(stream)).added
            assert (free.run_id, free.worker_id) == (run.run_id, "")
            (call,) = await claimed(client_, "w2")
            assert (await told(stream)).added.worker_id == "w2"
            done = await client_.answer(run.run_id, returned(call.call.call, "A-1", claim_token=call.claim_token))
            assert done.run.status == runs_pb2.RUN_STATUS_COMPLETED
            assert (await told(stream)).removed.run_id == run.run_id


async def test_a_sign_of_life_is_not_told(store: str) -> None:
    """A claim that is only kept concerns nobody else; the next word is about another call."""
    async with scripted([CALL, CALL], store) as (client_, _):
        first = (await client_.ask("Code?", SECRET)).run
        async with watched(client_) as stream:
            await synced(stream)
            (call,) = await claimed(client_, "w1")
            assert (await told(stream)).added.worker_id == "w1"
            for seconds in (60, 120):
                await client_.inbox.ExtendToolCall(
                    inbox_pb.ExtendToolCallRequest(
                        run_id=first.run_id,
                        tool_call_id=call.call.call.tool_call_id,
                        claim_token=call.claim_token,
                        lease=Duration(seconds=seconds),
                    )
                )
            second = (await client_.ask("Code?", SECRET)).run
            assert (await told(stream)).added.run_id == second.run_id


async def all_hear(watchers: list[Any], what: str) -> None:
    """Every watcher is told this next."""
    for response in await asyncio.gather(*map(told, watchers)):
        assert response.WhichOneof("change") == what


async def test_every_watcher_is_told_at_once(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many watch, and without anybody having to look for it: calls, claims and answers."""
    monkeypatch.setattr(inbox, "LOOK_SECONDS", 3600.0)
    async with (
        scripted([CALL, says("It is A-1.")] * 3, store) as (client_, _),
        watched(client_) as one,
        watched(client_) as two,
        watched(client_) as three,
    ):
        watchers = [one, two, three]
        await all_hear(watchers, "synced")
        for _ in range(3):
            run = (await client_.ask("Code?", SECRET)).run
            await all_hear(watchers, "added")
            (call,) = await claimed(client_, "w1")
            await all_hear(watchers, "added")
            await client_.answer(run.run_id, returned(call.call.call, "A-1", claim_token=call.claim_token))
            await all_hear(watchers, "removed")


async def test_what_another_process_writes_is_told_without_looking(
    shared_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two services on one store: calls, claims and answers of the one, a watcher of the other."""
    monkeypatch.setattr(inbox, "LOOK_SECONDS", 3600.0)
    async with (
        ScriptedOpenAI([CALL, says("It is A-1.")]) as upstream,
        serving(upstream, shared_store) as here,
        serving(upstream, shared_store) as there,
        watched(here) as stream,
    ):
        await synced(stream)
        run = (await there.ask("Code?", SECRET)).run
        assert (await told(stream)).added.run_id == run.run_id
        (call,) = await claimed(there, "w1")
        assert (await told(stream)).added.worker_id == "w1"
        await there.answer(run.run_id, returned(call.call.call, "A-1", claim_token=call.claim_token))
        assert (await told(stream)).removed.tool_call_id == call.call.call.tool_call_id


async def test_a_call_that_expires_beside_one_that_waits_is_told(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run stays paused; the watcher need not look by itself."""
    monkeypatch.setattr(inbox, "LOOK_SECONDS", 3600.0)
    brief = tools_pb2.ClientToolSchema(name="get_age", timeout=Duration(nanos=50_000_000))
    both = calls(("get_secret_code", {"name": "Alice"}), ("get_age", {}))
    async with scripted([both], store) as (client_, _), watched(client_) as stream:
        await synced(stream)
        run = (await client_.ask("Code?", SECRET, brief)).run
        due = next(call.tool_call_id for call in run.pending_tool_calls if call.name == "get_age")
        while (change := await told(stream)).HasField("added"):
            pass
        assert change.removed.tool_call_id == due


async def test_the_end_of_the_server_ends_the_watching_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """UNAVAILABLE, with when to begin anew."""
    monkeypatch.setattr(inbox, "LOOK_SECONDS", 3600.0)
    async with ScriptedOpenAI([]) as upstream, AsyncExitStack() as stack:
        async with serving(upstream, "memory") as client_:
            other = await stack.enter_async_context(connected(client_.target))
            stream = await stack.enter_async_context(watched(other))
            await synced(stream)
        refused = await asyncio.wait_for(refusal(stream.read()), SECONDS)
        assert (refused.code, refused.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
        assert refused.retry_seconds
