"""Workers that share the inbox: each call goes to one of them, and passes on when that one is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from agentrpc.v1 import inbox_service_pb2 as inbox_pb
from agentrpc.v1 import runs_pb2, tools_pb2
from google.protobuf.duration_pb2 import Duration

from agent_service.domain.claims import Extended, extend
from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.domain.registry import CallFilter
from agent_service.domain.tool import PendingKind
from agent_service.engine import inbox
from tests.scripted_openai import ScriptedOpenAI, calls, says
from tests.service import SECRET, Client, refusal, returned, scripted, serving
from tests.store_contract import TENANT, Clock, Kept, approval, client, opened, returns

pytestmark = pytest.mark.anyio

CLAIM = 1_000
CALL = calls(("get_secret_code", {"name": "Alice"}))
THREE = calls(*[("get_secret_code", {"name": name}) for name in ("Alice", "Bob", "Carol")])


async def claim(kept: Kept, worker: str, limit: int = 9, **which: Any) -> dict[str, str]:
    """The tokens of what the worker got, by call."""
    found = await kept.store.claim_calls(TENANT, CallFilter(**which), worker, CLAIM, limit)
    assert all((call.worker_id, call.claim_expire_time) == (worker, kept.clock.now + CLAIM) for call, _ in found)
    return {call.call.tool_call_id: token for call, token in found}


# In the stores


async def test_a_call_that_is_claimed_is_not_given_to_another(store: str) -> None:
    """Until the claim is over; then it is free, with another token. The longest waiting come first."""
    async with opened(store) as kept:
        await kept.paused(client("call_1"), client("call_2"))
        kept.clock.now += 1
        await kept.paused(client("call_3"), run_id="run_2")
        before = await kept.events(), await kept.run()
        assert list(await claim(kept, "w1", 2)) == ["call_1", "call_2"]
        assert list(await claim(kept, "w2")) == ["call_3"]
        assert await claim(kept, "w3") == {}
        kept.clock.now += CLAIM
        again = await claim(kept, "w3")
        assert sorted(again) == ["call_1", "call_2", "call_3"]
        assert len(set(again.values())) == 3
        assert (await kept.events(), await kept.run()) == before


async def test_only_what_is_wanted_is_claimed(store: str) -> None:
    """By kind, conversation, agent, tool, labels and age."""
    async with opened(store) as kept:
        await kept.paused(client("call_1"), approval("call_2"))
        kept.clock.now += 100
        await kept.paused(client("call_3"), run_id="run_2", labels={"team": "b"})
        for which in (
            {"kind": PendingKind.APPROVAL, "conversation_id": "conv_run_2"},
            {"agent_id": "other"},
            {"tool_name": "tool_x"},
            {"labels": (("team", "c"),)},
        ):
            assert await claim(kept, "w1", **which) == {}
        assert list(await claim(kept, "w1", kind=PendingKind.APPROVAL)) == ["call_2"]
        assert list(await claim(kept, "w1", labels=(("team", "b"),))) == ["call_3"]
        assert list(await claim(kept, "w1", pending_before=kept.clock.now)) == ["call_1"]


async def test_a_claim_is_extended_with_its_token(store: str) -> None:
    """From now on; a call that waits no more tells so, and a token of an earlier claim is refused."""
    async with opened(store) as kept:
        await kept.paused(client("call_1"), client("call_2"))
        tokens = await claim(kept, "w1")

        async def extended(name: str, token: str) -> Extended:
            return await kept.store.move(
                TENANT, "run_1", lambda draft: extend(draft, name, token, CLAIM), call_ids=(name,)
            )

        kept.clock.now += CLAIM - 1
        assert await extended("call_1", tokens["call_1"]) == Extended(kept.clock.now + CLAIM, False)
        kept.clock.now += 1
        others = await claim(kept, "w2")
        assert list(others) == ["call_2"]
        for name, token in (("call_2", tokens["call_2"]), ("call_1", others["call_2"]), ("call_1", "")):
            with pytest.raises(AgentServiceError) as caught:
                await extended(name, token)
            assert caught.value.reason is Reason.CLAIM_LOST
        with pytest.raises(AgentServiceError) as caught:
            await extended("call_9", tokens["call_1"])
        assert caught.value.reason is Reason.UNKNOWN_TOOL_CALL
        await kept.submit(returns("call_2", token=others["call_2"]))
        assert (await extended("call_2", others["call_2"])).cancel_requested


async def test_a_claimed_call_is_answered_with_its_token_only(store: str) -> None:
    """Without one it is refused while the claim holds, with a stale one always; settled calls ask for none."""
    async with opened(store) as kept:
        await kept.paused(client("call_1"), client("call_2"), client("call_3"))
        stale = await claim(kept, "w1", 1)
        kept.clock.now += CLAIM
        fresh = await claim(kept, "w2", 1)
        for token, reason in (("", Reason.CALL_CLAIMED), (stale["call_1"], Reason.CLAIM_LOST)):
            with pytest.raises(AgentServiceError) as caught:
                await kept.submit(returns("call_1", token=token))
            assert caught.value.reason is reason
        accepted = await kept.submit(returns("call_1", token=fresh["call_1"]))
        assert accepted.fresh
        assert not (await kept.submit(returns("call_1", token=stale["call_1"]), request_id="req_2")).fresh
        assert (await kept.submit(returns("call_2"), request_id="req_3")).fresh
        with pytest.raises(AgentServiceError) as caught:
            await kept.submit(returns("call_3", token="claim_x"), request_id="req_4")
        assert caught.value.reason is Reason.CLAIM_LOST


async def test_a_claim_that_is_over_keeps_nobody_from_answering(store: str) -> None:
    """Neither a caller without a token nor the worker itself, as long as no other one has the call."""
    async with opened(store) as kept:
        await kept.paused(client("call_1"), client("call_2"))
        tokens = await claim(kept, "w1")
        kept.clock.now += CLAIM
        assert (await kept.submit(returns("call_1"), request_id="req_1")).fresh
        assert (await kept.submit(returns("call_2", token=tokens["call_2"]), request_id="req_2")).resumed


# As workers see it


async def claimed(client_: Client, worker: str, most: int = 1, **fields: Any) -> list[inbox_pb.ClaimedToolCall]:
    """ClaimToolCalls."""
    request = inbox_pb.ClaimToolCallsRequest(worker_id=worker, max_calls=most, **fields)
    return list((await client_.inbox.ClaimToolCalls(request)).calls)


def extending(client_: Client, call: inbox_pb.ClaimedToolCall, progress: str = "") -> Any:
    """ExtendToolCall."""
    return client_.inbox.ExtendToolCall(
        inbox_pb.ExtendToolCallRequest(
            run_id=call.call.run_id,
            tool_call_id=call.call.call.tool_call_id,
            claim_token=call.claim_token,
            progress=progress,
        )
    )


async def test_of_two_workers_that_claim_at_once_each_call_goes_to_one(store: str) -> None:
    """Fifty times three calls."""
    async with scripted([THREE] * 50, store) as (client_, _):
        for _ in range(50):
            run = (await client_.ask("Codes?", SECRET)).run
            first, second = await asyncio.gather(claimed(client_, "w1", 2), claimed(client_, "w2", 2))
            got = [call.call.call.tool_call_id for call in (*first, *second)]
            assert sorted(got) == sorted(call.tool_call_id for call in run.pending_tool_calls)
            await client_.cancel(run.run_id)


async def test_a_worker_answers_what_it_claimed(store: str) -> None:
    """With its token; others are told who has the call. What it tells of its work, watchers of the run see."""
    async with scripted([CALL, says("It is A-1.")], store) as (client_, _):
        run = (await client_.ask("Code?", SECRET)).run
        (call,) = await claimed(client_, "w1")
        assert (call.call.worker_id, call.call.run_id) == ("w1", run.run_id)
        other = await refusal(client_.answer(run.run_id, returned(call.call.call, "A-2")))
        assert (other.code, other.reason) == ("FAILED_PRECONDITION", "CALL_CLAIMED")
        assert "w1" in other.message
        watching = client_.watching(run.run_id, run.last_sequence)
        assert (await watching.read()).event.HasField("live")
        extended = await extending(client_, call, "half way")
        assert not extended.cancel_requested
        progress = (await watching.read()).event
        assert (progress.sequence, progress.tool_call_progress.text) == (run.last_sequence, "half way")
        done = await client_.answer(run.run_id, returned(call.call.call, "A-1", claim_token=call.claim_token))
        assert done.run.status == runs_pb2.RUN_STATUS_COMPLETED


async def test_a_cancel_reaches_the_worker(store: str) -> None:
    """Its next sign of life tells it to stop; and its return is refused."""
    async with scripted([CALL], store) as (client_, _):
        run = (await client_.ask("Code?", SECRET)).run
        (call,) = await claimed(client_, "w1")
        await client_.cancel(run.run_id)
        assert (await extending(client_, call)).cancel_requested
        late = await refusal(client_.answer(run.run_id, returned(call.call.call, "A", claim_token=call.claim_token)))
        assert late.reason == "CALL_CANCELLED"


async def test_a_claim_outlives_the_server(shared_store: str) -> None:
    """The call is the worker's still, and its token is good."""
    async with ScriptedOpenAI([CALL, says("It is A-1.")]) as upstream:
        async with serving(upstream, shared_store) as client_:
            run = (await client_.ask("Code?", SECRET)).run
            (call,) = await claimed(client_, "w1")
        async with serving(upstream, shared_store) as client_:
            assert await claimed(client_, "w2") == []
            done = await client_.answer(run.run_id, returned(call.call.call, "A-1", claim_token=call.claim_token))
            assert done.run.status == runs_pb2.RUN_STATUS_COMPLETED


@pytest.mark.parametrize(
    ("fields", "paths"),
    [
        ({"worker_id": ""}, ("worker_id",)),
        ({"worker_id": "w 1"}, ("worker_id",)),
        ({"max_calls": -1}, ("max_calls",)),
        ({"max_calls": 101}, ("max_calls",)),
        ({"lease": Duration(nanos=1_000_000)}, ("lease",)),
        ({"lease": Duration(seconds=86_401)}, ("lease",)),
        ({"filter": inbox_pb.PendingToolCallFilter(agent_id="no id", min_age=Duration())}, None),
    ],
)
async def test_a_claim_that_cannot_be_is_refused(fields: dict[str, Any], paths: tuple[str, ...] | None) -> None:
    """INVALID_ARGUMENT with every path."""
    request = inbox_pb.ClaimToolCallsRequest(**({"worker_id": "w1"} | fields))
    async with scripted([], "memory") as (client_, _):
        refused = await refusal(client_.inbox.ClaimToolCalls(request))
        assert refused.code == "INVALID_ARGUMENT"
        assert sorted(refused.fields) == sorted(paths or ("filter.agent_id", "filter.min_age"))


# Watching


@asynccontextmanager
async def watched(client_: Client, **which: Any) -> AsyncIterator[Any]:
    """A stream of the inbox."""
    filter_ = inbox_pb.PendingToolCallFilter(**which)
    stream: Any = client_.inbox.WatchPendingToolCalls(inbox_pb.WatchPendingToolCallsRequest(filter=filter_))
    try:
        yield stream
    finally:
        stream.cancel()


async def test_a_watcher_sees_calls_come_and_go(store: str) -> None:
    """What waits already, then that this was all, then the rest; also that a call is claimed."""
    async with scripted([CALL, CALL, says("It is A-1.")], store) as (client_, _):
        first = (await client_.ask("Code?", SECRET)).run
        async with watched(client_) as stream:
            added = (await stream.read()).added
            assert (added.run_id, added.call.name) == (first.run_id, "get_secret_code")
            assert (await stream.read()).HasField("synced")
            second = (await client_.ask("Code?", SECRET)).run
            assert (await stream.read()).added.run_id == second.run_id
            await claimed(client_, "w1", filter=inbox_pb.PendingToolCallFilter(conversation_id=first.conversation_id))
            assert (await stream.read()).added.worker_id == "w1"
            await client_.answer(second.run_id, returned(second.pending_tool_calls[0], "A-1"))
            removed = (await stream.read()).removed
            assert (removed.run_id, removed.tool_call_id) == (
                second.run_id,
                second.pending_tool_calls[0].tool_call_id,
            )


async def test_a_watcher_sees_that_a_call_is_free_again(
    store: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the claim of a worker that is gone is over, the call is told as nobody's."""
    monkeypatch.setattr(inbox, "LOOK_SECONDS", 0.02)
    async with scripted([CALL], store) as (client_, _):
        await client_.ask("Code?", SECRET)
        await claimed(client_, "w1")
        async with watched(client_) as stream:
            assert (await stream.read()).added.worker_id == "w1"
            assert (await stream.read()).HasField("synced")
            clock.now += 30 * 10**9
            free = (await stream.read()).added
            assert (free.worker_id, free.HasField("claim_expire_time")) == ("", False)
            assert [call.worker_id for call in (await client_.waiting()).calls] == [""]


async def test_a_watcher_sees_only_what_it_asked_for(store: str) -> None:
    """By the labels of the run, here."""
    async with scripted([CALL, CALL], store) as (client_, _):
        await client_.ask("Code?", SECRET, labels={"team": "a"})
        async with watched(client_, labels={"team": "b"}) as stream:
            assert (await stream.read()).HasField("synced")
            run = (await client_.ask("Code?", SECRET, labels={"team": "b"})).run
            assert (await stream.read()).added.run_id == run.run_id


async def test_a_watcher_with_a_bad_filter_is_refused_before_anything_is_shown() -> None:
    """INVALID_ARGUMENT with the path."""
    bad: Any = inbox_pb.PendingToolCallFilter(kind=tools_pb2.PENDING_KIND_APPROVAL, conversation_id="no id")
    async with scripted([], "memory") as (client_, _):
        request = inbox_pb.WatchPendingToolCallsRequest(filter=bad)
        refused = await refusal(client_.inbox.WatchPendingToolCalls(request))
        assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", ("filter.conversation_id",))
