"""How fast stores write: python -m bench.stores [--cycles N] [--callers N ...]

A cycle is four transactions: a run starts, its model calls a client tool, the return is submitted, the model answers.
The last rows are references on the same database: the same writes with one statement for each transaction and nothing
decided in between, and the store without group commit.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from agent_service.domain.moves import record_answer
from agent_service.domain.run import Claim
from agent_service.domain.submit import submit
from agent_service.engine.loop import moved
from agent_service.engine.store import RunStore
from agent_service.stores import postgres_batches
from agent_service.stores.postgres import PostgresStore
from agent_service.stores.sqlite import SqliteStore
from bench.machine import Used, database
from bench.one_trip import one_trip
from tests.postgres import Postgres
from tests.store_contract import SECOND, TENANT, client, new_run, returns, step, submitted

TEXT = "y" * 430
"""Of each message: prose in most of them is about so long."""


def new_id(prefix: str) -> str:
    """A fresh id."""
    return f"{prefix}_{secrets.token_hex(12)}"


async def cycle(store: RunStore) -> None:
    """One run, from its start over a pause to its end."""
    run_id, call_id = new_id("run"), new_id("call")
    await store.start(TENANT, new_run(run_id, text=TEXT))
    call = client(call_id, f'{{"text":"{TEXT}"}}')
    await store.owner_move(Claim(TENANT, run_id, 1), moved(record_answer, step(call, text=TEXT)))
    submission = submitted(returns(call_id, TEXT))
    await store.move(
        TENANT,
        run_id,
        lambda draft: submit(draft, submission, SECOND),
        call_ids=(call_id,),
        request_id=submission.request_id,
    )
    await store.owner_move(Claim(TENANT, run_id, 2), moved(record_answer, step(text=TEXT)))


@dataclass(frozen=True)
class Row:
    """What was measured with so many callers."""

    name: str
    callers: int
    cycles: int
    used: Used

    def __str__(self) -> str:
        client, server = (seconds / self.cycles * 1e3 for seconds in (self.used.client, self.used.server))
        rate = self.cycles / self.used.wall
        return f"{self.name:24} {self.callers:7} {rate:10.0f} {client:12.2f} {server:14.2f}"


async def measure(
    name: str, work: Callable[[], Awaitable[None]], callers: int, cycles: int, server: Postgres | None = None
) -> Row:
    """So many cycles by so many callers, after a few that are not counted."""
    each = max(1, cycles // callers)

    async def caller(count: int) -> None:
        for _ in range(count):
            await work()

    await asyncio.gather(*(caller(max(4, 128 // callers)) for _ in range(callers)))
    with Used(server) as used:
        await asyncio.gather(*(caller(each) for _ in range(callers)))
    return Row(name, callers, each * callers, used)


async def measure_all(cycles: int, callers: list[int]) -> None:
    """Prints a row for each store and number of callers."""
    print(f"{'store':24} {'callers':>7} {'cycles/s':>10} {'CPU ms/cycle':>12} {'of PostgreSQL':>14}")
    with tempfile.TemporaryDirectory() as folder, database() as server:
        for count in callers:
            share = cycles if count > 1 else cycles // 8
            sqlite = SqliteStore(Path(folder, str(count)), publish=_ignored, clock=time.time_ns, new_id=new_id)
            print(await measure("sqlite", partial(cycle, sqlite), count, share))
            await sqlite.close()
            for name, batch, lanes in (("postgres", *_GROUPED), ("postgres, one by one", 1, 16)):
                postgres_batches.MAX_BATCH, postgres_batches.LANES = batch, lanes
                store = await PostgresStore.open(server.url, publish=_ignored, new_id=new_id, connections=20)
                print(await measure(name, partial(cycle, store), count, share, server))
                await store.close()
            async with one_trip(server.url, TEXT) as raw:
                print(await measure("raw, one trip each", raw.cycle, count, share, server))


_GROUPED = (postgres_batches.MAX_BATCH, postgres_batches.LANES)


def _ignored(*_: object) -> None:
    """Nobody watches."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=3200, help="for each row; an eighth of it for one caller (3200)")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 64], help="at once (1 8 64)")
    asyncio.run(measure_all(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
