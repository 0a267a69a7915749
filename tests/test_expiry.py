"""What every store of runs guarantees, IV: what happens to calls and pauses that nobody answers in time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.domain.event import RunCause, RunResumed, RunStopped
from agent_service.domain.expiry import NO_ANSWER
from agent_service.domain.message import ToolReturnContent
from agent_service.domain.moves import INTERRUPTED_TTL, PlannedCall
from agent_service.domain.run import RunStatus, StopReason
from agent_service.domain.tool import OnTimeout
from tests.store_contract import TENANT, Kept, approval, client, opened, returns, server

pytestmark = pytest.mark.anyio

SOON, LATER = 50, 500
TTL = 5_000


def timed(name: str, timeout: int = SOON, on_timeout: OnTimeout = OnTimeout.RETURN_ERROR) -> PlannedCall:
    """A call of a client tool with a timeout."""
    return replace(client(name), timeout=timeout, on_timeout=on_timeout)


async def due(kept: Kept) -> list[str]:
    """The runs that have something overdue."""
    return [run_id for _, run_id in await kept.store.due_runs(9)]


async def states(kept: Kept, run_id: str = "run_1") -> dict[str, str]:
    """The states of the run's calls."""
    return {c.tool_call_id: c.state.value for c in (await kept.store.get_run(TENANT, run_id)).calls}


async def test_a_call_that_nobody_answers_in_time_is_an_error_to_the_model(store: str) -> None:
    """Its text says that the tool may have been executed, and the run goes on under whoever looked."""
    async with opened(store) as kept:
        await kept.paused(timed("ask"))
        kept.clock.now += SOON - 1
        assert (await due(kept), await kept.expire()) == ([], False)
        kept.clock.now += 1
        assert await due(kept) == ["run_1"]
        assert await kept.expire()
        assert (await due(kept), await states(kept)) == ([], {"ask": "expired"})
        run = await kept.run()
        assert (run.status, run.owner, run.epoch) == (RunStatus.RUNNING, "process_2", 2)
        assert (await kept.events())[-1].body == RunResumed(2, RunCause.DEADLINE)
        (told,) = [m.content for m in await kept.messages() if isinstance(m.content, ToolReturnContent)]
        assert told.text == NO_ANSWER
        assert "may have been executed" in NO_ANSWER


async def test_the_time_begins_with_the_pause(store: str) -> None:
    """Not while server tools of the same answer still run; the deadline is shown from then on."""
    async with opened(store) as kept:
        await kept.start()
        await kept.answer(server("look"), timed("ask"))
        kept.clock.now += 10 * SOON
        assert await due(kept) == []
        await kept.recover()
        snapshot = await kept.store.get_run(TENANT, "run_1")
        assert [call.deadline for call in snapshot.calls] == [0, 0]


async def test_a_call_among_others_expires_alone(store: str) -> None:
    """The others are waited for, and the last answer resumes the run."""
    async with opened(store) as kept:
        await kept.paused(timed("first"), timed("second", LATER), client("third"))
        kept.clock.now += SOON
        assert not await kept.expire()
        assert await states(kept) == {"first": "expired", "second": "pending", "third": "pending"}
        assert (await kept.run()).status is RunStatus.PAUSED
        assert not (await kept.submit(returns("third"))).resumed
        kept.clock.now += LATER
        assert await kept.expire()
        assert await states(kept) == {"first": "expired", "second": "expired", "third": "returned"}


async def test_a_call_may_end_its_run(store: str) -> None:
    """It failed because of the deadline; the other calls are cancelled, in the same transaction."""
    async with opened(store) as kept:
        await kept.paused(timed("vital", SOON, OnTimeout.FAIL_RUN), client("other"), approval("send"))
        kept.clock.now += SOON
        assert not await kept.expire()
        run = await kept.run()
        assert run.error is not None
        assert (run.status, run.stop_reason) == (RunStatus.FAILED, StopReason.EXPIRED)
        assert (run.error.reason, run.error.metadata) == (Reason.CALL_TIMED_OUT, {"tool_call_id": "vital"})
        assert await states(kept) == {"vital": "expired", "other": "cancelled", "send": "cancelled"}
        last = (await kept.events())[-1].body
        assert isinstance(last, RunStopped)
        assert last.final


async def test_a_call_may_wait_on_after_its_time(store: str) -> None:
    """Its deadline is only shown; a late answer is taken, and the pause ends it at last."""
    async with opened(store) as kept:
        await kept.paused(timed("ask", SOON, OnTimeout.KEEP_WAITING), timed("more", SOON, OnTimeout.KEEP_WAITING))
        kept.clock.now += LATER
        assert (await due(kept), await kept.expire()) == ([], False)
        assert (await kept.submit(returns("ask"))).fresh


async def test_a_pause_that_lasts_too_long_expires_the_run(store: str) -> None:
    """For good, with its pending calls; each pause has its own time."""
    async with opened(store) as kept:
        await kept.paused(client("first"), pause_ttl=TTL)
        kept.clock.now += TTL - 1
        await kept.submit(returns("first"))
        await kept.answer(client("second"), timed("third", LATER, OnTimeout.KEEP_WAITING))
        assert (await kept.run()).pause_expire_time == kept.clock.now + TTL
        kept.clock.now += TTL
        assert await due(kept) == ["run_1"]
        assert not await kept.expire()
        run = await kept.run()
        assert (run.status, run.stop_reason, run.error) == (RunStatus.EXPIRED, StopReason.EXPIRED, None)
        assert await states(kept) == {"second": "expired", "third": "expired"}
        assert (await due(kept), await kept.expire()) == ([], False)
        with pytest.raises(AgentServiceError) as caught:
            await kept.submit(returns("second"), request_id="late")
        assert caught.value.reason is Reason.CALL_EXPIRED
        assert caught.value.metadata["time"] == str(kept.clock.now)


async def test_an_interrupted_run_that_nobody_retries_fails(store: str) -> None:
    """After a day; a retry in time goes on with it."""
    async with opened(store) as kept:
        for run_id in ("run_1", "run_2"):
            await kept.start(run_id)
            await kept.interrupt(run_id)
        kept.clock.now += INTERRUPTED_TTL - 1
        assert await kept.retry("run_2")
        kept.clock.now += 1
        assert await due(kept) == ["run_1"]
        assert not await kept.expire()
        run = await kept.run()
        assert run.error is not None
        assert (run.status, run.error.retryable) == (RunStatus.FAILED, False)
        assert (await kept.run("run_2")).status is RunStatus.RUNNING


async def test_the_last_step_ends_the_run_also_when_its_call_expires(store: str) -> None:
    """No model request is left for it."""
    async with opened(store) as kept:
        await kept.paused(timed("ask"), max_steps=1)
        kept.clock.now += SOON
        assert not await kept.expire()
        assert (await kept.run()).stop_reason is StopReason.MAX_STEPS


async def test_runs_that_are_due_are_found_up_to_a_bound(store: str) -> None:
    """Those of which a call is due and those of which the pause is."""
    async with opened(store) as kept:
        await kept.paused(timed("ask"), run_id="run_1")
        await kept.paused(client("wait"), run_id="run_2", pause_ttl=SOON)
        await kept.paused(client("long"), run_id="run_3")
        kept.clock.now += SOON
        assert sorted(await due(kept)) == ["run_1", "run_2"]
        assert len(await kept.store.due_runs(1)) == 1
