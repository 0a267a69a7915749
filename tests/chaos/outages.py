"""What befalls the PostgreSQL server of a campaign. Each outage ends with a server that works on the same data."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from random import Random

from tests.postgres import Postgres, Stop

_DOWN_SECONDS, _PAUSE_SECONDS = (0.0, 1.0), (1.0, 6.0)
"""For how long it is away; pauses last from less than a lease to more than the service waits for its store."""
_LONG_SHARE = 0.3
"""Of so many outages the length is anywhere in there; that of the others is in the first third."""


def _stopped(how: Stop) -> Callable[[Postgres, float], None]:
    def stop(database: Postgres, seconds: float) -> None:
        database.stop(how)
        time.sleep(seconds)
        database.start()

    return stop


def _killed(database: Postgres, seconds: float) -> None:
    database.kill()
    time.sleep(seconds)
    database.start()


def _paused(database: Postgres, seconds: float) -> None:
    database.pause()
    time.sleep(seconds)
    database.go_on()


PAUSE = "pauses of PostgreSQL"
_OUTAGES = {
    "fast stops of PostgreSQL": _stopped(Stop.FAST),
    "immediate stops of PostgreSQL": _stopped(Stop.IMMEDIATE),
    "kills of PostgreSQL": _killed,
    PAUSE: _paused,
}


class Outages:
    """One at a time, drawn from `rng`."""

    def __init__(self, database: Postgres, rng: Random) -> None:
        self._database = database
        self._rng = rng
        self._under_way: asyncio.Task[None] | None = None

    def begin(self) -> str:
        """Strikes at once; says with what."""
        name = self._rng.choice(list(_OUTAGES))
        low, high = _PAUSE_SECONDS if name == PAUSE else _DOWN_SECONDS
        seconds = self._rng.uniform(low, high if self._rng.random() < _LONG_SHARE else low + (high - low) / 3)
        # In a thread, so that clients and the model go on meanwhile; in one that lives as long as the campaign, because
        # the server lives no longer than the thread that started it.
        strike = asyncio.to_thread(_OUTAGES[name], self._database, seconds)
        self._under_way = asyncio.ensure_future(strike)
        return name

    async def over(self) -> None:
        """Returns when the server takes connections again."""
        if self._under_way is not None:
            await self._under_way
            self._under_way = None
