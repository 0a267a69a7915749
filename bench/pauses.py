"""Durable pauses: cycles of a store beside plain loops that write the same rows, without gRPC and without a model."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from statistics import median

from agent_service.stores.postgres import PostgresStore
from agent_service.stores.sqlite import SqliteStore
from bench import stores
from bench.figures import Goal, Report, Row
from bench.machine import database
from bench.one_trip import one_trip
from bench.raw_sqlite import RawLoop
from tests.postgres import Postgres

_CYCLE = "start, pause, submit, end"


async def on_sqlite(report: Report, quick: bool) -> None:
    """One caller, who waits for each flush, and many, whose writes are flushed together."""
    cycles, times = (400, 2) if quick else (640, 3)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        store = SqliteStore(Path(folder, "ours"), publish=_ignored, clock=time.time_ns, new_id=stores.new_id)
        raw = RawLoop(Path(folder, "raw"), stores.TEXT)
        for callers, least in ((1, 0.65), (64, 2.0)):
            bench = _Cycles(cycles if callers > 1 else cycles // 2)
            contenders = {
                "ours": partial(bench.rate, "ours", partial(stores.cycle, store), callers),
                # A plain loop does one after the other, however many wait.
                "raw": partial(bench.rate, "raw", raw.cycle, 1),
            }
            what = f"cycles/s on SQLite, {callers} callers"
            figures = await report.compare(what, contenders, times)
            name = f"{_CYCLE}; {callers} callers"
            goal = Goal(at_least=least)
            report.rows.append(Row("sqlite", name, "cycles/s", "plain loop", figures["ours"], figures["raw"], goal))
            cpu = bench.medians("client")
            report.rows.append(Row("sqlite", f"CPU of it, {callers} callers", "ms a cycle", "plain loop", *cpu))
        await store.close()
        raw.close()


async def on_postgres(report: Report, quick: bool) -> None:
    """Many callers, beside one statement for each transaction and nothing decided in between."""
    cycles, times = (640, 2) if quick else (1280, 3)
    bench = _Cycles(cycles)
    with database() as server:
        store = await PostgresStore.open(server.url, publish=_ignored, new_id=stores.new_id, connections=20)
        async with one_trip(server.url, stores.TEXT) as raw:
            contenders = {
                "ours": partial(bench.rate, "ours", partial(stores.cycle, store), 64, server),
                "raw": partial(bench.rate, "raw", raw.cycle, 64, server),
            }
            what = "cycles/s on PostgreSQL, 64 callers"
            figures = await report.compare(what, contenders, times)
            report.samples.update(bench.cpu)
            name = f"{_CYCLE}; 64 callers"
            goal = Goal(at_least=5.0)
            report.rows.append(
                Row("postgres", name, "cycles/s", "one trip each, 16 lanes", figures["ours"], figures["raw"], goal)
            )
            report.rows.extend(
                Row("postgres", f"{whose} CPU of it", "ms a cycle", "one trip each, 16 lanes", ours, theirs)
                for whose, ours, theirs in (
                    ("client's", *bench.medians("client")),
                    ("PostgreSQL's", *bench.medians("server")),
                )
            )
        await store.close()


class _Cycles:
    """Measures so many cycles, and keeps what CPU time they took."""

    def __init__(self, cycles: int) -> None:
        self.cpu: dict[str, list[float]] = {}
        self._cycles = cycles

    async def rate(
        self, name: str, work: Callable[[], Awaitable[None]], callers: int, server: Postgres | None = None
    ) -> float:
        """Cycles in a second, by so many callers."""
        row = await stores.measure(name, work, callers, self._cycles, server)
        for whose, seconds in (("client", row.used.client), ("server", row.used.server)):
            self.cpu.setdefault(f"{whose} CPU ms a cycle, {name}", []).append(seconds / row.cycles * 1e3)
        return row.cycles / row.used.wall

    def medians(self, whose: str) -> tuple[float, float]:
        """CPU milliseconds of a cycle, ours and that of the reference."""
        ours, theirs = (median(self.cpu[f"{whose} CPU ms a cycle, {name}"]) for name in ("ours", "raw"))
        return ours, theirs


def _ignored(*_: object) -> None:
    """Nobody watches."""
