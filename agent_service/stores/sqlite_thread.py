"""A thread that owns one SQLite connection. The writer's thread commits what is waiting together: one flush for many.

Opening, settings of the connection and the version of the schema are here, too.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import structlog

from agent_service.engine.store import Committed
from agent_service.stores.errors import SchemaError, unavailable

log = structlog.get_logger()

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

SCHEMA_VERSION = 4
"""The last file in `sqlite_schema/`; each file takes a database from the version before it."""
BUSY_SECONDS = 5.0
"""How long a transaction waits for another process before the store counts as unavailable, unless told otherwise."""
MAX_BATCH = 64
"""At most so many writes are committed together; keeps the lock short."""
_MINIMUM_SQLITE = (3, 37, 0)
APPLICATION_ID = 0x61677270
"""Marks a file as ours: other programs number their schemas from 1, too."""


def open_database(path: Path, busy_seconds: float = BUSY_SECONDS) -> sqlite3.Connection:
    """Opens (or makes, readable by the owner only) a database of the present schema. Raises SchemaError."""
    if sqlite3.sqlite_version_info < _MINIMUM_SQLITE:
        raise SchemaError(f"SQLite {sqlite3.sqlite_version} is too old; 3.37 or newer is needed")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = _connect(path, busy_seconds)
    except (OSError, sqlite3.Error) as error:
        raise SchemaError(f"cannot open the store {path}: {error}") from error
    try:
        _migrate(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
    except sqlite3.DatabaseError as error:
        connection.close()
        raise SchemaError(f"cannot use the store {path}: {error}") from error
    except SchemaError:
        connection.close()
        raise
    return connection


def open_reader(path: Path, busy_seconds: float = BUSY_SECONDS) -> sqlite3.Connection:
    """A second connection that can only read."""
    connection = _connect(path, busy_seconds)
    connection.execute("PRAGMA query_only = ON")
    return connection


def _connect(path: Path, busy_seconds: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=busy_seconds, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    try:
        for pragma in ("synchronous = FULL", "foreign_keys = ON", "fullfsync = ON", "trusted_schema = OFF"):
            connection.execute(f"PRAGMA {pragma}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (objects,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != APPLICATION_ID and (application or version or objects):
        connection.execute("ROLLBACK")
        raise SchemaError(f"the store {path} is a database of something else; name another file")
    if version > SCHEMA_VERSION:
        connection.execute("ROLLBACK")
        raise SchemaError(
            f"the store {path} has schema {version}, newer than {SCHEMA_VERSION} of this program; use the newer program"
        )
    if version < SCHEMA_VERSION:
        for number in range(version + 1, SCHEMA_VERSION + 1):
            for statement in _statements(number):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _statements(number: int) -> list[str]:
    """The statements that lead to this version, one by one, so that all of them share a transaction."""
    statements, pending = [], ""
    file = files("agent_service.stores") / "sqlite_schema" / f"{number:04}.sql"
    for line in file.read_text().splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    return statements


@dataclass(slots=True)
class _Job:
    work: Work[Any]
    future: asyncio.Future[Any]
    done: Callable[[Any], None] | None
    outside: bool = False
    result: Any = None
    error: BaseException | None = None


class SqliteThread:
    """Runs work on its connection, in order. For a writer, each piece of work is a transaction of its own for its
    caller, and its future is set only after the flush of the commit returned."""

    def __init__(
        self, connection: sqlite3.Connection, name: str, *, begin: str, committed: Committed | None = None
    ) -> None:
        self._connection = connection
        self._begin = begin
        self._committed = committed
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._closed = False
        self._ended = asyncio.Event()
        self._thread.start()

    @property
    def queued(self) -> int:
        """Pieces of work that wait for their turn."""
        return self._jobs.qsize()

    async def run(self, work: Work[T], done: Callable[[T], None] | None = None) -> T:
        """The result of `work`; `done` is called with it in the event loop right after the commit, in commit order."""
        return await self._put(work, done, outside=False)

    async def run_outside(self, work: Work[T]) -> T:
        """The same for work that needs no transaction, so that it takes no lock if nothing else waits."""
        return await self._put(work, None, outside=True)

    async def _put(self, work: Work[T], done: Callable[[T], None] | None, *, outside: bool) -> T:
        if self._closed:
            raise unavailable("it is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Job(work, future, done, outside))
        return await future

    async def close(self) -> None:
        """Finishes what is queued, then closes the connection."""
        self._closed = True
        self._jobs.put(None)
        # Not by a thread of the loop's pool: all of them may be at work for others, for ever.
        await self._ended.wait()

    def _serve(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                batch, more = self._gather(job)
                self._execute_observed(batch)
                self._loop.call_soon_threadsafe(_complete, batch)
                if not more:
                    break
            self._connection.close()
        finally:
            self._loop.call_soon_threadsafe(self._ended.set)

    def _gather(self, first: _Job) -> tuple[list[_Job], bool]:
        """What waits already, up to the bound; False if the end of the queue was among it."""
        batch = [first]
        while len(batch) < MAX_BATCH:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                return batch, False
            batch.append(job)
        return batch, True

    def _execute_observed(self, batch: list[_Job]) -> None:
        writes = 0 if self._committed is None else sum(not job.outside for job in batch)
        began = time.monotonic() if writes else 0.0
        self._execute(batch)
        if writes and self._committed is not None:
            self._committed(writes, time.monotonic() - began)

    def _execute(self, batch: list[_Job]) -> None:
        """One transaction for all; if that fails in the middle, one for each, so that none fails for its neighbours.

        If nobody knows whether it was committed, nothing is repeated: an owner's move would be made twice.
        """
        begun = committing = False
        try:
            if self._connection.in_transaction:  # The last one could not be rolled back.
                self._connection.execute("ROLLBACK")
            if not all(job.outside for job in batch):
                self._connection.execute(self._begin)
            begun = True
            for job in batch:
                self._attempt(job)
            if self._connection.in_transaction:
                committing = True
                self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            perhaps_committed = committing and not self._connection.in_transaction
            self._roll_back()
            if begun and len(batch) > 1 and not perhaps_committed:
                for job in batch:
                    job.error = None
                    self._execute([job])
                return
            for job in batch:
                job.error = job.error or unavailable(str(error))

    def _attempt(self, job: _Job) -> None:
        """One piece of work; its failure undoes only itself."""
        execute = self._connection.execute
        execute("SAVEPOINT job")
        try:
            job.result = job.work(self._connection)
        except sqlite3.OperationalError:
            raise
        except Exception as error:
            job.error = error
            execute("ROLLBACK TO job")
        execute("RELEASE job")

    def _roll_back(self) -> None:
        with suppress(sqlite3.Error):  # Tried again before the next one; this thread must live for those who wait.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def _complete(batch: list[_Job]) -> None:
    for job in batch:
        if job.error is None and job.done is not None:
            try:
                job.done(job.result)
            except Exception:  # It is committed, and those who wait for the rest of the batch must hear of theirs.
                log.exception("store.publish_failed")
        if job.future.done():
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)
