"""What every store of runs guarantees, V: runs that wait for their turn in a conversation."""

from __future__ import annotations

from typing import Any

import pytest

from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.domain.event import RunAccepted, RunStarted
from agent_service.domain.message import UserContent
from agent_service.domain.moves import cancel
from agent_service.domain.run import RunStatus
from agent_service.domain.start import OnBusy, Started
from agent_service.engine.loop import moved
from tests.store_contract import SECOND, TENANT, Kept, client, opened, returns

pytestmark = pytest.mark.anyio


async def enqueue(kept: Kept, run_id: str, **fields: Any) -> Started:
    """Starts a run that waits, with its id as its message."""
    return await kept.start(run_id, "conv_run_1", text=run_id, on_busy=OnBusy.ENQUEUE, **fields)


async def begin(kept: Kept, run_id: str) -> bool:
    """Whether the run begins now."""
    return await kept.store.begin(TENANT, run_id, SECOND) is not None


async def test_a_run_waits_with_its_input_until_its_turn(store: str) -> None:
    """It is accepted at once; its message joins the conversation when it begins, under the owner who begins it."""
    async with opened(store) as kept:
        await kept.paused(client("call_1"))
        waiting = await enqueue(kept, "run_2")
        assert (waiting.run.status, waiting.joined) == (RunStatus.QUEUED, False)
        assert [type(event.body) for event in await kept.events("run_2")] == [RunAccepted]
        before = await kept.messages()
        await kept.submit(returns("call_1"))
        await kept.answer(text="Bye.")
        assert await kept.store.queued_runs(9) == ((TENANT, "run_2"),)
        assert await begin(kept, "run_2")
        run = await kept.run("run_2")
        assert (run.status, run.owner, run.epoch, run.queued_inputs) == (RunStatus.RUNNING, "process_2", 1, ())
        assert isinstance((await kept.events("run_2"))[-1].body, RunStarted)
        assert [m.content for m in (await kept.messages())[len(before) :] if m.run_id == "run_2"] == [
            UserContent("run_2")
        ]


async def test_nobody_begins_out_of_turn(store: str) -> None:
    """Not beside a run that is RUNNING or PAUSED, not before those that wait longer, not twice."""
    async with opened(store) as kept:
        await kept.start()
        for run_id in ("run_2", "run_3"):
            await enqueue(kept, run_id)
        assert await kept.store.queued_runs(9) == ()
        assert not await begin(kept, "run_2")
        await kept.answer(client("call_1"))
        assert not await begin(kept, "run_2")
        await kept.store.move(TENANT, "run_1", moved(cancel))
        assert await kept.store.queued_runs(9) == ((TENANT, "run_2"),)
        assert not await begin(kept, "run_3")
        assert await begin(kept, "run_2")
        assert not await begin(kept, "run_2")
        assert not await begin(kept, "run_3")


async def test_a_cancelled_run_leaves_the_queue(store: str) -> None:
    """The next one moves up; nothing of the cancelled one is in the conversation."""
    async with opened(store) as kept:
        await kept.start()
        for run_id in ("run_2", "run_3"):
            await enqueue(kept, run_id)
        await kept.store.move(TENANT, "run_2", moved(cancel))
        await kept.answer(text="Bye.")
        assert await kept.store.queued_runs(9) == ((TENANT, "run_3"),)
        assert await begin(kept, "run_3")
        assert {message.run_id for message in await kept.messages()} == {"run_1", "run_3"}


async def test_an_interrupted_run_makes_way(store: str) -> None:
    """It is settled as FAILED when the next one begins."""
    async with opened(store) as kept:
        await kept.start()
        await enqueue(kept, "run_2")
        await kept.interrupt()
        assert await begin(kept, "run_2")
        assert (await kept.run()).status is RunStatus.FAILED


async def test_a_queue_is_bounded_and_joined_by_equal_starts(store: str) -> None:
    """Sixteen wait at most; a repeat of one that waits changes nothing."""
    async with opened(store) as kept:
        await kept.start()
        for number in range(16):
            await enqueue(kept, f"run_{number + 2}")
        with pytest.raises(AgentServiceError) as caught:
            await enqueue(kept, "run_more")
        assert caught.value.reason is Reason.QUEUE_FULL
        assert (await enqueue(kept, "run_17")).joined
        assert len(await kept.store.queued_runs(9)) == 0


async def test_queues_of_all_conversations_are_found_up_to_a_bound(store: str) -> None:
    """The first of each, of all tenants."""
    async with opened(store) as kept:
        for tenant in (TENANT, "globex"):
            await kept.start(tenant=tenant)
            for run_id in ("run_2", "run_3"):
                await enqueue(kept, run_id, tenant=tenant)
            await kept.answer(text="Bye.", tenant=tenant)
        assert sorted(await kept.store.queued_runs(9)) == [(TENANT, "run_2"), ("globex", "run_2")]
        assert len(await kept.store.queued_runs(1)) == 1
