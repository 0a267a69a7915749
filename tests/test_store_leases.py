"""What every store of runs guarantees, III: leases, recovery, retries, and how far runs are."""

from __future__ import annotations

import pytest

from agent_service.domain.errors import AgentServiceError, Reason, StaleClaimError
from agent_service.domain.event import MessageStored, RunCause, RunResumed, RunStopped
from agent_service.domain.message import ToolReturnContent
from agent_service.domain.moves import (
    CANCELLED_BEFORE,
    UNKNOWN_OUTCOME,
    CallResult,
    cancel,
    finish_calls,
    start_calls,
)
from agent_service.domain.recovery import MAX_LOSSES, hand_over
from agent_service.domain.run import Claim, RunStatus, StopReason
from agent_service.domain.tool import CallState, Outcome
from agent_service.engine.loop import moved
from agent_service.engine.store import Standing
from tests.store_contract import (
    LEASE,
    OTHER,
    TENANT,
    Kept,
    approval,
    approves,
    client,
    opened,
    repeatable,
    returns,
    server,
)

pytestmark = pytest.mark.anyio


async def test_a_run_is_lost_when_its_lease_is_over(store: str) -> None:
    """Not a moment before; runs of all tenants, the longest lost first, at most as many as asked for."""
    async with opened(store) as kept:
        await kept.start("run_1")
        kept.clock.now += 1
        await kept.start("run_2", tenant=OTHER)
        await kept.paused(client("call_1"), run_id="run_3")
        kept.clock.now += LEASE - 2
        assert await kept.store.lost_runs(9) == ()
        kept.clock.now += 1
        assert await kept.store.lost_runs(9) == ((TENANT, "run_1"),)
        kept.clock.now += 1
        assert await kept.store.lost_runs(9) == ((TENANT, "run_1"), (OTHER, "run_2"))
        assert await kept.store.lost_runs(1) == ((TENANT, "run_1"),)


async def test_a_renewed_lease_lasts_from_then(store: str) -> None:
    """The run is as it was but for that; nothing is published."""
    async with opened(store) as kept:
        await kept.start()
        before, told = await kept.events(), len(kept.told)
        kept.clock.now += LEASE - 1
        assert await kept.store.renew([await kept.claim()], LEASE) == ()
        kept.clock.now += LEASE - 1
        assert await kept.store.lost_runs(9) == ()
        assert not await kept.store.move(TENANT, "run_1", lambda draft: draft.run.lease_expire_time <= draft.now)
        kept.clock.now += 1
        assert await kept.store.lost_runs(9) == ((TENANT, "run_1"),)
        assert (await kept.events(), len(kept.told)) == (before, told)


async def test_a_claim_that_is_stale_cannot_be_renewed(store: str) -> None:
    """Of another epoch, of a run that stopped, or of none: it is given back, and the others are renewed."""
    async with opened(store) as kept:
        await kept.start("run_1")
        await kept.paused(client("call_1"), run_id="run_2")
        good = await kept.claim("run_1")
        stale = (
            Claim(TENANT, "run_1", good.epoch + 1),
            Claim(TENANT, "run_1", good.epoch - 1),
            Claim(OTHER, "run_1", good.epoch),
            await kept.claim("run_2"),
            Claim(TENANT, "run_x", 1),
        )
        assert set(await kept.store.renew([*stale, good], 2 * LEASE)) == set(stale)
        kept.clock.now += LEASE
        assert await kept.store.lost_runs(9) == ()


async def test_another_process_goes_on_with_a_lost_run(store: str) -> None:
    """Under the next epoch, told by an event; who was the owner before writes nothing any more."""
    async with opened(store) as kept:
        await kept.start()
        claim = await kept.claim()
        assert await kept.recover()
        run = await kept.run()
        assert (run.status, run.owner, run.epoch) == (RunStatus.RUNNING, "process_2", claim.epoch + 1)
        assert (await kept.events())[-1].body == RunResumed(claim.epoch + 1, RunCause.RECOVERY)
        with pytest.raises(StaleClaimError):
            await kept.store.owner_move(claim, moved(cancel))
        assert await kept.store.renew([claim], LEASE) == (claim,)
        assert await kept.store.lost_runs(9) == ()


async def test_only_one_of_two_that_look_takes_a_run(store: str) -> None:
    """The second finds its lease renewed by the first."""
    async with opened(store) as kept:
        await kept.start()
        assert await kept.recover()
        kept.clock.now -= LEASE
        assert not await kept.recover()
        assert (await kept.run()).epoch == 2


async def test_of_started_calls_only_those_of_idempotent_tools_start_again(store: str) -> None:
    """The others read that their outcome is unknown; calls that were not started stay as they were."""
    async with opened(store) as kept:
        await kept.start()
        await kept.answer(repeatable("again"), server("once"), server("next"), client("ask"))
        await kept.store.owner_move(await kept.claim(), moved(start_calls, ("again", "once")))
        assert await kept.recover()
        calls = {call.tool_call_id: call for call in (await kept.store.get_run(TENANT, "run_1")).calls}
        assert {name: call.state.value for name, call in calls.items()} == {
            "again": "proposed",
            "once": "failed",
            "next": "proposed",
            "ask": "pending",
        }
        assert [calls[name].attempts for name in ("again", "once", "next")] == [1, 1, 0]
        (told,) = [m.content for m in await kept.messages() if isinstance(m.content, ToolReturnContent)]
        assert (told.tool_call_id, told.outcome) == ("once", Outcome.FAILED)
        assert told.text.startswith("Outcome unknown")
        await kept.store.owner_move(await kept.claim(), moved(start_calls, ("again",)))
        (call,) = [c for c in (await kept.store.get_run(TENANT, "run_1")).calls if c.tool_call_id == "again"]
        assert (call.state, call.attempts) == (CallState.STARTED, 2)


async def test_a_call_that_was_to_start_again_is_cancelled_as_perhaps_executed(store: str) -> None:
    """Its owner was lost after it had begun; that the run ends before it begins once more undoes nothing."""
    async with opened(store) as kept:
        await kept.start()
        await kept.answer(repeatable("again"), server("next"))
        await kept.store.owner_move(await kept.claim(), moved(start_calls, ("again",)))
        assert await kept.recover()
        await kept.store.move(TENANT, "run_1", moved(cancel))
        told = [m.content for m in await kept.messages() if isinstance(m.content, ToolReturnContent)]
        assert [(each.tool_call_id, each.outcome, each.text) for each in told] == [
            ("again", Outcome.FAILED, UNKNOWN_OUTCOME),
            ("next", Outcome.CANCELLED, CANCELLED_BEFORE),
        ]


async def test_an_approved_call_is_approved_still_after_a_loss(store: str) -> None:
    """It is executed with the arguments of the approval."""
    async with opened(store) as kept:
        await kept.paused(approval("send"))
        await kept.submit(approves("send", '{"to": "Bob"}'))
        assert await kept.recover()
        (call,) = (await kept.store.get_run(TENANT, "run_1")).calls
        assert (call.state, call.effective_arguments_json) == (CallState.APPROVED, '{"to": "Bob"}')


async def test_a_lost_run_that_waits_only_for_its_caller_pauses(store: str) -> None:
    """The one thing the server had to do has an unknown outcome; the rest is the caller's."""
    async with opened(store) as kept:
        await kept.start()
        await kept.answer(server("once"), client("ask"))
        await kept.store.owner_move(await kept.claim(), moved(start_calls, ("once",)))
        assert not await kept.recover()
        run = await kept.run()
        assert (run.status, run.stop_reason) == (RunStatus.PAUSED, StopReason.REQUIRES_APPROVAL)
        assert (await kept.submit(returns("ask"))).resumed


async def test_a_run_that_is_lost_again_and_again_is_set_aside(store: str) -> None:
    """After the third loss without progress it is interrupted; a retry goes on with it and counts anew."""
    async with opened(store) as kept:
        await kept.start()
        assert [await kept.recover() for _ in range(MAX_LOSSES)] == [True, True, False]
        run = await kept.run()
        assert run.error is not None
        assert (run.status, run.stop_reason) == (RunStatus.INTERRUPTED, StopReason.ERROR)
        assert (run.error.reason, run.error.retryable) == (Reason.RUN_LOST_REPEATEDLY, True)
        assert await kept.retry()
        assert [await kept.recover() for _ in range(MAX_LOSSES)] == [True, True, False]


@pytest.mark.parametrize("progress", ["answer", "tool", "submit"])
async def test_progress_forgets_earlier_losses(progress: str, store: str) -> None:
    """A stored answer, an outcome of a server tool and a submit each are progress."""
    async with opened(store) as kept:
        await kept.start()
        if progress != "answer":
            await kept.answer(server("look"), server("more"), client("ask"))
        assert [await kept.recover(), await kept.recover()] == [True, True]
        if progress == "answer":
            await kept.answer(server("look"))
        elif progress == "tool":
            await kept.store.owner_move(await kept.claim(), moved(start_calls, ("look",)))
            await kept.store.owner_move(await kept.claim(), moved(finish_calls, (CallResult("look", "found"),)))
        else:
            await kept.submit(returns("ask"))
        assert [await kept.recover(), await kept.recover(), await kept.recover()] == [True, True, False]


async def test_a_run_handed_over_is_taken_at_once_and_counts_no_loss(store: str) -> None:
    """However often; its model request that was broken off is counted each time, downtime is not."""
    async with opened(store) as kept:
        await kept.start()
        for _ in range(2 * MAX_LOSSES):
            kept.clock.now += 5
            await kept.store.owner_move(await kept.claim(), hand_over)
            assert await kept.store.lost_runs(9) == ((TENANT, "run_1"),)
            assert await kept.recover()
        run = await kept.run()
        assert (run.status, run.losses, run.model_attempts) == (RunStatus.RUNNING, 0, 2 * MAX_LOSSES)
        assert run.running_time == 2 * MAX_LOSSES * 5


async def test_the_time_that_a_run_was_lost_is_no_running_time(store: str) -> None:
    """It counts to the end of its lease at most."""
    async with opened(store) as kept:
        await kept.start()
        kept.clock.now += 10 * LEASE
        assert await kept.recover()
        assert (await kept.run()).running_time == LEASE


async def test_a_retry_goes_on_with_what_was_accepted(store: str) -> None:
    """Answers that came while the run was interrupted count; nothing has to be sent again."""
    async with opened(store) as kept:
        await kept.paused(client("call_1"))
        await kept.submit(returns("call_1", "A-1"))
        await kept.interrupt()
        assert await kept.retry()
        run = await kept.run()
        assert (run.status, run.stop_reason, run.error) == (RunStatus.RUNNING, None, None)
        bodies = [event.body for event in await kept.events()]
        assert bodies[-1] == RunResumed(3, RunCause.RETRY)
        texts = [b.message.content for b in bodies if isinstance(b, MessageStored)]
        assert [c.text for c in texts if isinstance(c, ToolReturnContent)] == ["A-1"]


async def test_a_retry_of_a_run_that_still_waits_for_its_caller_pauses_again(store: str) -> None:
    """It was interrupted in the middle of a batch."""
    async with opened(store) as kept:
        await kept.start()
        await kept.answer(server("once"), client("ask"))
        await kept.store.owner_move(await kept.claim(), moved(start_calls, ("once",)))
        await kept.interrupt()
        assert not await kept.retry()
        last = (await kept.events())[-1].body
        assert isinstance(last, RunStopped)
        assert [call.tool_call_id for call in last.remaining] == ["ask"]


async def test_a_retry_repeated_with_its_id_changes_nothing(store: str) -> None:
    """While the run goes on, after another interruption and after its end; without an id it is refused."""
    async with opened(store) as kept:
        await kept.start()
        await kept.interrupt()
        assert await kept.retry(request_id="retry_1")
        events = await kept.events()
        assert not await kept.retry(request_id="retry_1")
        await _refused(kept, "", Reason.RUN_NOT_INTERRUPTED)
        assert await kept.events() == events
        await kept.interrupt()
        assert not await kept.retry(request_id="retry_1")
        assert (await kept.run()).status is RunStatus.INTERRUPTED
        assert await kept.retry(request_id="retry_2")
        await kept.answer(text="Hi.")
        assert not await kept.retry(request_id="retry_2")


async def test_an_id_of_a_submit_is_no_id_of_a_retry(store: str) -> None:
    """Nor the other way round."""
    async with opened(store) as kept:
        await kept.paused(client("call_1"))
        await kept.submit(returns("call_1"), request_id="req_1")
        await kept.interrupt()
        await _refused(kept, "req_1", Reason.REQUEST_ID_REUSED)
        assert await kept.retry(request_id="req_2")
        await kept.answer(client("call_2"))
        with pytest.raises(AgentServiceError) as caught:
            await kept.submit(returns("call_2"), request_id="req_2")
        assert caught.value.reason is Reason.REQUEST_ID_REUSED


@pytest.mark.parametrize("status", ["running", "paused", "completed", "cancelled"])
async def test_only_an_interrupted_run_can_be_retried(status: str, store: str) -> None:
    """The error names the status found."""
    async with opened(store) as kept:
        await kept.start()
        if status == "paused":
            await kept.answer(client("call_1"))
        elif status == "completed":
            await kept.answer(text="Hi.")
        elif status == "cancelled":
            await kept.store.move(TENANT, "run_1", moved(cancel))
        error = await _refused(kept, "retry_1", Reason.RUN_NOT_INTERRUPTED)
        assert error.metadata == {"run_id": "run_1", "status": status.upper()}
        await _refused(kept, "retry_1", Reason.RUN_NOT_INTERRUPTED)


async def test_how_far_runs_are(store: str) -> None:
    """Those asked for, of any tenant; those that are gone are left out."""
    async with opened(store) as kept:
        await kept.start("run_1")
        await kept.start("run_1", tenant=OTHER)
        await kept.recover("run_1", OTHER)
        wanted = [(TENANT, "run_1"), (OTHER, "run_1"), (TENANT, "run_x")]
        assert await kept.store.standing(wanted) == {
            (TENANT, "run_1"): Standing(3, 1),
            (OTHER, "run_1"): Standing(4, 2),
        }
        assert await kept.store.standing([]) == {}


async def _refused(kept: Kept, request_id: str, reason: Reason) -> AgentServiceError:
    with pytest.raises(AgentServiceError) as caught:
        await kept.retry(request_id=request_id)
    assert caught.value.reason is reason
    return caught.value


async def test_a_stale_owner_does_not_lengthen_the_lease_of_the_next(store: str) -> None:
    """It is told that its claim is stale, and the run's lease stays as the present owner made it."""
    async with opened(store) as kept:
        await kept.start()
        stale = await kept.claim()
        assert await kept.recover()
        lease = (await kept.run()).lease_expire_time
        assert await kept.store.renew([stale], 100 * LEASE) == (stale,)
        assert (await kept.run()).lease_expire_time == lease
