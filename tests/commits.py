"""Failpoints around the commits of the SQLite store's writer. They are put around the connection, not into the product.

A commit is named by a text that it stores as a value, such as a kind or a state: `run_accepted`, `started`.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.scripted_openai import Happening

Commit = Callable[["_Connection"], None]
"""What is done in place of a commit."""


def disk_full(db: _Connection) -> None:
    """Nothing is committed, and SQLite has rolled back by itself."""
    db.really("ROLLBACK")
    raise sqlite3.OperationalError("database or disk is full")


def io_error(db: _Connection) -> None:
    """Nothing is committed, and the transaction is still open."""
    raise sqlite3.OperationalError("disk I/O error")


def lost_reply(db: _Connection) -> None:
    """It is committed, but the store is told that it failed."""
    db.really("COMMIT")
    raise sqlite3.OperationalError("disk I/O error")


FAILURES = (disk_full, io_error)


class Held:
    """A commit that waits until the test releases it, before or after it is done."""

    def __init__(self, *, after: bool) -> None:
        self.reached = Happening("commits held")
        self._after = after
        self._released = threading.Event()

    def __call__(self, db: _Connection) -> None:
        if self._after:
            db.really("COMMIT")
        self.reached.add()
        assert self._released.wait(30)
        if not self._after:
            db.really("COMMIT")

    def release(self) -> None:
        """Lets it go on."""
        self._released.set()


class Commits:
    """What becomes of commits; each failpoint works once."""

    def __init__(self) -> None:
        self._failpoints: list[tuple[str, int, Commit]] = []

    def at(self, mark: str, instead: Commit, *, nth: int = 1) -> None:
        """The `nth` commit from now on that stores this text is done in this way."""
        self._failpoints.append((mark, nth, instead))

    @contextmanager
    def held(self, mark: str, *, nth: int = 1, after: bool = False) -> Iterator[Held]:
        """That commit waits, at most until the end of the block."""
        held = Held(after=after)
        self.at(mark, held, nth=nth)
        try:
            yield held
        finally:
            held.release()

    @property
    def unused(self) -> list[str]:
        """The marks of failpoints that no commit has come to yet."""
        return [mark for mark, _, _ in self._failpoints]

    def commit(self, db: _Connection, stored: set[str]) -> None:
        """Commits what stores these texts, or fails to, as the test said."""
        due = [failpoint for failpoint in self._failpoints if failpoint[0] in stored]
        for failpoint in due:
            mark, nth, instead = failpoint
            self._failpoints.remove(failpoint)
            if nth == 1:
                instead(db)
                return
            self._failpoints.append((mark, nth - 1, instead))
        db.really("COMMIT")


class _Connection(sqlite3.Connection):
    """Knows what the transaction stores."""

    commits: Commits
    _stored: set[str]

    def really(self, sql: str) -> None:
        """Executes it without any failpoint."""
        super().execute(sql)

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        """As SQLite does, but for the commits of the writer."""
        if sql == "COMMIT" and threading.current_thread().name == "sqlite-writer":
            self.commits.commit(self, self._stored)
            return self.cursor()
        if sql.startswith("BEGIN"):
            self._stored = set()
        self._note(parameters)
        return super().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any]) -> sqlite3.Cursor:
        """As SQLite does."""
        rows = list(parameters)
        for row in rows:
            self._note(row)
        return super().executemany(sql, rows)

    def _note(self, values: Iterable[object]) -> None:
        self._stored.update(value for value in values if isinstance(value, str))


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> Commits:
    """Failpoints of the stores that are opened from now on."""
    points = Commits()
    connect = sqlite3.connect

    def opened(*args: Any, **options: Any) -> _Connection:
        db: _Connection = connect(*args, factory=_Connection, **options)
        db.commits, db._stored = points, set()
        return db

    monkeypatch.setattr("agent_service.stores.sqlite_thread.sqlite3.connect", opened)
    return points
