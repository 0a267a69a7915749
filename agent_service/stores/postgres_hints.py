"""What processes on one PostgreSQL database tell each other, and its clock.

A hint only makes others look sooner: without any they look every LOOK_SECONDS, and what they read is the truth.
Hints are sent apart from the commits they are about, many at a time: commits that notify wait for each other.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import suppress

import asyncpg
import structlog

from agent_service.stores.postgres_hosts import START_ERRORS, Hosts, settled, unusable

log = structlog.get_logger()

LOOK_SECONDS = 0.5
"""The longest time between two looks at what others wrote, if no hint comes."""
HINT_SECONDS = 0.01
"""The shortest time between two hints of one process."""
CLOCK_SECONDS = 5.0
"""Between two readings of the database's clock, which show whether the connection lives, too."""
CLOCK = "(extract(epoch FROM clock_timestamp()) * 1000000000)::bigint"
"""The time of the database, in SQL: Unix nanoseconds, also in the middle of a transaction."""
_READ_CLOCK = f"SELECT {CLOCK}, current_setting('transaction_read_only') = 'on'"
_CHANNEL = "agent_service"
_RETRY_SECONDS = 1.0


class Hints:
    """The connection that hears and sends hints. `clock` takes the place of the database's in tests."""

    def __init__(self, url: str, seconds: float, clock: Callable[[], int] | None) -> None:
        self._url = url
        self._hosts = Hosts(url, seconds)
        self._seconds = seconds
        self._clock = clock
        self._name = secrets.token_hex(8)
        self._offset = time.time_ns() - time.monotonic_ns()
        self._changed = True
        self._looked = 0.0
        self._written = asyncio.Event()
        self._lost = False
        self._task = asyncio.create_task(self._stay_connected())

    @property
    def clock(self) -> int | None:
        """The time that takes the place of the database's, for SQL that asks for both."""
        return None if self._clock is None else self._clock()

    def now(self) -> int:
        """The time of the database as far as it is known here, within a round trip."""
        return time.monotonic_ns() + self._offset if self._clock is None else self._clock()

    def written(self) -> None:
        """This process has written something that may concern others."""
        self._written.set()

    def doubt(self) -> None:
        """It may have written something, and nobody was told."""
        self._changed = True
        self._written.set()

    def changed(self) -> bool:
        """Whether another process may have written since this was last asked."""
        now = time.monotonic()
        if not self._changed and now - self._looked < LOOK_SECONDS:
            return False
        self._changed, self._looked = False, now
        return True

    async def synchronize(self) -> None:
        """Reads the clock for the first time. Raises SchemaError."""
        try:
            connection = await self._hosts.connect()
            try:
                await self._read_clock(connection)
            finally:
                connection.terminate()
        except START_ERRORS as error:
            raise unusable(self._url, error) from error

    async def close(self) -> None:
        """Ends it."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        await self._hosts.close()

    async def _stay_connected(self) -> None:
        while True:
            try:
                connection = await self._hosts.connect()
                try:
                    await self._listen(connection)
                finally:
                    connection.terminate()
            except Exception as error:
                if not self._lost:
                    log.warning("store.hints_lost", error=str(settled(error)))
                self._lost = True
            await asyncio.sleep(_RETRY_SECONDS)

    async def _listen(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        """Hears and sends until the connection fails."""
        async with asyncio.timeout(self._seconds):
            await connection.add_listener(_CHANNEL, self._hear)
        if self._lost:
            log.info("store.hints_back")
        self._lost, self._changed = False, True
        read_clock = 0.0
        while True:
            if time.monotonic() - read_clock >= CLOCK_SECONDS:
                await self._read_clock(connection)
                read_clock = time.monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOCK_SECONDS):
                    await self._written.wait()
            if self._written.is_set():
                self._written.clear()
                await connection.execute("SELECT pg_notify($1, $2)", _CHANNEL, self._name, timeout=self._seconds)
                await asyncio.sleep(HINT_SECONDS)

    def _hear(self, _connection: object, _pid: int, _channel: str, sender: object) -> None:
        if sender != self._name:
            self._changed = True

    async def _read_clock(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        """The true time lies between asking and hearing. Raises ConnectionError if others are heard elsewhere now."""
        asked = time.monotonic_ns()
        row = await connection.fetchrow(_READ_CLOCK, timeout=self._seconds)
        assert row is not None
        now, read_only = row
        if read_only:
            raise ConnectionError("it has become read-only")
        self._offset = int(now) - (asked + time.monotonic_ns()) // 2
