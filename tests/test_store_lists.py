"""What every store guarantees of lists of runs and of waiting calls: filters, order, pages, tenants."""

from __future__ import annotations

from typing import Any

import pytest

from agent_service.domain.registry import CallFilter, Page, RunFilter, WaitingCall
from agent_service.domain.run import RunStatus
from agent_service.domain.tool import PendingCall, PendingKind
from agent_service.domain.values import replace
from tests.registry_contract import ALL, Kept, approval, client, opened, server
from tests.store_contract import OTHER, TENANT

pytestmark = pytest.mark.anyio

ODD = {"team.a:b-c_d": 'it\'s "odd" 100% \\ $.x', "city": "Zürich 🏔", "empty": ""}


async def _some_runs(kept: Kept) -> None:
    """One run of each kind, a hundred nanoseconds apart from 1000 on."""
    await kept.completed("done", labels={"team": "a", "env": "prod"})
    kept.clock.now = 1_100
    await kept.paused("waits", client("call_1"), agent_id="sales", labels={"team": "a"})
    kept.clock.now = 1_200
    await kept.start("works", labels={"team": "b"})
    kept.clock.now = 1_300
    await kept.start("lost", labels=ODD)
    await kept.interrupted("lost")
    kept.clock.now = 1_400
    await kept.start("ended", "conv_done", agent_id="sales", labels={"team": "a", "env": "test"})
    await kept.cancelled("ended")


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ({}, ["done", "waits", "works", "lost", "ended"]),
        ({"statuses": frozenset({RunStatus.PAUSED})}, ["waits"]),
        ({"statuses": frozenset({RunStatus.COMPLETED, RunStatus.CANCELLED})}, ["done", "ended"]),
        ({"statuses": frozenset({RunStatus.RUNNING, RunStatus.INTERRUPTED})}, ["works", "lost"]),
        ({"statuses": frozenset({RunStatus.EXPIRED})}, []),
        ({"agent_id": "sales"}, ["waits", "ended"]),
        ({"agent_id": "sale"}, []),
        ({"conversation_id": "conv_done"}, ["done", "ended"]),
        ({"conversation_id": "nowhere"}, []),
        ({"labels": (("team", "a"),)}, ["done", "waits", "ended"]),
        ({"labels": (("env", "prod"), ("team", "a"))}, ["done"]),
        ({"labels": (("env", "prod"), ("team", "b"))}, []),
        ({"labels": (("team", ""),)}, []),
        ({"create_from": 1_200}, ["works", "lost", "ended"]),
        ({"create_before": 1_200}, ["done", "waits"]),
        ({"create_from": 1_100, "create_before": 1_101}, ["waits"]),
        ({"agent_id": "sales", "labels": (("env", "test"),), "conversation_id": "conv_done"}, ["ended"]),
        *[({"labels": ((key, value),)}, ["lost"]) for key, value in ODD.items()],
    ],
)
async def test_runs_are_chosen_by_filters_that_must_all_hold(
    store: str, which: dict[str, Any], expected: list[str]
) -> None:
    """Statuses, agent, conversation, labels of any text, and a span of time with its start and without its end."""
    async with opened(store) as kept:
        await _some_runs(kept)
        assert await kept.run_ids(**which) == expected
        newest_first = await kept.run_ids(page=Page(ALL, descending=True), **which)
        assert newest_first == expected[::-1]


async def test_a_listed_run_is_the_run_as_it_is_now(store: str) -> None:
    """With the calls of its last step, as if it were read by its id."""
    async with opened(store) as kept:
        await kept.paused("run_1", client("call_1"), server("call_2"), client("call_3"))
        await kept.completed("run_2")
        listed = await kept.store.list_runs(TENANT, RunFilter(), Page(ALL))
        assert list(listed) == [await kept.store.get_run(TENANT, run_id) for run_id in ("run_1", "run_2")]
        assert [call.tool_call_id for call in listed[0].calls] == ["call_1", "call_2", "call_3"]


@pytest.mark.parametrize("descending", [False, True])
async def test_pages_of_runs_stay_right_while_runs_come_and_go(store: str, descending: bool) -> None:
    """Each run that is there all the time is seen exactly once; runs of one moment are ordered by id."""
    async with opened(store) as kept:
        for number, time in enumerate([100, 200, 200, 200, 300, 400]):
            kept.clock.now = time
            await kept.completed(f"run_{number}")
        page = Page(2, descending)
        seen: list[str] = []
        for _ in range(3):
            found = await kept.store.list_runs(TENANT, RunFilter(), page)
            seen += [snapshot.run.run_id for snapshot in found]
            last = found[-1].run
            page = replace(page, time=last.create_time, id=last.run_id)
            kept.clock.now += 1
            await kept.completed(f"new_{len(seen)}")
            await kept.store.delete_run(TENANT, last.run_id)
        assert seen == [f"run_{number}" for number in (range(5, -1, -1) if descending else range(6))]
        rest = await kept.run_ids(page=replace(page, limit=ALL))
        assert rest == ([] if descending else ["new_2", "new_4", "new_6"])


async def test_a_page_begins_strictly_after_its_cursor_also_among_runs_of_one_moment(store: str) -> None:
    """The cursor is a place in the order and need not be a run that is still there."""
    async with opened(store) as kept:
        for run_id in ("b", "d", "f"):
            await kept.start(run_id)
        after = {at: await kept.run_ids(page=Page(ALL, False, 1_000, at)) for at in "abcdf"}
        assert after == {"a": ["b", "d", "f"], "b": ["d", "f"], "c": ["d", "f"], "d": ["f"], "f": []}
        before = {at: await kept.run_ids(page=Page(ALL, True, 1_000, at)) for at in "bcdg"}
        assert before == {"b": [], "c": ["b"], "d": ["b"], "g": ["f", "d", "b"]}
        assert await kept.run_ids(page=Page(ALL, False, 999, "z")) == ["b", "d", "f"]
        assert await kept.run_ids(page=Page(2)) == ["b", "d"]


async def _some_calls(kept: Kept) -> None:
    """Five calls that wait in three runs, and others that do not."""
    kept.clock.now = 2_000
    await kept.paused("run_1", client("call_b"), client("call_a", "find"), server("call_s"))
    kept.clock.now = 3_000
    await kept.paused("run_2", approval("call_c"), client("call_d", "find"), agent_id="sales")
    kept.clock.now = 4_000
    await kept.paused("run_3", approval("call_e", "find"))
    await kept.completed("run_4")


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ({}, ["call_a", "call_b", "call_c", "call_d", "call_e"]),
        ({"agent_id": "sales"}, ["call_c", "call_d"]),
        ({"conversation_id": "conv_run_1"}, ["call_a", "call_b"]),
        ({"tool_name": "find"}, ["call_a", "call_d", "call_e"]),
        ({"tool_name": "fin"}, []),
        ({"kind": PendingKind.APPROVAL}, ["call_c", "call_e"]),
        ({"kind": PendingKind.CLIENT_EXECUTION}, ["call_a", "call_b", "call_d"]),
        ({"kind": PendingKind.APPROVAL, "tool_name": "find"}, ["call_e"]),
        ({"agent_id": "sales", "conversation_id": "conv_run_1"}, []),
    ],
)
async def test_waiting_calls_are_chosen_by_filters_that_must_all_hold(
    store: str, which: dict[str, Any], expected: list[str]
) -> None:
    """Over all runs, the longest waiting first and those of one moment by id, or the other way round."""
    async with opened(store) as kept:
        await _some_calls(kept)
        assert await kept.call_ids(**which) == expected
        assert await kept.call_ids(page=Page(ALL, descending=True), **which) == expected[::-1]


async def test_a_waiting_call_says_where_it_belongs(store: str) -> None:
    """The call as a pause shows it, its run, conversation and agent, and since when it waits."""
    async with opened(store) as kept:
        kept.clock.now = 3_000
        await kept.paused("run_2", server("call_s"), approval("call_c"), agent_id="sales")
        kept.clock.now = 9_000
        (waiting,) = await kept.store.waiting_calls(TENANT, CallFilter(), Page(ALL))
        call = PendingCall("call_c", "delete_file", "{}", PendingKind.APPROVAL, 1)
        assert waiting == WaitingCall(call, "run_2", "conv_run_2", "sales", 3_000)


async def test_a_call_leaves_the_list_when_it_is_settled_and_stays_while_it_waits(store: str) -> None:
    """A return, a decision, a cancel and a deletion take calls away at once; an interruption does not."""
    async with opened(store) as kept:
        await _some_calls(kept)
        await kept.returned("run_1", "call_b")
        assert await kept.call_ids() == ["call_a", "call_c", "call_d", "call_e"]
        await kept.interrupted("run_1")
        assert (await kept.run("run_1")).status is RunStatus.INTERRUPTED
        await kept.approved("run_2", "call_c")
        assert await kept.call_ids() == ["call_a", "call_d", "call_e"]
        await kept.cancelled("run_2")
        assert await kept.call_ids() == ["call_a", "call_e"]
        await kept.cancelled("run_3")
        await kept.store.delete_run(TENANT, "run_1")
        assert await kept.call_ids() == []


async def test_pending_calls_are_counted_over_all_tenants(store: str) -> None:
    """With the time since when the one that waits longest does; none is (0, 0)."""
    async with opened(store) as kept:
        assert await kept.store.pending_calls() == (0, 0)
        kept.clock.now = 3_000
        await kept.paused("run_1", client("call_1"), approval("call_2"))
        kept.clock.now = 2_000
        await kept.paused("run_2", client("call_3"), tenant=OTHER)
        assert await kept.store.pending_calls() == (3, 2_000)
        await kept.returned("run_1", "call_1")
        assert await kept.store.pending_calls() == (2, 2_000)


@pytest.mark.parametrize("descending", [False, True])
async def test_pages_of_calls_stay_right_while_calls_come_and_go(store: str, descending: bool) -> None:
    """A call that waits all the time is seen exactly once."""
    async with opened(store) as kept:
        for number, time in enumerate([100, 200, 200, 300]):
            kept.clock.now = time
            await kept.paused(f"run_{number}", client(f"call_{number}"))
        first = await kept.store.waiting_calls(TENANT, CallFilter(), Page(2, descending))
        last = first[-1]
        await kept.returned(last.run_id, last.call.tool_call_id)
        kept.clock.now = 400
        await kept.paused("new", client("new"))
        cursor = Page(ALL, descending, last.pending_time, last.call.tool_call_id)
        rest = await kept.call_ids(page=cursor)
        assert [waiting.call.tool_call_id for waiting in first] == (
            ["call_3", "call_2"] if descending else ["call_0", "call_1"]
        )
        assert rest == (["call_1", "call_0"] if descending else ["call_2", "call_3", "new"])


async def test_lists_show_nothing_of_another_tenant(store: str) -> None:
    """Equal run and conversation ids of two tenants are two runs and two conversations in every list."""
    async with opened(store) as kept:
        await kept.paused("run_1", client("call_1"))
        await kept.completed("run_1", tenant=OTHER)
        await kept.completed("run_2", "conv_run_1", tenant=OTHER)
        assert await kept.run_ids() == ["run_1"]
        assert await kept.run_ids(conversation_id="conv_run_1") == ["run_1"]
        assert await kept.run_ids(OTHER) == ["run_1", "run_2"]
        assert await kept.run_ids("nobody") == []
        assert await kept.call_ids() == ["call_1"]
        assert await kept.call_ids(OTHER) == []
        assert await kept.call_ids(OTHER, conversation_id="conv_run_1") == []
        assert [message.run_id for message in await kept.messages("conv_run_1", OTHER)] == ["run_1"] * 2 + ["run_2"] * 2
        assert len(await kept.messages("conv_run_1", run_id="run_1")) == 2
        assert await kept.messages("conv_run_1", run_id="run_2") == ()


async def _talk(kept: Kept) -> None:
    """A conversation of three runs; the one in the middle is interrupted with open calls, and settled by the last."""
    await kept.completed("run_1")
    await kept.start("run_2", "conv_run_1")
    await kept.answer("run_2", client("call_1"), server("call_2"))
    await kept.interrupted("run_2")
    await kept.completed("run_3", "conv_run_1")


@pytest.mark.parametrize("descending", [False, True])
async def test_messages_are_read_in_both_directions_page_by_page(store: str, descending: bool) -> None:
    """Each page goes on strictly after a position, and the last one is empty."""
    async with opened(store) as kept:
        await _talk(kept)
        seen: list[int] = []
        while page := await kept.store.messages(
            TENANT, "conv_run_1", seen[-1] if seen else 0, 3, descending=descending
        ):
            seen += [message.position for message in page]
            if descending and len(seen) == 3:
                await kept.completed("run_4", "conv_run_1")
        assert seen == ([8, 7, 6, 5, 4, 3, 2, 1] if descending else [1, 2, 3, 4, 5, 6, 7, 8])


@pytest.mark.parametrize("descending", [False, True])
async def test_messages_of_one_run_also_across_an_interruption(store: str, descending: bool) -> None:
    """The outcomes that a later start gave to the open calls of an interrupted run are its own messages."""
    async with opened(store) as kept:
        await _talk(kept)
        found = {
            run_id: [m.position for m in await kept.messages("conv_run_1", descending=descending, run_id=run_id)]
            for run_id in ("run_1", "run_2", "run_3", "run_4")
        }
        expected = {"run_1": [1, 2], "run_2": [3, 4, 5, 6], "run_3": [7, 8], "run_4": []}
        assert found == {run_id: places[::-1] if descending else places for run_id, places in expected.items()}
        page = await kept.store.messages(TENANT, "conv_run_1", 4, 1, descending=descending, run_id="run_2")
        assert [message.position for message in page] == [3 if descending else 5]


@pytest.mark.parametrize("descending", [False, True])
async def test_a_page_of_messages_ends_by_size(store: str, descending: bool) -> None:
    """After about 1 MiB, and with at least one message."""
    async with opened(store) as kept:
        await kept.completed("run_1", text="x" * 400_000)
        for number in range(2, 7):
            await kept.completed(f"run_{number}", "conv_run_1", text="x" * 400_000)
        page = await kept.messages("conv_run_1", descending=descending)
        assert len(page) == (6 if descending else 5)
        await kept.completed("run_7", "conv_run_1", text="y" * 3_000_000)
        large = await kept.store.messages(TENANT, "conv_run_1", 12, 1000)
        assert [message.position for message in large] == [13]
