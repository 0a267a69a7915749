"""What every store of runs guarantees, II: moves, owners, receipts, events and what is published."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import pytest

from agent_service.domain.compaction import CompactionRecord, compact
from agent_service.domain.draft import Draft, Snapshot
from agent_service.domain.errors import AgentServiceError, Reason, StaleClaimError
from agent_service.domain.event import Compaction, Event, MessageStored, RunStopped, StepRestarted
from agent_service.domain.message import UserContent
from agent_service.domain.moves import cancel, finish_calls, record_answer, restart_step, start_calls
from agent_service.domain.policy import Strategy
from agent_service.domain.run import Claim, RunStatus
from agent_service.domain.submit import submit
from agent_service.engine.loop import moved
from tests.store_contract import (
    OTHER,
    SECOND,
    TENANT,
    Clock,
    Kept,
    approval,
    approves,
    client,
    new_run,
    open_store,
    opened,
    returns,
    server,
    step,
    submitted,
    unchanged,
)

pytestmark = pytest.mark.anyio


async def test_a_move_that_raises_stores_nothing(store: str) -> None:
    """Whatever it did before it raised is gone; its error reaches the caller as it is; the next move works."""

    def half(draft: Draft) -> NoReturn:
        cancel(draft)
        raise error

    async with opened(store) as kept:
        await kept.paused(client("call_1"))
        before = await kept.store.get_run(TENANT, "run_1"), await kept.events(), await kept.messages(), len(kept.told)
        for error in (AgentServiceError(Reason.INVALID_FIELD, "no"), ValueError("broken"), KeyError("odd")):
            with pytest.raises(type(error)) as raised:
                await kept.store.move(TENANT, "run_1", half)
            assert raised.value is error
        after = await kept.store.get_run(TENANT, "run_1"), await kept.events(), await kept.messages(), len(kept.told)
        assert after == before
        await kept.store.move(TENANT, "run_1", moved(cancel))
        assert (await kept.run()).status is RunStatus.CANCELLED


async def test_a_move_that_changes_nothing_stores_nothing(store: str) -> None:
    """Looking at a run, or cancelling one that is over, neither changes it nor makes an event."""
    async with opened(store) as kept:
        await kept.start()
        await kept.store.move(TENANT, "run_1", moved(cancel))
        before, told = await kept.store.get_run(TENANT, "run_1"), len(kept.told)
        kept.clock.now += 1
        assert await kept.store.move(TENANT, "run_1", unchanged) == before
        assert (await kept.store.move(TENANT, "run_1", moved(cancel))).run == before.run
        assert await kept.store.get_run(TENANT, "run_1") == before
        assert len(kept.told) == told


async def test_moves_of_a_run_happen_one_after_the_other(store: str) -> None:
    """Of twenty submits at once, each for another call, each sees what the others left, and exactly one resumes."""
    async with opened(store) as kept:
        await kept.paused(*(client(f"call_{n}") for n in range(20)))
        many = [kept.submit(returns(f"call_{n}"), request_id=f"req_{n}") for n in range(20)]
        accepted = await asyncio.gather(*many)
        assert sorted(len(each.receipt.remaining) for each in accepted) == list(range(20))
        assert [each.resumed for each in accepted].count(True) == 1
        assert len({each.sequence for each in accepted}) == 20
        run = await kept.run()
        assert (run.status, run.epoch) == (RunStatus.RUNNING, 2)


async def test_of_equal_submits_at_once_one_is_taken(store: str) -> None:
    """The others get its receipt, nothing else is stored, and the run is resumed once."""
    async with opened(store) as kept:
        await kept.paused(client("call_1"))
        accepted = await asyncio.gather(*(kept.submit(returns("call_1")) for _ in range(10)))
        assert len({(each.receipt, each.sequence) for each in accepted}) == 1
        assert [each.fresh for each in accepted].count(True) == 1
        assert [each.resumed for each in accepted].count(True) == 1
        assert len(await kept.messages()) == 3


async def test_of_different_outcomes_at_once_one_wins(store: str) -> None:
    """The others are told that the call has an outcome; the conversation holds the winner's only."""
    async with opened(store) as kept:
        await kept.paused(client("call_1"))
        many = [kept.submit(returns("call_1", f"text {n}"), request_id=f"req_{n}") for n in range(10)]
        results = await asyncio.gather(*many, return_exceptions=True)
        lost = [each for each in results if isinstance(each, AgentServiceError)]
        assert [each.reason for each in lost] == [Reason.CALL_ALREADY_SETTLED] * 9
        assert len(await kept.messages()) == 3


async def test_of_starts_at_once_in_one_conversation_one_wins(store: str) -> None:
    """The others are told who is running."""
    async with opened(store) as kept:
        await kept.start()
        await kept.answer(text="Hi.")
        many = [kept.start(f"run_{n}", "conv_run_1") for n in range(2, 12)]
        results = await asyncio.gather(*many, return_exceptions=True)
        started = [each for each in results if not isinstance(each, BaseException)]
        busy = [each for each in results if isinstance(each, AgentServiceError)]
        assert len(started) == 1
        assert {each.metadata["run_id"] for each in busy} == {started[0].run.run_id}
        assert len(await kept.messages()) == 3


async def test_a_preview_says_what_the_move_would_and_stores_nothing(store: str) -> None:
    """It returns the result and the change; run, events, messages, receipts and watchers do not learn of it."""
    async with opened(store) as kept:
        await kept.paused(client("call_1"))
        before = await kept.store.get_run(TENANT, "run_1"), await kept.events(), await kept.messages(), len(kept.told)
        submission = submitted(returns("call_1"), request_id="req_1")
        result, change = await kept.store.preview(
            TENANT, "run_1", lambda draft: submit(draft, submission, SECOND), call_ids=("call_1",)
        )
        assert result.fresh
        assert change is not None
        assert change.run.status is RunStatus.RUNNING
        after = await kept.store.get_run(TENANT, "run_1"), await kept.events(), await kept.messages(), len(kept.told)
        assert after == before
        accepted = await kept.submit(returns("call_1"), request_id="req_1")
        assert (accepted.receipt, accepted.sequence) == (result.receipt, result.sequence)
        assert await kept.store.preview(TENANT, "run_1", unchanged) == (accepted.snapshot, None)


async def test_an_owner_writes_only_with_the_epoch_of_the_run(store: str) -> None:
    """After a cancel, a recovery or a resume by another, the former owner is refused and changes nothing."""
    async with opened(store) as kept:
        for run_id, taken_away in (("run_1", "cancel"), ("run_2", "recovery"), ("run_3", "resume")):
            await kept.start(run_id)
            claim = await kept.claim(run_id)
            if taken_away == "cancel":
                await kept.store.move(TENANT, run_id, moved(cancel))
            elif taken_away == "recovery":
                assert await kept.recover(run_id)
            else:
                await kept.answer(client("call_1"), run_id=run_id)
                await kept.submit(returns("call_1"), run_id=run_id)
            before = await kept.events(run_id)
            for epoch in (claim.epoch, claim.epoch + 2, 0):
                with pytest.raises(StaleClaimError):
                    await kept.store.owner_move(Claim(TENANT, run_id, epoch), moved(cancel))
            assert await kept.events(run_id) == before
            await kept.store.owner_move(Claim(TENANT, run_id, claim.epoch + 1), unchanged)


async def test_the_draft_holds_the_last_steps_calls_and_those_named(store: str) -> None:
    """Calls of earlier steps are there when named; calls of another run never are."""
    async with opened(store) as kept:
        await kept.paused(client("first"))
        await kept.submit(returns("first"))
        await kept.answer(client("second"))
        await kept.paused(client("foreign"), run_id="run_2")

        def known(draft: Draft) -> list[str]:
            return [name for name in ("first", "second", "foreign") if draft.call(name) is not None]

        named = ("first", "foreign", "nothing")
        assert await kept.store.move(TENANT, "run_1", known) == ["second"]
        assert await kept.store.move(TENANT, "run_1", known, call_ids=named) == ["first", "second"]
        assert (await kept.store.preview(TENANT, "run_1", known, call_ids=named))[0] == ["first", "second"]
        assert [call.tool_call_id for call in (await kept.store.get_run(TENANT, "run_1")).calls] == ["second"]


async def test_any_number_of_calls_may_be_named(store: str) -> None:
    """Three hundred thousand ids are looked up like one."""
    async with opened(store) as kept:
        await kept.paused(client("call_1"))
        await kept.submit(returns("call_1"))
        names = (*(f"call_x{n}" for n in range(300_000)), "call_1")
        found = await kept.store.move(TENANT, "run_1", lambda draft: draft.call("call_1"), call_ids=names)
        assert found is not None


async def test_calls_come_in_the_models_order(store: str) -> None:
    """Whatever their ids are and whichever was answered first."""
    async with opened(store) as kept:
        names = [f"call_{letter}" for letter in "zaMb9"]
        await kept.paused(*map(client, names))
        await kept.submit(returns(names[3]), returns(names[1]))
        snapshot = await kept.store.get_run(TENANT, "run_1")
        assert [call.tool_call_id for call in snapshot.calls] == names
        stopped = (await kept.events())[-1].body
        assert isinstance(stopped, RunStopped)
        assert [call.tool_call_id for call in stopped.remaining] == [names[0], names[2], names[4]]


async def test_a_receipt_is_found_by_its_request_id_only(store: str) -> None:
    """In its own run, for as long as the run is stored; other ids, other runs and no id find none."""
    async with opened(store) as kept:
        await kept.paused(client("call_1"))
        accepted = await kept.submit(returns("call_1"), request_id="req_1")
        await kept.paused(client("call_2"), run_id="run_2")

        async def receipt_of(run_id: str, request_id: str) -> object:
            receipt = await kept.store.move(TENANT, run_id, lambda draft: draft.receipt, request_id=request_id)
            return receipt and (receipt.request_id, receipt.sequence, receipt.body)

        wanted = ("req_1", accepted.sequence, accepted.receipt)
        assert await receipt_of("run_1", "req_1") == wanted
        assert await receipt_of("run_1", "req_2") is None
        assert await receipt_of("run_1", "") is None
        assert await receipt_of("run_2", "req_1") is None
        await kept.store.move(TENANT, "run_1", moved(cancel))
        assert await receipt_of("run_1", "req_1") == wanted


async def test_time_is_that_of_the_store(store: str) -> None:
    """Events, messages and outcomes carry the store's clock at their move; the run remembers the last one."""
    async with opened(store) as kept:
        await kept.paused(client("call_1"))
        kept.clock.now = 7_777
        assert kept.store.now() == 7_777
        assert (await kept.submit(returns("call_1"))).snapshot.calls[0].settle_time == 7_777
        run = await kept.run()
        assert (run.create_time, run.update_time) == (1_000, 7_777)
        assert (await kept.messages())[-1].create_time == 7_777
        assert {event.create_time for event in await kept.events()} == {1_000, 7_777}


async def _long_run(kept: Kept) -> None:
    """A run with about everything that makes events."""
    await kept.start()
    await kept.store.owner_move(await kept.claim(), moved(restart_step, 1, "the answer broke off"))
    summary = CompactionRecord(Strategy.SUMMARY, "Long ago.", 1, 9, 3, 1)
    await kept.store.owner_move(await kept.claim(), moved(compact, summary))
    await kept.answer(server("look"), client("ask"), approval("send"))
    for move in (moved(start_calls, ("look",)), moved(finish_calls, ())):
        await kept.store.owner_move(await kept.claim(), move)
    await kept.submit(returns("ask"), request_id="req_1")
    await kept.submit(approves("send"), request_id="req_2")
    await kept.store.move(TENANT, "run_1", moved(cancel))


async def test_events_are_numbered_without_a_gap(store: str) -> None:
    """1, 2, 3, ... up to the run's last number, over starts, steps, pauses, submits and the end."""
    async with opened(store) as kept:
        await _long_run(kept)
        events = await kept.events()
        run = await kept.run()
        assert [event.sequence for event in events] == list(range(1, run.last_sequence + 1))
        assert {event.run_id for event in events} == {"run_1"}
        assert {StepRestarted, Compaction} <= {type(event.body) for event in events}
        assert [type(event.body) for event in events if getattr(event.body, "final", False)] == [RunStopped]


async def test_events_are_read_in_pages(store: str) -> None:
    """A page begins after the cursor and holds at most `limit`; pages of every size give the same events."""
    async with opened(store) as kept:
        await _long_run(kept)
        everything = await kept.events()
        for size in (1, 2, 5):
            read: list[Event] = []
            while page := await kept.store.events(TENANT, "run_1", len(read), size):
                assert len(page) <= size
                read.extend(page)
            assert read == everything
        for after in range(len(everything) + 1):
            assert await kept.store.events(TENANT, "run_1", after, 1000) == tuple(everything[after:])
        assert await kept.store.events(TENANT, "run_1", 2**31, 10) == ()


@pytest.mark.parametrize("letter", ["a", "語"], ids=["ascii", "three_bytes"])
async def test_a_page_ends_after_about_a_mebibyte(store: str, letter: str) -> None:
    """Counted in bytes of UTF-8. A larger row is a page by itself, so reading always gets on."""
    text = letter * (400_000 // len(letter.encode()))
    async with opened(store) as kept:
        await kept.start(text=text * 4)
        await kept.answer(*(client(f"call_{n}") for n in range(5)))
        await kept.submit(*(returns(f"call_{n}", text) for n in range(5)))
        pages, position = [], 0
        while page := await kept.store.messages(TENANT, "conv_run_1", position, 1000):
            pages.append(len(page))
            position = page[-1].position
        assert pages == [1, 4, 2]
        events: list[Event] = []
        cursor = 0
        while batch := await kept.store.events(TENANT, "run_1", cursor, 1000):
            big = [e for e in batch if isinstance(e.body, MessageStored) and text in str(e.body.message.content)]
            assert len(big) <= 3
            events.extend(batch)
            cursor = batch[-1].sequence
        assert cursor == (await kept.run()).last_sequence
        assert len(events) == cursor


async def test_an_event_about_a_message_holds_that_message(store: str) -> None:
    """In a second run of a conversation too: the same values that the conversation lists, in the same order."""
    async with opened(store) as kept:
        await kept.start()
        await kept.answer(text="Hi.", reasoning="Hm.")
        await kept.start("run_2", "conv_run_1", text="Again")
        await kept.answer(client("call_1"), run_id="run_2")
        messages = await kept.messages()
        of_events = [
            event.body.message
            for run_id in ("run_1", "run_2")
            for event in await kept.events(run_id)
            if isinstance(event.body, MessageStored)
        ]
        assert of_events == messages
        assert next(m.content for m in messages if m.run_id == "run_2") == UserContent("Again")


async def test_what_is_published_is_what_is_stored(store: str) -> None:
    """Each write's events are told once, before the write returns, in order; refused writes tell nothing."""
    async with opened(store) as kept:
        await _long_run(kept)
        with pytest.raises(StaleClaimError):
            await kept.store.owner_move(Claim(TENANT, "run_1", 0), moved(cancel))
        with pytest.raises(AgentServiceError):
            await kept.submit(returns("call_x"))
        await kept.start(tenant=OTHER)
        told = [event for tenant, run_id, events in kept.told for event in events if tenant == TENANT]
        assert told == await kept.events()
        assert {run_id for _, run_id, _ in kept.told} == {"run_1"}
        last = kept.told[-1]
        assert last == (OTHER, "run_1", tuple(await kept.events(tenant=OTHER)))


async def test_settling_a_run_by_the_next_start_is_published_for_both_runs(store: str) -> None:
    """First the end of the interrupted run, then the beginning of the new one."""
    async with opened(store) as kept:
        await kept.start()
        await kept.interrupt()
        kept.told.clear()
        await kept.start("run_2", "conv_run_1")
        assert [run_id for _, run_id, _ in kept.told] == ["run_1", "run_2"]
        assert kept.told[0][2] == tuple((await kept.events("run_1"))[-1:])
        assert kept.told[1][2] == tuple(await kept.events("run_2"))


async def test_what_is_published_can_be_read(store: str) -> None:
    """Whoever is told of events finds them in the store, never before they are committed."""
    reads: list[tuple[int, asyncio.Future[Snapshot]]] = []

    def publish(tenant: str, run_id: str, events: tuple[Event, ...]) -> None:
        reads.append((events[-1].sequence, asyncio.ensure_future(opened_store.get_run(tenant, run_id))))

    opened_store = await open_store(store, publish, Clock())
    await opened_store.start(TENANT, new_run())
    await opened_store.owner_move(Claim(TENANT, "run_1", 1), moved(record_answer, step(client("call_1"))))
    await opened_store.move(TENANT, "run_1", moved(cancel))
    assert len(reads) == 3
    assert all([(await snapshot).run.last_sequence >= sequence for sequence, snapshot in reads])
    await opened_store.close()
