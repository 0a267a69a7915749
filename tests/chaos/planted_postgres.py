"""The service on PostgreSQL with one planted bug: `python -m tests.chaos.planted_postgres BUG serve ...`.

Where the schema of the database would catch a bug by itself, the bug takes that net away, too.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from agent_service.cli import main
from agent_service.domain.run import Claim
from agent_service.engine.store import Move
from agent_service.stores import postgres_rows as rows
from agent_service.stores.postgres import PostgresStore
from agent_service.stores.postgres_batches import Batches, Job
from agent_service.stores.postgres_database import Connection, Database, Work
from agent_service.stores.postgres_hints import Hints
from agent_service.stores.postgres_hosts import Hosts
from agent_service.stores.postgres_rows import Found, Wanted
from tests.chaos.planted import owners_hear_nothing, patch

_COMMIT_SECONDS = 0.05
_READ_SECONDS = 0.02


def publish_before_commit() -> None:
    """Events are told while their transaction may still be lost."""
    write = Database.write

    async def write_and_tell(self: Database, work: Work[Any], done: Any = None, **how: Any) -> Any:
        async def work_and_tell(connection: Connection) -> Any:
            result = await work(connection)
            if done is not None:
                done(result)
                await asyncio.sleep(_COMMIT_SECONDS)
            return result

        return await write(self, work_and_tell, None, **how)

    patch(Database, "write", write_and_tell)


def acknowledged_before_commit() -> None:
    """Who waits for a write hears that it is done while its transaction may still be lost."""
    init = Batches.__init__

    def init_hastily(self: Any, database: Database, write: Any, *others: Any) -> None:
        async def write_and_answer(connection: Connection, jobs: Sequence[Job[Any]]) -> None:
            await write(connection, jobs)
            for job in jobs:
                if not job.done.done():
                    job.done.set_result(None)
            await asyncio.sleep(_COMMIT_SECONDS)

        init(self, database, write_and_answer, *others)

    patch(Batches, "__init__", init_hastily)


def acknowledged_before_flush() -> None:
    """What is committed is told and acknowledged while it is in the memory of the database only."""
    init = Hosts.__init__

    def init_unflushed(self: Hosts, url: str, seconds: float) -> None:
        init(self, url, seconds)
        self._settings["synchronous_commit"] = "off"

    patch(Hosts, "__init__", init_unflushed)


def stale_epoch_accepted() -> None:
    """An owner goes on writing after the run was taken from it, and is not told in any other way."""

    async def owner_move(self: Any, claim: Claim, move: Move[Any], *, block_ids: tuple[str, ...] = ()) -> Any:
        return await self._move(Wanted(claim.tenant, claim.run_id, block_ids=block_ids), move, None)

    patch(PostgresStore, "owner_move", owner_move)
    owners_hear_nothing()
    _without_nets()


def row_lock_skipped() -> None:
    """Nothing keeps another process from coming between what a move reads and what it writes."""
    load_states = rows.load_states

    async def lock_nothing(db: Connection, wanted: Sequence[Wanted]) -> None:
        del db, wanted

    async def load_early(*args: Any) -> list[Found | None]:
        found = await load_states(*args)
        await asyncio.sleep(_READ_SECONDS)
        return found

    patch(rows, "lock_runs", lock_nothing)
    patch(rows, "load_states", load_early)
    _without_nets()


def host_clock() -> None:
    """Leases and deadlines go by the clock of each host instead of the database's."""
    patch(Hints, "clock", property(lambda self: time.time_ns()))
    patch(Hints, "now", lambda self: time.time_ns())


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__: bug
    for bug in (
        publish_before_commit,
        acknowledged_before_commit,
        acknowledged_before_flush,
        stale_epoch_accepted,
        row_lock_skipped,
        host_clock,
    )
}

_REPLACED = {
    "$21::text[])": ("conversation_key, position", "message_id run_id step_id create_time kind codec body"),
    "$31::text[])": ("run_key, sequence", "step_id create_time kind position codec body"),
    "$35::text[])": ("run_key, request_id", "codec body"),
}
"""The ends of what inserts messages, events and receipts; their keys, and their other columns."""


def _without_nets() -> None:
    """Takes away the triggers and the index of final stops, and lets a row replace another of the same key."""
    opened = Database.open

    async def open_database(url: str, **how: Any) -> Database:
        database = await opened(url, **how)
        await database.fetch("DROP INDEX IF EXISTS events_final")
        for name, table in await database.fetch(
            "SELECT tgname, tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal"
        ):
            await database.fetch(f"DROP TRIGGER {name} ON {table}")
        return database

    patch(Database, "open", open_database)
    sql = rows._WRITE
    for end, (key, others) in _REPLACED.items():
        if sql.count(end) != 1:
            raise AttributeError(f"{end} does not end an insert any more: plant this bug elsewhere")
        values = ", ".join(f"{column} = excluded.{column}" for column in others.split())
        sql = sql.replace(end, f"{end} ON CONFLICT ({key}) DO UPDATE SET {values}")
    patch(rows, "_WRITE", sql)


if __name__ == "__main__":
    BUGS[sys.argv[1]]()
    sys.exit(main(sys.argv[2:]))
