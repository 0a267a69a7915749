"""What PostgreSQL does for many runs: python -m bench.postgres_upkeep [--paused N] [--running N]

The milliseconds of what each server process asks again and again, and of single calls, while so many runs are paused
and others running; and the bytes that one takes with its indexes.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import median

from agent_service.domain.moves import record_answer
from agent_service.domain.registry import CallFilter, Page, RunFilter
from agent_service.domain.run import Claim
from agent_service.domain.submit import submit
from agent_service.engine.loop import moved
from agent_service.stores.postgres import PostgresStore
from bench.machine import database
from bench.stores import TEXT, new_id
from tests.store_contract import SECOND, TENANT, client, new_run, returns, step, submitted

_CALLERS = 64
_TIMES = 30
_LEASE = 3600 * 10**9


async def fill(store: PostgresStore, paused: int, running: int) -> tuple[list[tuple[str, str]], list[Claim]]:
    """Starts runs and pauses them, and starts others; run and call of each paused one, and the claims of the others."""
    calls: list[tuple[str, str]] = []
    claims: list[Claim] = []

    async def caller(first: int) -> None:
        for number in range(first, paused + running, _CALLERS):
            run_id, call_id = new_id("run"), new_id("call")
            claim = Claim(TENANT, run_id, 1)
            await store.start(TENANT, new_run(run_id, text=TEXT))
            if number < paused:
                call = client(call_id, f'{{"text":"{TEXT}"}}')
                await store.owner_move(claim, moved(record_answer, step(call, text=TEXT)))
                calls.append((run_id, call_id))
            else:
                claims.append(claim)

    await asyncio.gather(*(caller(first) for first in range(_CALLERS)))
    return calls, claims


async def milliseconds(what: Callable[[], Awaitable[object]]) -> float:
    """The median of some times."""
    taken = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        await what()
        taken.append(time.perf_counter() - began)
    return median(taken) * 1e3


async def measure(paused: int, running: int) -> None:
    """Prints them."""
    with database() as server:
        store = await PostgresStore.open(server.url, publish=lambda *told: None, new_id=new_id)
        calls, claims = await fill(store, paused, running)
        sizes = await store.database.fetch(
            "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace "
            "WHERE n.nspname = 'agent_service' AND c.relkind = 'r'"
        )
        await store.database.fetch("ANALYZE")
        left = iter(calls)

        async def answer() -> None:
            run_id, call_id = next(left)
            submission = submitted(returns(call_id, TEXT))
            await store.move(TENANT, run_id, lambda draft: submit(draft, submission, SECOND), call_ids=(call_id,))

        watched = [(claim.tenant, claim.run_id) for claim in claims]
        print(
            f"{paused} paused runs, {running} running ones; {int(sizes[0][0]) / (paused + running) / 1024:.1f} KiB each"
        )
        for name, what in (
            (f"heartbeat of {running} runs", lambda: store.renew(claims, _LEASE)),
            (f"how far {running} runs are", lambda: store.standing(watched)),
            ("look for lost runs", lambda: store.lost_runs(100)),
            ("look for what is due", lambda: store.due_runs(100)),
            ("look for queued runs", lambda: store.queued_runs(100)),
            ("one submit", answer),
            ("GetRun", lambda: store.get_run(TENANT, calls[-1][0])),
            ("50 newest runs", lambda: store.list_runs(TENANT, RunFilter(), Page(50, descending=True))),
            ("50 oldest pending calls", lambda: store.waiting_calls(TENANT, CallFilter(), Page(50))),
            ("one claim", lambda: store.claim_calls(TENANT, CallFilter(), "worker", _LEASE, 1)),
        ):
            print(f"{name:28} {await milliseconds(what):8.2f} ms")
        await store.close()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paused", type=int, default=20_000, help="runs that wait for their caller (20000)")
    parser.add_argument("--running", type=int, default=1000, help="runs that are worked on (1000)")
    asyncio.run(measure(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
