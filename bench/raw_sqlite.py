"""The reference for SQLite: the rows that a cycle of the store writes, in a plain loop of transactions."""

from __future__ import annotations

import itertools
import sqlite3
from pathlib import Path

from bench.one_trip import Bodies

_TABLES = """
    CREATE TABLE runs (run_key INTEGER PRIMARY KEY, status TEXT NOT NULL, epoch INTEGER NOT NULL, body TEXT NOT NULL);
    CREATE TABLE messages (run_key INTEGER, position INTEGER, body TEXT NOT NULL, PRIMARY KEY (run_key, position));
    CREATE TABLE events (run_key INTEGER, sequence INTEGER, kind TEXT NOT NULL, body TEXT,
        PRIMARY KEY (run_key, sequence)) WITHOUT ROWID;
    CREATE TABLE calls (call_id TEXT PRIMARY KEY, run_key INTEGER, state TEXT NOT NULL, body TEXT NOT NULL);
    CREATE TABLE receipts (run_key INTEGER PRIMARY KEY, body TEXT NOT NULL);"""


class RawLoop:
    """Writes cycles, each message with this text; every commit is flushed."""

    def __init__(self, path: Path, text: str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(_TABLES)
        self._keys = itertools.count(1)
        self._bodies = Bodies(text)

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    async def cycle(self) -> None:
        """The same rows as a cycle of the store, about as long."""
        db, key, body = self._db, next(self._keys), self._bodies
        call = f"call_{key}"
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO runs VALUES (?, 'running', 1, ?)", (key, body.run))
        self._add(key, 1, 1, 1, 2)
        db.execute("COMMIT")
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO calls VALUES (?, ?, 'pending', ?)", (call, key, body.message))
        self._add(key, 2, 2, 4, 1)
        self._update(key, "paused", 0, "running")
        db.execute("COMMIT")
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE calls SET state = 'returned', body = ? WHERE call_id = ?", (body.message, call))
        db.execute("INSERT INTO receipts VALUES (?, ?)", (key, body.message))
        self._add(key, 4, 1, 7, 2)
        self._update(key, "running", 1, "paused")
        db.execute("COMMIT")
        db.execute("BEGIN IMMEDIATE")
        self._add(key, 5, 1, 10, 2)
        self._update(key, "completed", 0, "running")
        db.execute("COMMIT")

    def _add(self, key: int, position: int, messages: int, sequence: int, others: int) -> None:
        places, texts, numbers, kinds, bodies = self._bodies.added(position, messages, sequence, others)
        keys = itertools.repeat(key)
        self._db.executemany("INSERT INTO messages VALUES (?, ?, ?)", zip(keys, places, texts, strict=False))
        self._db.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", zip(keys, numbers, kinds, bodies, strict=False))

    def _update(self, key: int, status: str, epochs: int, before: str) -> None:
        self._db.execute(
            "UPDATE runs SET status = ?, epoch = epoch + ?, body = ? WHERE run_key = ? AND status = ?",
            (status, epochs, self._bodies.run, key, before),
        )
