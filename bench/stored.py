"""A SQLite file with many paused runs: one is paused by the service, and its rows are copied under other ids."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from bench.load import MESSAGE
from bench.processes import Process, service
from tests.service import SECRET, connected


@dataclass(frozen=True)
class Paused:
    """The ids of one run of such a file, and the number of its last event."""

    run_id: str
    call_id: str
    last_sequence: int


async def pause_one(upstream: Process, path: Path) -> Paused:
    """A new file, in which a run waits for its caller."""
    async with service(upstream) as process, connected(process.target) as client:
        run = (await client.ask(f"{MESSAGE} Ask the tool.", SECRET, model="tool")).run
        store = process.folder / "bench.sqlite3"
        with sqlite3.connect(store) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copy(store, path)
    return Paused(run.run_id, run.pending_tool_calls[0].tool_call_id, run.last_sequence)


def copies(path: Path, first: Paused, count: int) -> None:
    """Adds so many copies of it to the file; `copy` says what their ids are."""
    db = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -200000", "locking_mode = EXCLUSIVE"):
        db.execute(f"PRAGMA {pragma}")
    triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:  # They look at each row, for minutes, and the rows are copies of allowed ones.
        db.execute(f"DROP TRIGGER {name}")
    (conversation,) = db.execute("SELECT conversation_id FROM conversations").fetchone()
    db.execute("BEGIN")
    for table in ("conversations", "runs", "messages", "events", "calls"):
        db.execute(_copy(db, table, (first.run_id, first.call_id, conversation)), {"count": count})
    db.execute("COMMIT")
    for _, sql in triggers:
        db.execute(sql)
    db.execute("PRAGMA journal_mode = WAL")
    db.close()


def copy(first: Paused, number: int) -> Paused:
    """The copy of this number, from 1 on."""
    return Paused(_renamed(first.run_id, number), _renamed(first.call_id, number), first.last_sequence)


def _renamed(identity: str, number: int) -> str:
    prefix, _, digits = identity.partition("_")
    return f"{prefix}_{number:0{len(digits)}x}"


def _copy(db: sqlite3.Connection, table: str, ids: tuple[str, ...]) -> str:
    """The statement that copies the rows of a table; keys are numbers from 1 on, so copy n of row 1 is row 1 + n."""
    columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
    values = [f"{name} + n" if name in ("conversation_key", "run_key") else _text(name, ids) for name in columns]
    return (
        f"WITH RECURSIVE numbers (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM numbers WHERE n < :count) "
        f"INSERT INTO {table} SELECT {', '.join(values)} FROM numbers CROSS JOIN (SELECT * FROM {table})"
    )


def _text(column: str, ids: tuple[str, ...]) -> str:
    if not column.endswith("_id") and column != "body":
        return column
    value = column
    for identity in ids:
        prefix, _, digits = identity.partition("_")
        value = f"replace({value}, '{identity}', '{prefix}_' || printf('%0{len(digits)}x', n))"
    return value
