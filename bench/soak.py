"""A server under moderate load for long: python -m bench.soak [--minutes N] [--store postgres]

Callers start runs that pause, answer, cancel some, leave some paused, and watch. Every few seconds the server is looked
at from outside: memory, open files, threads, the size of its store. Writes all of it as JSON and plots, and says how
much each grew in an hour, without the first quarter of the time, when caches fill.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import asyncpg
from agentrpc.v1 import runs_pb2

from bench.figures import Curve, short, slope
from bench.machine import database, describe
from bench.plots import save, terminal
from bench.processes import ROOT, Process, run, service, upstream
from tests.service import SECRET, Client, connected, returned

RESULTS = ROOT / "bench" / "results"
CALLERS = 8
_PAUSE = 0.1
"""Seconds that a caller rests between two calls, on average."""
_LEFT_PAUSED = 200
"""So many runs are left paused, as time goes on; others are answered, or cancelled, at once."""
_MOST_POINTS = 400
_LIMITS = '{"context_cache_bytes": 2097152}'
"""Full within the first quarter of the time, so that it does not look like something that grows for ever."""
_UNITS = {"memory": "MB", "open files": "", "threads": "", "store": "MB", "rounds": ""}
Sample = dict[str, float]


class Load:
    """The callers. `done` counts what they did."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._random = random.Random(1)
        self._paused: list[str] = []
        self.done: Counter[str] = Counter()

    async def run(self, until: float) -> None:
        """Until then, by the clock of time.monotonic()."""

        async def caller() -> None:
            while time.monotonic() < until:
                await self._one()

        await asyncio.gather(*(caller() for _ in range(CALLERS)))

    async def _one(self) -> None:
        """A round: of its runs most are answered, some are cancelled, and some stay paused for long."""
        client, chance = self._client, self._random.random()
        run = (await client.ask("Ask the tool for the code of Alice.", SECRET, model="tool")).run
        watcher = asyncio.create_task(self._watch(run)) if chance < 0.5 else None
        await self._rest()
        if chance < 0.1:
            await client.cancel(run.run_id)
            self.done["cancelled"] += 1
        elif chance < 0.2:
            self._paused.append(run.run_id)
            if len(self._paused) > _LEFT_PAUSED:
                await client.cancel(self._paused.pop(0))
            if watcher is not None:
                watcher.cancel()
            self.done["left paused"] += 1
        else:
            await client.answer(run.run_id, returned(run.pending_tool_calls[0], "SECRET-4711"))
            await self._rest()
            await client.ask("Which code was it?", conversation_id=run.conversation_id, model="tool")
            await client.messages(run.conversation_id)
            self.done["answered"] += 1
        if watcher is not None:
            await asyncio.wait([watcher])
            if not watcher.cancelled():
                watcher.result()
        await self._rest()

    async def _watch(self, run: runs_pb2.Run) -> None:
        events = await self._client.watch(run.run_id)
        assert events[-1].run_stopped.final, events[-1]
        self.done["watched"] += 1

    async def _rest(self) -> None:
        await asyncio.sleep(self._random.expovariate(1 / _PAUSE))


async def sample(process: Process, load: Load, began: float, stored: Callable[[], object]) -> Sample:
    """The server as it is now."""
    size = stored()
    megabytes = float(await size if asyncio.iscoroutine(size) else size) / 1e6  # type: ignore[arg-type]  # one of both
    return {
        "seconds": time.monotonic() - began,
        "memory": process.memory / 1e6,
        "open files": process.count("fd"),
        "threads": process.count("task"),
        "store": megabytes,
        "rounds": load.done.total() - load.done["watched"],
    }


def growth(samples: Sequence[Sample]) -> dict[str, float]:
    """By how much each figure grew in an hour, without the first quarter of the samples."""
    settled = samples[len(samples) // 4 :]
    settled = settled[:: 1 + len(settled) // _MOST_POINTS]
    return {name: slope([(one["seconds"] / 3600, one[name]) for one in settled]) for name in _UNITS}


async def soak(seconds: float, every: float, postgres: bool) -> tuple[list[Sample], Counter[str]]:
    """The samples, and what was done."""
    async with AsyncExitStack() as stack:
        endpoint = await stack.enter_async_context(upstream())
        url = stack.enter_context(database()).url if postgres else ""
        process = await stack.enter_async_context(service(endpoint, url or "soak.sqlite3", _LIMITS))
        load = Load(await stack.enter_async_context(connected(process.target)))
        stored: Callable[[], object] = partial(_files, process.folder)
        if url:
            admin = await asyncpg.connect(url)
            stack.push_async_callback(admin.close)
            stored = partial(admin.fetchval, "SELECT pg_database_size(current_database())")
        began = time.monotonic()
        task = asyncio.create_task(load.run(began + seconds))
        samples = []
        while not task.done():
            await asyncio.wait([task], timeout=every)
            samples.append(await sample(process, load, began, stored))
        task.result()
        return samples, load.done


def _files(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.sqlite3*"))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long (20)")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks (5)")
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite", help="(sqlite)")
    given = parser.parse_args()
    machine = describe()
    samples, done = run(soak(given.minutes * 60, given.every, given.store == "postgres"))
    grown = growth(samples)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"soak-{given.store}.json"
    found = {"machine": machine, "done": done, "growth an hour": grown, "samples": samples}
    path.write_text(f"{json.dumps(found, indent=1)}\n")
    for name, unit in _UNITS.items():
        points = tuple((one["seconds"] / 60, one[name]) for one in samples)
        curve = [Curve(f"soak-{given.store}", name, "minutes", f"{name} {unit}".strip(), points, logarithmic=False)]
        save(curve, path.with_name(f"{path.stem}-{name.replace(' ', '-')}.png"))
        if name == "memory":
            print(terminal(curve))
    print(f"done: {', '.join(f'{count} {what}' for what, count in done.items())}")
    last = samples[-1]
    for name, unit in _UNITS.items():
        print(f"{name:10} {short(last[name]):>8} {unit:2}  {grown[name]:+10.2f} an hour")
    print(f"store: {last['store'] * 1e3 / max(1.0, last['rounds']):.1f} kB a round\nwritten: {path}")


if __name__ == "__main__":
    main()
