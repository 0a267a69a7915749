"""Kills servers, and their database, at moments drawn from the seed, and starts them again on the same data."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from random import Random

from tests.chaos.fleet import LEASE_SECONDS, Fleet, Server
from tests.chaos.journal import Journal
from tests.chaos.outages import PAUSE, Outages

_MOMENTS = ("start", "receipt", "event", "event", "any", "any", "any")
"""After the next acknowledgement of a kind is seen, or at any time."""
_LONGEST_SECONDS, _TRAP_SECONDS = 1.6, 2.0
_TWICE_SHARE, _ALL_SHARE, _WORKER_SHARE, _FREEZE_SHARE = 0.1, 0.15, 0.5, 0.1
_DATABASE_SHARE, _BOTH_SHARE = 0.45, 0.15
"""The database is struck, if it is a server; and servers at the same moment."""
_LOAD_SECONDS = 60.0


class Killer:
    """Kills `kills` times: servers, workers, and the database with `outages`. `done` counts."""

    def __init__(self, fleet: Fleet, journal: Journal, rng: Random, kills: int, outages: Outages | None = None) -> None:
        self._fleet = fleet
        self._journal = journal
        self._rng = rng
        self._kills = kills
        self._outages = outages
        self.done = 0

    async def run(self) -> None:
        """All kills; afterwards every server serves."""
        if self._kills:
            await self._load()
        while self.done < self._kills:
            server = self._rng.choice(self._fleet.servers)
            victims = self._fleet.servers if self._rng.random() < _ALL_SHARE else [server]
            if len(self._fleet.servers) > 1 and self._rng.random() < _FREEZE_SHARE:
                await self._freeze(server)
            outages = self._outages if self._rng.random() < _DATABASE_SHARE else None
            if outages is not None and self._rng.random() >= _BOTH_SHARE:
                victims = []
            await self._moment(functools.partial(self._strike, victims, outages))
            if outages is not None:
                await outages.over()
            await asyncio.gather(*(self._again(victim) for victim in victims))

    async def _load(self) -> None:
        """The first answers of tools are taken: conversations of every state are under way."""
        loaded = asyncio.Event()
        self._journal.trap("receipt", loaded.set)
        async with asyncio.timeout(_LOAD_SECONDS):
            await loaded.wait()

    async def _freeze(self, server: Server) -> None:
        """A server stands still for longer than its leases last, and then goes on as if nothing had happened."""
        server.freeze()
        await asyncio.sleep(LEASE_SECONDS * self._rng.uniform(1.0, 1.8))
        server.freeze(thaw=True)
        self._journal.counts["freezes"] += 1

    async def _moment(self, strike: Callable[[], None]) -> None:
        kind = self._rng.choice(_MOMENTS)
        if kind == "any":
            await asyncio.sleep(self._rng.uniform(0.0, _LONGEST_SECONDS))
            strike()
            return
        await asyncio.sleep(self._rng.uniform(0.0, _LONGEST_SECONDS / 2))
        sprung = asyncio.Event()

        def spring() -> None:
            strike()
            sprung.set()

        self._journal.trap(kind, spring)
        try:
            await asyncio.wait_for(sprung.wait(), _TRAP_SECONDS)
        except TimeoutError:
            if self._journal.disarm():
                spring()

    def _strike(self, victims: list[Server], outages: Outages | None) -> None:
        for victim in victims:
            if self._rng.random() < _WORKER_SHARE and victim.kill_worker(self._rng.random()):
                self._count("kills of a worker")
            else:
                victim.kill()
                self._count("kills of a server")
        if outages is not None:
            self._count(outages.begin())

    def _count(self, what: str) -> None:
        self._journal.counts[what] += 1
        if what != PAUSE:
            self.done += 1

    async def _again(self, server: Server) -> None:
        """A dead server is started; sometimes it dies once more while it starts."""
        if not server.killed:  # Only a worker died, and its parent starts another one.
            return
        await server.gone()
        await server.launch()
        if self._rng.random() < _TWICE_SHARE:
            await asyncio.sleep(self._rng.uniform(0.0, 1.0))
            server.kill()
            self._count("kills of a server that starts")
            await server.gone()
            await server.launch()
        await server.ready()
