"""Kills servers at moments drawn from the seed, and starts them again on the same file."""

from __future__ import annotations

import asyncio
from random import Random

from tests.chaos.fleet import LEASE_SECONDS, Fleet, Server
from tests.chaos.journal import Journal

_MOMENTS = ("start", "receipt", "event", "event", "any", "any", "any")
"""After the next acknowledgement of a kind is seen, or at any time."""
_LONGEST_SECONDS, _TRAP_SECONDS = 1.6, 2.0
_TWICE_SHARE, _ALL_SHARE, _WORKER_SHARE, _FREEZE_SHARE = 0.1, 0.15, 0.5, 0.1


class Killer:
    """Kills `kills` times. `done` counts."""

    def __init__(self, fleet: Fleet, journal: Journal, rng: Random, kills: int) -> None:
        self._fleet = fleet
        self._journal = journal
        self._rng = rng
        self._kills = kills
        self.done = 0

    async def run(self) -> None:
        """All kills; afterwards every server serves."""
        while self.done < self._kills:
            server = self._rng.choice(self._fleet.servers)
            victims = self._fleet.servers if self._rng.random() < _ALL_SHARE else [server]
            if len(self._fleet.servers) > 1 and self._rng.random() < _FREEZE_SHARE:
                await self._freeze(server)
            await self._moment(victims)
            await asyncio.gather(*(self._again(victim) for victim in victims))

    async def _freeze(self, server: Server) -> None:
        """A server stands still for longer than its leases last, and then goes on as if nothing had happened."""
        server.freeze()
        await asyncio.sleep(LEASE_SECONDS * self._rng.uniform(1.0, 1.8))
        server.freeze(thaw=True)
        self._journal.counts["freezes"] += 1

    async def _moment(self, victims: list[Server]) -> None:
        kind = self._rng.choice(_MOMENTS)
        if kind == "any":
            await asyncio.sleep(self._rng.uniform(0.0, _LONGEST_SECONDS))
            self._strike(victims)
            return
        await asyncio.sleep(self._rng.uniform(0.0, _LONGEST_SECONDS / 2))
        sprung = asyncio.Event()

        def spring() -> None:
            self._strike(victims)
            sprung.set()

        self._journal.trap(kind, spring)
        try:
            await asyncio.wait_for(sprung.wait(), _TRAP_SECONDS)
        except TimeoutError:
            if self._journal.disarm():
                spring()

    def _strike(self, victims: list[Server]) -> None:
        for victim in victims:
            self.done += 1
            if self._rng.random() < _WORKER_SHARE and victim.kill_worker(self._rng.random()):
                continue
            victim.kill()

    async def _again(self, server: Server) -> None:
        """A dead server is started; sometimes it dies once more while it starts."""
        if not server.killed:  # Only a worker died, and its parent starts another one.
            return
        await server.gone()
        await server.launch()
        if self._rng.random() < _TWICE_SHARE:
            await asyncio.sleep(self._rng.uniform(0.0, 1.0))
            self.done += 1
            server.kill()
            await server.gone()
            await server.launch()
        await server.ready()
