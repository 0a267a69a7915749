"""The SQL of the work of memory agents in PostgreSQL: each edit is of the domain, and is written with what causes it.

Whoever writes locks rows of memory_work after conversations and runs, in the order of their key.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, NamedTuple

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
from agent_service.stores.postgres_hints import CLOCK
from agent_service.stores.records import WORK_COLUMNS

if TYPE_CHECKING:
    from agent_service.stores.postgres_database import Connection, Database
    from agent_service.stores.postgres_rows import Written


class _Key(NamedTuple):
    conversation_key: int
    memory_agent_id: str


_Rows = dict[_Key, tuple[str, MemoryWork]]
"""Tenant and work by key, locked."""


async def note_stops(db: Connection, writes: Sequence[Written]) -> None:
    """Runs stopped whose conversations memory agents read, or that are runs of theirs."""
    read = [w.conversation_key for w in writes if w.change.run.memory_plan is not None]
    own = [w.change.run.run_id for w in writes if w.change.run.memory_part is not None]
    rows = await _lock(db, read, own)
    for tenant, _, conversation_key, change in writes:
        _note(rows, tenant, conversation_key, change)
    await _put(db, rows)
    over = [w.change.run.run_id for w in writes if not holds(w.change.run.status)]
    if own and over:
        await db.execute(
            "DELETE FROM memory_work w USING runs r WHERE w.run_id <> '' AND w.run_id = ANY($1::text[]) "
            "AND w.conversation_key IS NULL AND r.run_key = ANY($2::bigint[]) AND r.tenant = w.tenant "
            "AND r.run_id = w.run_id",
            over,
            [w.run_key for w in writes],
        )


def _note(rows: _Rows, tenant: str, conversation_key: int, change: Change) -> None:
    run, now = change.run, change.run.update_time
    if run.memory_plan is not None and run.status is RunStatus.COMPLETED:
        for agent_id in run.memory_plan.memory_agent_ids:
            key = _Key(conversation_key, agent_id)
            _, work = rows.get(key, (tenant, MemoryWork(agent_id)))
            rows[key] = (tenant, completed(work, run.memory_plan, run, change.next_position - 1, now))
    if run.memory_part is not None:
        for key, (owner, work) in rows.items():
            if (owner, work.run_id) == (tenant, run.run_id):
                rows[key] = (tenant, stopped(work, run, now))


async def take(db: Connection, tenant: str, run: Run) -> None:
    """A memory run starts. Raises WorkTakenError."""
    part = run.memory_part
    assert part is not None
    found = await db.fetchrow(
        f"SELECT w.conversation_key, {WORK_COLUMNS} FROM conversations c JOIN memory_work w USING (conversation_key) "
        "WHERE c.tenant = $1 AND c.conversation_id = $2 AND c.create_time = $3 AND w.memory_agent_id = $4 "
        "FOR UPDATE OF w",
        tenant,
        part.conversation_id,
        part.conversation_time,
        part.memory_agent_id,
    )
    work = taken(MemoryWork(*found[1:]) if found else None, run)
    assert found is not None
    busy = await db.fetch(
        "SELECT FROM memory_work WHERE tenant = $1 AND memory_agent_id = $2 AND run_id <> ''",
        tenant,
        part.memory_agent_id,
    )
    if busy:
        raise WorkTakenError(run.run_id)
    await _put(db, {_Key(found[0], part.memory_agent_id): (tenant, work)})


async def forget(db: Connection, tenant: str, conversation_key: int, run_ids: Collection[str], now: int) -> None:
    """A conversation is deleted with its runs, of which those of memory agents may not have been settled. A memory run
    about it goes on."""
    rows = await _lock(db, [conversation_key], run_ids)
    settled = {k: each for k, each in rows.items() if (each[0], each[1].run_id in run_ids) == (tenant, True)}
    await _put(db, {key: (owner, put_off(work.without_run, now)) for key, (owner, work) in settled.items()})
    about = await db.fetch(
        "SELECT r.run_id, r.status FROM memory_work w JOIN runs r USING (tenant, run_id) WHERE w.conversation_key = $1",
        conversation_key,
    )
    await db.execute(
        "UPDATE memory_work SET conversation_key = NULL WHERE conversation_key = $1 AND run_id = ANY($2::text[])",
        conversation_key,
        [run_id for run_id, status in about if holds(RunStatus(status))],
    )
    await db.execute("DELETE FROM memory_work WHERE conversation_key = $1", conversation_key)


async def postpone(database: Database, due: DueWork, clock: int | None) -> None:
    """The work cannot begin, if it is still as it was."""

    async def work(db: Connection) -> None:
        found = await db.fetchrow(
            f"SELECT w.conversation_key, coalesce($4::bigint, {CLOCK}), {WORK_COLUMNS} "
            "FROM conversations c JOIN memory_work w USING (conversation_key) "
            "WHERE c.tenant = $1 AND c.conversation_id = $2 AND w.memory_agent_id = $3 FOR UPDATE OF w",
            due.tenant,
            due.conversation_id,
            due.work.memory_agent_id,
            clock,
        )
        if found is not None and MemoryWork(*found[2:]) == due.work:
            key = _Key(found[0], due.work.memory_agent_id)
            await _put(db, {key: (due.tenant, put_off(due.work, found[1]))})

    await database.write(work)


_IDLE = "SELECT * FROM memory_work n WHERE n.run_id = '' AND n.due_position > n.through_position"
_OLDEST = "ORDER BY n.tenant, n.memory_agent_id, n.not_before LIMIT 1"
# `oldest` reads one row of the index for each memory agent, however much is due to it.
_DUE = f"""
    WITH RECURSIVE clock AS MATERIALIZED (SELECT coalesce($2::bigint, {CLOCK}) AS now),
    oldest AS (
        ({_IDLE} {_OLDEST})
        UNION ALL
        SELECT later.* FROM oldest w CROSS JOIN LATERAL (
            {_IDLE} AND (n.tenant, n.memory_agent_id) > (w.tenant, w.memory_agent_id) {_OLDEST}) AS later
    ), idle AS (
        SELECT * FROM oldest w
        WHERE not_before <= (SELECT now FROM clock) AND NOT EXISTS (
                SELECT FROM memory_work b
                WHERE b.tenant = w.tenant AND b.memory_agent_id = w.memory_agent_id AND b.run_id <> '')
        ORDER BY not_before LIMIT $1
    ), interrupted AS (
        SELECT w.* FROM memory_work w JOIN runs r USING (tenant, run_id)
        WHERE w.run_id <> '' AND not_before <= (SELECT now FROM clock) AND r.status = 'interrupted' AND r.codec <= $3
        LIMIT $1
    )
    SELECT w.tenant, c.conversation_id, c.create_time, {WORK_COLUMNS}
    FROM (SELECT * FROM idle UNION ALL SELECT * FROM interrupted) AS w JOIN conversations c USING (conversation_key)
    ORDER BY w.not_before"""


async def due_work(database: Database, limit: int, clock: int | None) -> tuple[DueWork, ...]:
    """What is due, and whose memory run is interrupted long enough, if this program can read that."""
    found = await database.fetch(_DUE, limit, clock, codec.CODEC_VERSION)
    return tuple(DueWork(row[0], row[1], row[2], MemoryWork(*row[3:])) for row in found)


async def _lock(db: Connection, conversation_keys: Collection[int], run_ids: Collection[str]) -> _Rows:
    """The work about these conversations, and that of which these are memory runs, of any tenant."""
    found = await db.fetch(
        f"SELECT w.tenant, w.conversation_key, {WORK_COLUMNS} FROM memory_work w "
        "WHERE conversation_key = ANY($1::bigint[]) "
        "OR (conversation_key IS NOT NULL AND run_id <> '' AND run_id = ANY($2::text[])) "
        "ORDER BY conversation_key, memory_agent_id FOR UPDATE",
        list(conversation_keys),
        list(run_ids),
    )
    works = ((tenant, key, MemoryWork(*columns)) for tenant, key, *columns in found)
    return {_Key(key, work.memory_agent_id): (tenant, work) for tenant, key, work in works}


async def _put(db: Connection, rows: _Rows) -> None:
    written = [(tenant, key.conversation_key, *astuple(work)) for key, (tenant, work) in sorted(rows.items())]
    await db.executemany(
        "INSERT INTO memory_work VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) "
        "ON CONFLICT (conversation_key, memory_agent_id) DO UPDATE SET "
        "finished = excluded.finished, through_position = excluded.through_position, "
        "due_position = excluded.due_position, parent_run_id = excluded.parent_run_id, run_id = excluded.run_id, "
        "tries = excluded.tries, not_before = excluded.not_before",
        written,
    )
