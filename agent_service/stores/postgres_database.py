"""A PostgreSQL database: its schema, and transactions within a bound of time that outlive lost connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import asyncpg

from agent_service.domain.errors import AgentServiceError
from agent_service.stores.errors import SchemaError
from agent_service.stores.postgres_hosts import (
    CLASHES,
    LOST,
    SCHEMA,
    START_ERRORS,
    DatedConnection,
    Hosts,
    settled,
    unusable,
)
from agent_service.stores.urls import without_password

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

T = TypeVar("T")
# A text, since only type checkers know the parameters of these classes.
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
Work = Callable[[Connection], Awaitable[T]]

SCHEMA_VERSION = 2
"""The last file in `postgres_schema/`; each file takes a database from the version before it."""
POOL_SIZE = 10
"""Connections of one process, unless told otherwise."""
_MINIMUM_SERVER = 14
_MIGRATION_LOCK = 0x61677270
ATTEMPTS = 5
"""How often work is done that others got in the way of."""
_PAUSES = (0.05, 1.0)
"""Seconds before a lost connection is made anew: the first time, and at most."""
_TOO_LATE = 0.1
"""The share of its time without which work does not begin: a connection might be made, but not used any more."""


class _LostError(Exception):
    """The connection was lost before anything was committed."""

    def __init__(self, how: Exception) -> None:
        super().__init__()
        self.how = how


class Database:
    """A pool of connections. Each piece of work has `seconds` from the moment it is asked for, whatever it waits for.

    If a connection cannot be had, or is lost before a commit, the work is done anew on another one: a database that
    restarts, or fails over, within that time is not noticed. Work goes on when its caller is cancelled: what is
    committed is always told.
    """

    def __init__(self, hosts: Hosts, seconds: float, size: int) -> None:
        self.seconds = seconds
        self._hosts = hosts

        async def connect(*_args: object, **_options: object) -> DatedConnection:
            return await hosts.connect()

        # None is kept open for its own sake: what keeps them logs each attempt that fails.
        self._pool = asyncpg.create_pool(
            connect=connect, connection_class=DatedConnection, min_size=0, max_size=size, reset=_as_it_is
        )
        self._free = asyncio.Semaphore(size)
        self._trusted_since = 0.0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._committing: set[asyncio.Task[Any]] = set()

    @classmethod
    async def open(cls, url: str, *, seconds: float, size: int) -> Database:
        """Connects, and brings the schema up to date. Raises SchemaError."""
        hosts = Hosts(url, seconds)
        try:
            async with asyncio.timeout(2 * seconds):
                connection = await hosts.connect()
                try:
                    await _migrate(connection, without_password(url))
                finally:
                    connection.terminate()
        except START_ERRORS as error:
            raise unusable(url, error) from error
        database = cls(hosts, seconds, size)
        await database._pool
        return database

    async def write(self, work: Work[T], done: Callable[[T], None] | None = None, *, attempts: int = ATTEMPTS) -> T:
        """The result of work in one transaction; `done` is called with it right after the commit.

        Raises STORE_UNAVAILABLE (it may be committed), and what the work raises (it is not).
        """
        return await self._shielded(self._insist(work, done, "BEGIN", attempts))

    async def read(self, work: Work[T]) -> T:
        """The result of work that sees one state of the database."""
        return await self._shielded(self._insist(work, None, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY", 1))

    async def fetch(self, sql: str, *values: object) -> list[asyncpg.Record]:
        """The rows of one statement, which only reads."""

        async def statement(connection: Connection) -> list[asyncpg.Record]:
            return await connection.fetch(sql, *values)

        return await self._shielded(self._insist(statement, None, "", 1))

    async def told(self) -> None:
        """Returns when all that is committed by now was told, if it was committed through this object."""
        if self._committing:
            await asyncio.wait(set(self._committing))

    async def close(self) -> None:
        """Finishes what was begun and closes."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        try:
            async with asyncio.timeout(self.seconds):
                await self._pool.close()
        except Exception as error:
            self._pool.terminate()
            if settled(error) is error:
                raise
        finally:
            await self._hosts.close()

    async def _shielded(self, work: Awaitable[T]) -> T:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._committing.discard(task)
        if not task.cancelled():
            task.exception()  # The caller may be gone.

    async def _insist(self, work: Work[T], done: Callable[[T], None] | None, begin: str, attempts: int) -> T:
        """Does the work, anew if others got in the way of it or the connection was lost, until its time is over."""
        pause, longest = _PAUSES
        now = asyncio.get_running_loop().time
        deadline = now() + self.seconds
        while True:
            try:
                result = await self._transact(work, begin, deadline)
            except CLASHES as error:
                attempts -= 1
                if not attempts:
                    raise settled(error) from error
            except _LostError as lost:
                if now() + pause >= deadline:
                    raise settled(lost.how) from lost.how
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)
            else:
                if done is not None:
                    done(result)
                return result

    async def _transact(self, work: Work[T], begin: str, deadline: float) -> T:
        """On a connection that is given back only if it can be used again."""
        connection: Connection | None = None
        usable = committing = False
        began = 0.0
        try:
            async with asyncio.timeout_at(deadline), self._free:
                if deadline - asyncio.get_running_loop().time() < self.seconds * _TOO_LATE:
                    raise TimeoutError
                connection = await self._acquire()
                began = time.monotonic()
                if begin:
                    await connection.execute(begin)
                try:
                    result = await work(connection)
                except (AgentServiceError, asyncpg.PostgresError):
                    if begin:
                        await connection.execute("ROLLBACK")
                    usable = True
                    raise
                if begin:
                    committing = True
                    if (task := asyncio.current_task()) is not None:
                        self._committing.add(task)
                    if await connection.execute("COMMIT") != "COMMIT":
                        raise AssertionError("the work went on after an error, so nothing was committed")
                usable = True
                cast(DatedConnection, connection).note_good()
        except Exception as error:
            if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
                self._trusted_since = time.monotonic()
            elif isinstance(error, TimeoutError):
                self._trusted_since = max(self._trusted_since, began)
            if isinstance(error, CLASHES):
                raise
            usable = usable and settled(error) is error
            if isinstance(error, LOST) and not committing and settled(error) is not error:
                raise _LostError(error) from error
            raise settled(error) from error
        finally:
            if connection is not None:
                if not usable:
                    with suppress(asyncpg.InterfaceError):  # It may have ended by itself.
                        connection.terminate()
                await self._pool.release(connection, timeout=self.seconds)  # type: ignore[arg-type]  # it is of the pool
        return result

    async def _acquire(self) -> Connection:
        """None that was not good since the last failure that may have been the server's: that may be gone, or have
        become read-only, and each of its connections would have to find that out by itself."""
        while True:
            connection = await self._pool.acquire()
            if cast(DatedConnection, connection).good >= self._trusted_since:
                return connection
            connection.terminate()


async def _as_it_is(connection: object) -> None:
    """A connection is given back without an open transaction, and nothing else is ever set on it."""


async def _migrate(connection: asyncpg.Connection[asyncpg.Record], place: str) -> None:
    """Brings the schema up to date, one process after the other."""
    server = connection.get_server_version()
    if server.major < _MINIMUM_SERVER:
        raise SchemaError(f"PostgreSQL {server.major} at {place} is too old; {_MINIMUM_SERVER} or newer is needed")
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _MIGRATION_LOCK)
        version = await _version(connection, place)
        if version > SCHEMA_VERSION:
            raise SchemaError(
                f"the store {place} has schema {version}, newer than {SCHEMA_VERSION} of this program; "
                "use the newer program"
            )
        for number in range(version + 1, SCHEMA_VERSION + 1):
            file = files("agent_service.stores") / "postgres_schema" / f"{number:04}.sql"
            await connection.execute(file.read_text())
        if version < SCHEMA_VERSION:
            await connection.execute("UPDATE schema_version SET version = $1", SCHEMA_VERSION)


async def _version(connection: asyncpg.Connection[asyncpg.Record], place: str) -> int:
    """The version of the schema; 0 for a new one, which is made empty. Raises SchemaError for tables of others."""
    if await connection.fetchval("SELECT to_regclass('agent_service.schema_version')"):
        return int(await connection.fetchval("SELECT version FROM schema_version"))
    tables = await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = $1", SCHEMA)
    if tables:
        raise SchemaError(f"the schema '{SCHEMA}' of {place} belongs to something else; name another database")
    if not await connection.fetchval("SELECT to_regnamespace($1)", SCHEMA):
        await connection.execute(f"CREATE SCHEMA {SCHEMA}")
    await connection.execute("CREATE TABLE schema_version (version integer NOT NULL)")
    await connection.execute("INSERT INTO schema_version VALUES (0)")
    return 0
