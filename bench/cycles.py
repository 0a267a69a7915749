"""A process that does nothing but cycles of a store, to be looked at: python -m bench.cycles sqlite|URL"""

from __future__ import annotations

import asyncio
import sys
import time
from functools import partial
from pathlib import Path

from agent_service.stores.postgres import PostgresStore
from agent_service.stores.sqlite import SqliteStore
from bench.load import together
from bench.stores import cycle, new_id

CALLERS = 64


def _ignored(*_: object) -> None:
    """Nobody watches."""


async def run(place: str) -> None:
    """Until the process is ended."""
    store: PostgresStore | SqliteStore
    if place == "sqlite":
        store = SqliteStore(Path("cycles.sqlite3"), publish=_ignored, clock=time.time_ns, new_id=new_id)
    else:
        store = await PostgresStore.open(place, publish=_ignored, new_id=new_id, connections=20)
    await together(CALLERS, 10, partial(cycle, store))
    print("listening on nothing", flush=True)
    while True:
        await together(CALLERS, 10, partial(cycle, store))


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1]))
