"""What stores guarantee of the work of memory agents, beside what the random interleavings check."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from agent_service.domain.memory_work import FIRST_DELAY, MAX_TRIES, MemoryWork, completed, put_off
from agent_service.domain.run import MemoryPlan, RunStatus
from agent_service.stores import memory_work, postgres_rows, sqlite_rows, sqlite_work
from agent_service.stores.sqlite_thread import open_database
from agent_service.stores.urls import is_postgres
from tests.registry_contract import ALL, Kept, opened
from tests.stored import rows

pytestmark = pytest.mark.anyio

PLAN = MemoryPlan(("keeper",), 1)


async def test_a_run_without_a_plan_costs_nothing(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No store executes anything for memory agents when it ends, however it ends."""

    def never(*_: Any) -> None:
        raise AssertionError("memory work was looked at")

    monkeypatch.setattr(memory_work.Works, "note_stop", never)
    monkeypatch.setattr(sqlite_rows, "note_stop", never)
    monkeypatch.setattr(postgres_rows, "note_stops", never)
    async with opened(store) as kept:
        await kept.completed("run_1")
        await kept.start("run_2")
        await kept.cancelled("run_2")
        await kept.start("run_3", memory_plan=PLAN)
        with pytest.raises(AssertionError, match="looked at"):
            await kept.answer("run_3", text="Done.")


def test_a_look_reads_no_more_than_what_is_due(tmp_path: Path) -> None:
    """Its statements go through indexes that hold only what is due or under way."""
    plans: list[str] = []
    with closing(open_database(tmp_path / "runs.sqlite3")) as db:

        class Explaining:
            def execute(self, sql: str, values: Any) -> sqlite3.Cursor:
                found = db.execute(f"EXPLAIN QUERY PLAN {sql}", values).fetchall()
                plans.extend(row[3] for row in found)
                return db.execute(sql, values)

        explaining: Any = Explaining()
        assert sqlite_work.due_work(explaining, 1, ALL) == ()
    scanned = [plan for plan in plans if plan.startswith("SCAN")]
    # What is under way is at most one row for each memory agent; what is due is found from its first row on, agent by
    # agent, already in order.
    assert set(scanned) <= {
        "SCAN w USING INDEX memory_work_of_run",
        "SCAN n USING INDEX memory_work_due",
        "SCAN CONSTANT ROW",
        "SCAN oldest",
    }
    assert any("SEARCH n USING INDEX memory_work_due" in plan for plan in plans), plans


async def test_the_oldest_work_comes_first_and_no_more_than_asked_for(store: str) -> None:
    """Of all tenants."""
    async with opened(store) as kept:
        for number, tenant in enumerate(("default", "other", "default")):
            kept.clock.now += 1
            plan = MemoryPlan((f"keeper_{number}",), 1)
            await kept.completed(f"run_{number}", tenant=tenant, memory_plan=plan)
        found = await kept.store.memory_work(2)
        assert [(each.tenant, each.conversation_id) for each in found] == [
            ("default", "conv_run_0"),
            ("other", "conv_run_1"),
        ]


async def test_a_memory_agent_with_much_to_read_holds_up_no_other_one(store: str) -> None:
    """However long it has been due to that one: each memory agent is told with what is due to it longest."""
    async with opened(store) as kept:
        for number, keeper in enumerate(("busy", "busy", "quick", "busy", "quick")):
            kept.clock.now += 1
            await kept.completed(f"run_{number}", memory_plan=MemoryPlan((keeper,), 1))
        found = await kept.store.memory_work(2)
        assert [(each.work.memory_agent_id, each.conversation_id) for each in found] == [
            ("busy", "conv_run_0"),
            ("quick", "conv_run_2"),
        ]
        await kept.store.postpone(found[0])
        found = await kept.store.memory_work(2)
        assert [each.conversation_id for each in found] == ["conv_run_1", "conv_run_2"]


async def test_work_that_cannot_begin_is_put_off_unless_it_has_changed(store: str) -> None:
    """What somebody else has taken or counted meanwhile is left alone."""
    async with opened(store) as kept:
        await kept.completed("run_1", memory_plan=PLAN)
        (due,) = await kept.store.memory_work(ALL)
        await kept.completed("run_2", "conv_run_1", memory_plan=PLAN)
        await kept.store.postpone(due)
        (due,) = await kept.store.memory_work(ALL)
        await kept.store.postpone(due)
        assert await kept.store.memory_work(ALL) == ()
        kept.clock.now += FIRST_DELAY
        (again,) = await kept.store.memory_work(ALL)
        assert (again.work.tries, again.work.due_position) == (1, 4)


def test_what_failed_too_often_waits_for_the_next_nth_run() -> None:
    """It is not tried by time any more, until more is due."""
    run: Any = None
    work = MemoryWork("keeper", due_position=2)
    for _ in range(MAX_TRIES):
        work = put_off(work, 0)
    assert work.not_before > 10**18 * 9
    plan = MemoryPlan(("keeper",), 2)
    work = completed(work, plan, run, 4, 5)
    assert work.given_up
    run = type("Run", (), {"run_id": "run_2", "status": RunStatus.COMPLETED})
    work = completed(work, plan, run, 6, 7)
    assert (work.tries, work.not_before, work.due_position) == (0, 7, 6)


async def _two_due(kept: Kept) -> None:
    for number in (1, 2):
        await kept.completed(f"run_{number}", memory_plan=PLAN)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE memory_work SET due_position = 1", "never goes back"),
        ("UPDATE memory_work SET through_position = -1", "never goes back"),
        ("UPDATE memory_work SET run_id = 'mem_' || conversation_key", "memory_work_under_way|UNIQUE"),
        ("DELETE FROM conversations", "(?i)foreign key"),
    ],
)
async def test_the_database_itself_refuses(shared_store: str, statement: str, message: str) -> None:
    """What was read never goes back, one agent has one memory run, and work is about a conversation."""
    async with opened(shared_store) as kept:
        await _two_due(kept)
    before = await rows(shared_store, "SELECT * FROM memory_work")
    with pytest.raises((sqlite3.IntegrityError, asyncpg.IntegrityConstraintViolationError), match=message):
        await _other_program(shared_store, statement)
    assert await rows(shared_store, "SELECT * FROM memory_work") == before


async def _other_program(store: str, statement: str) -> None:
    if is_postgres(store):
        database = await asyncpg.connect(store, server_settings={"search_path": "agent_service"})
        try:
            await database.execute(statement)
        finally:
            await database.close()
        return
    with closing(sqlite3.connect(store)) as file:
        file.execute("PRAGMA foreign_keys = ON")
        file.execute(statement)
        file.commit()
