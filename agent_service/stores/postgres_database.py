"""Connections to a PostgreSQL database: opening, the schema, transactions within a bound of time, and failures."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import asyncpg

from agent_service.domain.errors import AgentServiceError
from agent_service.stores.errors import SchemaError, unavailable
from agent_service.stores.urls import without_password

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

T = TypeVar("T")
# A text, since only type checkers know the parameters of these classes.
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
Work = Callable[[Connection], Awaitable[T]]

SCHEMA_VERSION = 1
"""The last file in `postgres_schema/`; each file takes a database from the version before it."""
POOL_SIZE = 10
"""Connections of one process, unless told otherwise."""
_MINIMUM_SERVER = 14
_SCHEMA = "agent_service"
_MIGRATION_LOCK = 0x61677270
ATTEMPTS = 5
"""How often work is done that others got in the way of."""
_SERVER_SETTINGS = {
    "application_name": "agent-service",
    "search_path": _SCHEMA,
    # What is acknowledged is on disk, whatever the database's default is.
    "synchronous_commit": "on",
    # Statements are short; compiling them would take longer.
    "jit": "off",
    # A statement is planned once for each connection: planning takes longer than to execute it. A plan made while the
    # tables were almost empty must still be good when they are not, so each goes by the indexes.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}

_CLASHES = (asyncpg.TransactionRollbackError, asyncpg.UniqueViolationError)
"""Another transaction got in the way; the same again may succeed."""
_UNAVAILABLE = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TransactionRollbackError,
)


def settled(error: BaseException) -> BaseException:
    """The error as callers see it: STORE_UNAVAILABLE if it came from the connection and not from what was asked."""
    if isinstance(error, _UNAVAILABLE) and not isinstance(error, asyncpg.DataError):
        return unavailable(str(error) or "it did not answer in time")
    return error


class Database:
    """A pool of connections. Each piece of work has `seconds` from the moment it is asked for, whatever it waits for.

    Work goes on when its caller is cancelled: what is committed is always told.
    """

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], seconds: float) -> None:
        self._pool = pool
        self._seconds = seconds
        self._tasks: set[asyncio.Task[Any]] = set()

    @classmethod
    async def open(cls, url: str, *, seconds: float, size: int) -> Database:
        """Connects, and brings the schema up to date. Raises SchemaError."""
        try:
            async with asyncio.timeout(2 * seconds):
                connection = await connect(url, seconds)
                try:
                    await _migrate(connection, without_password(url))
                finally:
                    connection.terminate()
            pool = await asyncpg.create_pool(
                url,
                min_size=1,
                max_size=size,
                timeout=seconds,
                reset=_as_it_is,
                server_settings=_SERVER_SETTINGS,
            )
        except (asyncpg.PostgresError, *_UNAVAILABLE, ValueError) as error:
            said = str(error) or f"it did not answer within {seconds:g} s"
            raise SchemaError(f"cannot use the store {without_password(url)}: {said}") from error
        return cls(pool, seconds)

    async def write(self, work: Work[T], done: Callable[[T], None] | None = None, *, attempts: int = ATTEMPTS) -> T:
        """The result of work in one transaction; `done` is called with it right after the commit.

        Raises STORE_UNAVAILABLE (it may be committed), and what the work raises (it is not).
        """
        return await self._shielded(self._write(work, done, attempts))

    async def read(self, work: Work[T]) -> T:
        """The result of work that sees one state of the database."""
        return await self._shielded(self._transact(work, None, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"))

    async def fetch(self, sql: str, *values: object) -> list[asyncpg.Record]:
        """The rows of one statement."""

        async def statement(connection: Connection) -> list[asyncpg.Record]:
            return await connection.fetch(sql, *values)

        return await self._shielded(self._transact(statement, None, ""))

    async def close(self) -> None:
        """Finishes what was begun and closes."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        try:
            async with asyncio.timeout(self._seconds):
                await self._pool.close()
        except _UNAVAILABLE:
            self._pool.terminate()

    async def _shielded(self, work: Awaitable[T]) -> T:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # The caller may be gone.

    async def _write(self, work: Work[T], done: Callable[[T], None] | None, attempts: int) -> T:
        for last in [False] * (attempts - 1) + [True]:
            try:
                return await self._transact(work, done, "BEGIN")
            except _CLASHES as error:
                if last:
                    raise settled(error) from error
        raise AssertionError("at least one attempt is made")

    async def _transact(self, work: Work[T], done: Callable[[T], None] | None, begin: str) -> T:
        """On a connection that is given back only if it can be used again."""
        connection: PoolConnectionProxy[asyncpg.Record] | None = None
        usable = False
        try:
            async with asyncio.timeout(self._seconds):
                connection = await self._pool.acquire()
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
                    await connection.execute("COMMIT")
                usable = True
        except _CLASHES:
            raise
        except Exception as error:
            usable = usable and settled(error) is error
            raise settled(error) from error
        finally:
            if connection is not None:
                if not usable:
                    # One that the database has closed has left the pool by itself, and cannot be terminated any more.
                    with suppress(asyncpg.InterfaceError):
                        connection.terminate()
                await self._pool.release(connection)
        if done is not None:
            done(result)
        return result


async def connect(url: str, seconds: float) -> asyncpg.Connection[asyncpg.Record]:
    """A connection outside of a pool."""
    return await asyncpg.connect(url, timeout=seconds, server_settings=_SERVER_SETTINGS)


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
    tables = await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = $1", _SCHEMA)
    if tables:
        raise SchemaError(f"the schema '{_SCHEMA}' of {place} belongs to something else; name another database")
    if not await connection.fetchval("SELECT to_regnamespace($1)", _SCHEMA):
        await connection.execute(f"CREATE SCHEMA {_SCHEMA}")
    await connection.execute("CREATE TABLE schema_version (version integer NOT NULL)")
    await connection.execute("INSERT INTO schema_version VALUES (0)")
    return 0
