"""The SQL of the work of memory agents: each edit is of the domain, and is written with what causes it."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from dataclasses import astuple

from agent_service.domain.draft import Change
from agent_service.domain.memory_work import (
    DueWork,
    MemoryWork,
    WorkTakenError,
    completed,
    holds,
    put_off,
    stopped,
    taken,
)
from agent_service.domain.run import Run, RunStatus
from agent_service.stores import codec
from agent_service.stores.records import WORK_COLUMNS

_PLACES = ", ".join("?" * 10)


def note_stop(db: sqlite3.Connection, tenant: str, conversation_key: int, change: Change) -> None:
    """A run stopped whose conversation memory agents read, or that is the run of one."""
    run, now = change.run, change.run.update_time
    if run.memory_plan is not None and run.status is RunStatus.COMPLETED:
        for agent_id in run.memory_plan.memory_agent_ids:
            work = _find(db, conversation_key, agent_id) or MemoryWork(agent_id)
            work = completed(work, run.memory_plan, run, change.next_position - 1, now)
            _put(db, tenant, conversation_key, work)
    if run.memory_part is not None:
        for key, work in _of_runs(db, tenant, [run.run_id]):
            _put(db, tenant, key, stopped(work, run, now))
        if not holds(run.status):
            db.execute(
                "DELETE FROM memory_work WHERE tenant = ? AND run_id = ? AND run_id <> '' AND conversation_key IS NULL",
                (tenant, run.run_id),
            )


def take(db: sqlite3.Connection, tenant: str, run: Run) -> None:
    """The memory run starts. Raises WorkTakenError."""
    part = run.memory_part
    if part is None:
        return
    row = db.execute(
        "SELECT conversation_key FROM conversations WHERE tenant = ? AND conversation_id = ? AND create_time = ?",
        (tenant, part.conversation_id, part.conversation_time),
    ).fetchone()
    work = taken(_find(db, row[0], part.memory_agent_id) if row else None, run)
    if db.execute(
        "SELECT 1 FROM memory_work WHERE tenant = ? AND memory_agent_id = ? AND run_id <> ''",
        (tenant, part.memory_agent_id),
    ).fetchone():
        raise WorkTakenError(run.run_id)
    _put(db, tenant, row[0], work)


def forget(db: sqlite3.Connection, tenant: str, conversation_key: int, run_ids: Collection[str], now: int) -> None:
    """A conversation is deleted with its runs, of which those of memory agents may not have been settled. A memory run
    about it goes on."""
    for key, work in _of_runs(db, tenant, run_ids):
        _put(db, tenant, key, put_off(work.without_run, now))
    about = db.execute(
        "SELECT r.run_id, r.status FROM memory_work w JOIN runs r ON r.tenant = w.tenant AND r.run_id = w.run_id "
        "WHERE w.conversation_key = ?",
        (conversation_key,),
    ).fetchall()
    for run_id, status in about:
        if holds(RunStatus(status)):
            db.execute(
                "UPDATE memory_work SET conversation_key = NULL WHERE conversation_key = ? AND run_id = ?",
                (conversation_key, run_id),
            )
    db.execute("DELETE FROM memory_work WHERE conversation_key = ?", (conversation_key,))


def postpone(db: sqlite3.Connection, due: DueWork, now: int) -> None:
    """The work cannot begin, if it is still as it was."""
    row = db.execute(
        "SELECT conversation_key FROM conversations WHERE tenant = ? AND conversation_id = ?",
        (due.tenant, due.conversation_id),
    ).fetchone()
    if row and _find(db, row[0], due.work.memory_agent_id) == due.work:
        _put(db, due.tenant, row[0], put_off(due.work, now))


_NEXT = """(
    SELECT n.rowid FROM memory_work n WHERE n.run_id = '' AND n.due_position > n.through_position{}
    ORDER BY n.tenant, n.memory_agent_id, n.not_before LIMIT 1)"""
_AFTER = " AND (n.tenant, n.memory_agent_id) > (w.tenant, w.memory_agent_id)"
# One row of the index for each memory agent, however much is due to it.
_OLDEST = f"""
    WITH RECURSIVE oldest (work_key) AS (
        SELECT {_NEXT.format("")} UNION ALL
        SELECT {_NEXT.format(_AFTER)} FROM oldest CROSS JOIN memory_work w ON w.rowid = oldest.work_key)"""


def due_work(db: sqlite3.Connection, now: int, limit: int) -> tuple[DueWork, ...]:
    """What is due, and whose memory run is interrupted long enough, if this program can read that."""
    columns = f"w.tenant, c.conversation_id, c.create_time, {WORK_COLUMNS}"
    idle = db.execute(
        f"{_OLDEST} SELECT {columns} FROM oldest CROSS JOIN memory_work w ON w.rowid = oldest.work_key "
        "JOIN conversations c USING (conversation_key) WHERE w.not_before <= ?1 AND NOT EXISTS ("
        "SELECT 1 FROM memory_work b "
        "WHERE b.tenant = w.tenant AND b.memory_agent_id = w.memory_agent_id AND b.run_id <> '') "
        "ORDER BY w.not_before LIMIT ?2",
        (now, limit),
    ).fetchall()
    interrupted = db.execute(
        f"SELECT {columns} FROM memory_work w JOIN conversations c USING (conversation_key) "
        "CROSS JOIN runs r ON r.tenant = w.tenant AND r.run_id = w.run_id "
        "WHERE w.run_id <> '' AND w.not_before <= ?1 AND r.status = 'interrupted' AND r.codec <= ?3 LIMIT ?2",
        (now, limit, codec.CODEC_VERSION),
    ).fetchall()
    return tuple(DueWork(row[0], row[1], row[2], MemoryWork(*row[3:])) for row in (*idle, *interrupted))


def _find(db: sqlite3.Connection, conversation_key: int, agent_id: str) -> MemoryWork | None:
    row = db.execute(
        f"SELECT {WORK_COLUMNS} FROM memory_work w WHERE conversation_key = ? AND memory_agent_id = ?",
        (conversation_key, agent_id),
    ).fetchone()
    return MemoryWork(*row) if row else None


def _of_runs(db: sqlite3.Connection, tenant: str, run_ids: Collection[str]) -> list[tuple[int, MemoryWork]]:
    rows = db.execute(
        f"SELECT conversation_key, {WORK_COLUMNS} FROM json_each(?2) CROSS JOIN memory_work w "
        "ON w.tenant = ?1 AND w.run_id = value AND w.run_id <> '' WHERE conversation_key IS NOT NULL",
        (tenant, codec.encode(list(run_ids))),
    ).fetchall()
    return [(row[0], MemoryWork(*row[1:])) for row in rows]


def _put(db: sqlite3.Connection, tenant: str, conversation_key: int, work: MemoryWork) -> None:
    db.execute(
        f"INSERT INTO memory_work VALUES ({_PLACES}) ON CONFLICT (conversation_key, memory_agent_id) DO UPDATE SET "
        "finished = excluded.finished, through_position = excluded.through_position, "
        "due_position = excluded.due_position, parent_run_id = excluded.parent_run_id, run_id = excluded.run_id, "
        "tries = excluded.tries, not_before = excluded.not_before",
        (tenant, conversation_key, *astuple(work)),
    )
