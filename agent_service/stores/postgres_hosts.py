"""Connecting to a PostgreSQL database that may be on any of several hosts, and what its failures mean."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg
from asyncpg.connect_utils import SessionAttribute
from asyncpg.exceptions import TargetServerAttributeNotMatched

from agent_service.stores.errors import SchemaError, unavailable
from agent_service.stores.urls import one_by_one, without_password

SCHEMA = "agent_service"
CLASHES = (asyncpg.TransactionRollbackError, asyncpg.UniqueViolationError)
"""Another transaction got in the way; the same again may succeed."""
LOST = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,
)
"""There is no connection, or it cannot be used any more; another one may be had soon."""
_UNAVAILABLE = (
    *LOST,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
    asyncpg.LockNotAvailableError,
    asyncpg.TransactionRollbackError,
)


class DatedConnection(asyncpg.Connection):
    """A connection that knows when it was last known to be good, by the monotonic clock in seconds."""

    __slots__ = ("good",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.note_good()

    def note_good(self) -> None:
        """It has just answered."""
        self.good = time.monotonic()


class Hosts:
    """The hosts that a URL names, of which one can be written to. Connecting takes at most `seconds`.

    Each host has its share of that time: one that is gone does not answer at all, and the next one must be tried, too.
    """

    def __init__(self, url: str, seconds: float) -> None:
        self._urls = list(one_by_one(url))
        self._seconds = seconds
        self._attempts: set[asyncio.Task[DatedConnection]] = set()
        milliseconds = str(max(int(seconds * 1000), 1))
        self._settings = {
            "application_name": "agent-service",
            "search_path": SCHEMA,
            # What is acknowledged is on disk, whatever the database's default is.
            "synchronous_commit": "on",
            # Statements are short; compiling them would take longer.
            "jit": "off",
            # A statement is planned once for each connection: planning takes longer than to execute it. A plan made
            # while the tables were almost empty must still be good when they are not, so each goes by the indexes.
            "plan_cache_mode": "force_generic_plan",
            "enable_seqscan": "off",
            "enable_bitmapscan": "off",
            "enable_hashjoin": "off",
            "enable_mergejoin": "off",
            # The server does not learn of a client that gave up, and would keep the connection until it has the lock.
            "statement_timeout": milliseconds,
            # A process that stands still in the middle of a transaction must not keep others from its rows.
            "idle_in_transaction_session_timeout": milliseconds,
            # Nor must one whose host is gone, of which the server hears nothing at all.
            "tcp_keepalives_idle": "10",
            "tcp_keepalives_interval": "5",
            "tcp_keepalives_count": "3",
        }

    async def connect(self) -> DatedConnection:
        """A connection to the first host that can be written to, those first that could last time.

        An attempt whose caller gives up goes on until its own time is over: cancelled in its first moments, it would
        leave an error behind that nobody asks for, and that would be logged as such.
        """
        attempt = asyncio.create_task(self._connect())
        self._attempts.add(attempt)
        attempt.add_done_callback(self._attempts.discard)
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            attempt.add_done_callback(_dismiss)
            raise

    async def close(self) -> None:
        """Waits for attempts that nobody waits for any more, each of which has its own end."""
        while self._attempts:
            await asyncio.wait(self._attempts)

    async def _connect(self) -> DatedConnection:
        failed: list[Exception] = []
        for url in tuple(self._urls):
            try:
                connection: DatedConnection = await asyncpg.connect(
                    url,
                    timeout=self._seconds / len(self._urls),
                    connection_class=DatedConnection,
                    server_settings=self._settings,
                    target_session_attrs=SessionAttribute.read_write,
                )
                # Makes the driver look up these types now, and not while a transaction holds locks.
                await connection.fetchval("SELECT $1::int[], $2::bigint[]", [], [], timeout=self._seconds)
            except TargetServerAttributeNotMatched:
                failed.append(ConnectionError(f"{without_password(url)} is read-only, a standby perhaps"))
            except TimeoutError:
                failed.insert(0, TimeoutError(f"{without_password(url)} does not answer"))
            except (asyncpg.PostgresError, *_UNAVAILABLE) as error:
                failed.insert(0, error)
            else:
                self._urls.remove(url)
                self._urls.insert(0, url)
                return connection
        raise failed[0]


def _dismiss(attempt: asyncio.Task[DatedConnection]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().terminate()


def settled(error: BaseException) -> BaseException:
    """The error as callers see it: STORE_UNAVAILABLE if it came from the connection and not from what was asked."""
    # What cannot be sent is a ValueError, too.
    if isinstance(error, _UNAVAILABLE) and not isinstance(error, ValueError):
        return unavailable(_said(error))
    return error


def unusable(url: str, error: Exception) -> SchemaError:
    """The store cannot be used for this error, in one line."""
    said = _said(error)
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        said += f"; let its owner say: CREATE SCHEMA {SCHEMA} AUTHORIZATION the role of the URL"
    return SchemaError(f"cannot use the store {without_password(url)}: {said}")


START_ERRORS: tuple[type[Exception], ...] = (asyncpg.PostgresError, *_UNAVAILABLE, ValueError)
"""What a database that cannot be used makes of connecting and of the first statements."""


def _said(error: BaseException) -> str:
    """Without details: they are lines of their own, and may show values."""
    return next(iter(str(error).splitlines()), "") or "it did not answer in time"
