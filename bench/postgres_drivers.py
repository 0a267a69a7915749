"""What a batch of writes costs with asyncpg and with psycopg 3: python -m bench.postgres_drivers

The transaction is one of group commit: lock rows, read what belongs to them, write arrays of rows, commit. "pipelined"
sends BEGIN, the lock and the reading in one trip, and the writing and COMMIT in another. psycopg is not a dependency:
.venv/bin/pip install 'psycopg[binary]>=3.3,<4'
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import psycopg

from bench.machine import Used, database

_TABLES = """
    DROP TABLE IF EXISTS calls, events, runs;
    CREATE TABLE runs (run_key bigint PRIMARY KEY, run_id text UNIQUE, status text, last_sequence bigint, body text);
    CREATE TABLE events (run_key bigint, sequence bigint, kind text, body text, PRIMARY KEY (run_key, sequence));
    CREATE TABLE calls (call_id text PRIMARY KEY, run_key bigint, step int, body text);
    CREATE INDEX ON calls (run_key, step);
    INSERT INTO runs SELECT n, 'run_' || n, 'running', 0, '' FROM generate_series(1, 64) AS n"""

LOCK = (
    "SELECT run_key, last_sequence, body FROM unnest($1::text[]) AS w (run_id) JOIN runs USING (run_id) "
    "ORDER BY run_key FOR UPDATE OF runs"
)
LOAD = (
    "SELECT run_key, c.body FROM unnest($1::text[]) AS w (run_id) JOIN runs USING (run_id) "
    "JOIN calls c USING (run_key) WHERE step = $2"
)
WRITE = """
    WITH added_events AS (
        INSERT INTO events SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[])
    ), added_calls AS (
        INSERT INTO calls SELECT * FROM unnest($5::text[], $6::bigint[], $7::int[], $8::text[])
        ON CONFLICT (call_id) DO UPDATE SET body = excluded.body
    )
    UPDATE runs r SET last_sequence = w.last_sequence, body = w.body
    FROM unnest($9::bigint[], $10::bigint[], $11::text[]) AS w (run_key, last_sequence, body)
    WHERE r.run_key = w.run_key"""

_RUN, _MESSAGE = json.dumps({"row": "r" * 900}), json.dumps({"text": "y" * 430})
Batch = Callable[[int], Awaitable[None]]


def _values(rows: list[Any], turn: int) -> tuple[list[Any], ...]:
    """Three events and a call for each run."""
    keys = [row[0] for row in rows]
    events = [(row[0], row[1] + n, "kind", _MESSAGE) for row in rows for n in (1, 2, 3)]
    calls = [(f"call_{key}_{turn}", key, turn, _MESSAGE) for key in keys]
    runs = [(row[0], row[1] + 3, _RUN) for row in rows]
    return tuple(list(column) for table in (events, calls, runs) for column in zip(*table, strict=True))


async def _asyncpg(url: str, ids: list[str]) -> Batch:
    db = await asyncpg.connect(url)
    await db.execute(_TABLES)

    async def batch(turn: int) -> None:
        await db.execute("BEGIN")
        rows = await db.fetch(LOCK, ids)
        await db.fetch(LOAD, ids, turn - 1)
        await db.execute(WRITE, *_values(rows, turn))
        await db.execute("COMMIT")

    return batch


async def _psycopg(url: str, ids: list[str], *, pipelined: bool) -> Batch:
    db = await psycopg.AsyncConnection.connect(url, autocommit=True, prepare_threshold=0)
    for statement in _TABLES.split(";"):
        await db.execute(statement)
    lock, load, write = (re.sub(r"\$\d+", "%s", sql) for sql in (LOCK, LOAD, WRITE))
    locking, loading, writing = (db.cursor(binary=True) for _ in range(3))

    async def one_by_one(turn: int) -> None:
        await db.execute("BEGIN")
        rows = await (await locking.execute(lock, (ids,))).fetchall()
        await (await loading.execute(load, (ids, turn - 1))).fetchall()
        await writing.execute(write, _values(rows, turn))
        await db.execute("COMMIT")

    async def in_two_trips(turn: int) -> None:
        async with db.pipeline():
            await db.execute("BEGIN")
            await locking.execute(lock, (ids,))
            await loading.execute(load, (ids, turn - 1))
        rows = await locking.fetchall()
        await loading.fetchall()
        async with db.pipeline():
            await writing.execute(write, _values(rows, turn))
            await db.execute("COMMIT")

    return in_two_trips if pipelined else one_by_one


async def _measure() -> None:
    print(f"{'driver':20} {'rows':>4} {'ms a batch':>10} {'CPU ms':>7} {'of PostgreSQL':>14}")
    with database() as server:
        for size, turns in ((1, 1000), (64, 150)):
            ids = [f"run_{number}" for number in range(1, size + 1)]
            for name, connect in (
                ("asyncpg", _asyncpg(server.url, ids)),
                ("psycopg", _psycopg(server.url, ids, pipelined=False)),
                ("psycopg, pipelined", _psycopg(server.url, ids, pipelined=True)),
            ):
                batch = await connect
                for turn in range(1, 21):
                    await batch(turn)
                with Used(server) as used:
                    for turn in range(21, 21 + turns):
                        await batch(turn)
                wall, client, database_ = (1e3 * each / turns for each in (used.wall, used.client, used.server))
                print(f"{name:20} {size:4} {wall:10.2f} {client:7.2f} {database_:14.2f}")


if __name__ == "__main__":
    asyncio.run(_measure())
