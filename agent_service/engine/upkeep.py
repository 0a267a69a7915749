"""What a process does besides its calls: keeps its leases, takes over lost runs, hears what other processes wrote."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

from agent_service.domain.errors import AgentServiceError
from agent_service.engine.memory_runs import MemoryRuns
from agent_service.engine.runs import Runs

log = structlog.get_logger()

BEATS_PER_LEASE = 4
SWEEP_SECONDS = 1.0
"""Between two looks for lost runs."""
MAX_TRIMMED = 100
"""Runs whose events one look forgets at most; keeps the writes short."""
HINT_SECONDS = 0.05
"""Between two looks for what others wrote, while somebody here watches or works."""


class Upkeep:
    """The repeated duties of one process. Events are kept for `retention` nanoseconds after their run, 0 for ever."""

    def __init__(self, runs: Runs, memory_runs: MemoryRuns, retention: int = 0) -> None:
        self._runs = runs
        self._retention = retention
        self._memory_runs = memory_runs
        self._again = False

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        """Does all of it from now to the end of the block. Lost runs are taken over before anything else."""
        await _attempt(self.sweep)
        leases = self._runs.leases
        tasks = [
            asyncio.create_task(_repeat(leases.renew, leases.owner.lease / BEATS_PER_LEASE / 1e9)),
            asyncio.create_task(_repeat(self.sweep, SWEEP_SECONDS)),
            asyncio.create_task(_repeat(self.listen, HINT_SECONDS)),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def sweep(self) -> None:
        """Takes over lost runs, does what is due by the clock, begins queued runs and memory runs, and forgets old
        events."""
        count = await self._runs.take_over()
        if count:
            log.warning("runs.taken_over", count=count)
        await self._runs.expire_due()
        await self._runs.begin_queued()
        await self._memory_runs.look()
        if self._retention:
            store = self._runs.parts.store
            await store.trim_events(store.now() - self._retention, MAX_TRIMMED)

    async def listen(self) -> None:
        """Brings what other processes wrote to those here whom it concerns."""
        hub, store = self._runs.parts.hub, self._runs.parts.store
        if not (hub.watched or hub.inbox_watched) or not (await store.written_elsewhere() or self._again):
            return
        hub.stir_inbox()
        self._again = True  # also if the question fails: the store tells of a change once
        again = False
        watched = hub.watched
        found = await store.standing(watched)
        for tenant, run_id in watched:
            standing = found.get((tenant, run_id))
            if standing is None:
                hub.gone(tenant, run_id)
                continue
            self._runs.leases.check(tenant, run_id, standing.epoch)
            again |= hub.hear(tenant, run_id, standing.last_sequence)
        self._again = again


async def _repeat(duty: Callable[[], Awaitable[None]], seconds: float) -> None:
    failing = False
    while True:
        await asyncio.sleep(seconds)
        failing = not await _attempt(duty, quiet=failing)


async def _attempt(duty: Callable[[], Awaitable[None]], *, quiet: bool = False) -> bool:
    """Whether it was done. A failure is logged, unless the last attempt failed, and the duty is done again later."""
    try:
        await duty()
    except AgentServiceError as error:
        if not quiet:
            log.warning("upkeep.failed", error=error.message)
    except Exception:
        if not quiet:
            log.exception("upkeep.crashed")
    else:
        return True
    return False
