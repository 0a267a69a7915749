"""The reference for PostgreSQL: the rows that a cycle of the store writes, by one statement for each transaction."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

_LANES = 16

_TABLES = """
    CREATE SCHEMA raw;
    CREATE TABLE raw.runs (run_key bigint PRIMARY KEY, status text NOT NULL, epoch bigint NOT NULL, body text NOT NULL);
    CREATE TABLE raw.messages (run_key bigint, position bigint, body text NOT NULL, PRIMARY KEY (run_key, position));
    CREATE TABLE raw.events (run_key bigint, sequence bigint, kind text NOT NULL, body text,
        PRIMARY KEY (run_key, sequence));
    CREATE TABLE raw.calls (run_key bigint, call_id text PRIMARY KEY, state text NOT NULL, body text NOT NULL);
    CREATE TABLE raw.receipts (run_key bigint PRIMARY KEY, body text NOT NULL);"""

_ADD = """messages AS (INSERT INTO raw.messages SELECT $1, * FROM unnest($2::bigint[], $3::text[])),
    events AS (INSERT INTO raw.events SELECT $1, * FROM unnest($4::bigint[], $5::text[], $6::text[]))"""
_UPDATE = "UPDATE raw.runs SET status = $7, epoch = epoch + $8, body = $9 WHERE run_key = $1 AND status = $10"

START = f"WITH {_ADD} INSERT INTO raw.runs VALUES ($1, $7, $8, $9)"
PAUSE = f"WITH {_ADD}, calls AS (INSERT INTO raw.calls VALUES ($1, $11, 'pending', $12)) {_UPDATE}"
SUBMIT = (
    f"WITH {_ADD}, calls AS (UPDATE raw.calls SET state = 'returned', body = $12 WHERE call_id = $11), "
    f"receipts AS (INSERT INTO raw.receipts VALUES ($1, $12)) {_UPDATE}"
)
FINISH = f"WITH {_ADD} {_UPDATE}"


class Bodies:
    """What rows hold, about as long as what the store writes; each message with this text."""

    def __init__(self, text: str) -> None:
        self.message = json.dumps({"text": text})
        self.run = json.dumps({"row": "r" * 800})
        self._event = json.dumps({"event": "e" * 60})

    def added(self, position: int, messages: int, sequence: int, others: int) -> tuple[list[object], ...]:
        """The columns of messages, and those of an event for each and of other events."""
        numbers: list[object] = list(range(sequence, sequence + messages + others))
        bodies: list[object] = [None] * messages + [self._event] * others
        places: list[object] = list(range(position, position + messages))
        return (places, [self.message] * messages, numbers, ["kind"] * len(numbers), bodies)


@asynccontextmanager
async def one_trip(url: str, text: str) -> AsyncIterator[OneTrip]:
    """On this database, with a pool that resets no connection, which would be a second trip for each."""
    async with asyncpg.create_pool(url, min_size=_LANES, max_size=_LANES, reset=_as_it_is) as pool:
        raw = OneTrip(pool, text)
        await raw.prepare()
        yield raw


async def _as_it_is(connection: object) -> None:
    """Nothing is ever set on it."""


class OneTrip:
    """Writes cycles through a pool, each message with this text."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], text: str) -> None:
        self._pool = pool
        self._keys = itertools.count(1)
        self._bodies = Bodies(text)

    async def prepare(self) -> None:
        """Makes the tables anew."""
        async with self._pool.acquire() as connection:
            await connection.execute("DROP SCHEMA IF EXISTS raw CASCADE")
            await connection.execute(_TABLES)

    async def cycle(self) -> None:
        """The same rows as a cycle of the store, about as long."""
        key, message, run, added = next(self._keys), self._bodies.message, self._bodies.run, self._bodies.added
        call = (f"call_{key}", message)
        await self._pool.execute(START, key, *added(1, 1, 1, 2), "running", 1, run)
        await self._pool.execute(PAUSE, key, *added(2, 2, 4, 1), "paused", 0, run, "running", *call)
        await self._pool.execute(SUBMIT, key, *added(4, 1, 7, 2), "running", 1, run, "paused", *call)
        await self._pool.execute(FINISH, key, *added(5, 1, 10, 2), "completed", 0, run, "running")
