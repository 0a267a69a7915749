"""What it costs that much is there: runs that are paused, watchers that wait, and the program itself."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench.figures import Goal, Report, Row
from bench.load import spent
from bench.processes import Process, reference, service, upstream
from bench.stored import Paused, copies, copy, pause_one
from tests.service import Client, connected, returned

_FEW = 1000
_WATCHERS = 5000
_WATCHER_BYTES = 40_000
_AT_ONCE = 200
_SUBMITS = 20


@asynccontextmanager
async def _serving(folder: Path, endpoint: Process, *counts: int) -> AsyncIterator[tuple[Paused, list[Process]]]:
    """Servers on files with so many paused runs, which are copies of this one."""
    first = await pause_one(endpoint, folder / "one")
    async with AsyncExitStack() as stack:
        processes = []
        for count in counts:
            path = folder / str(count)
            path.write_bytes((folder / "one").read_bytes())
            copies(path, first, count)
            processes.append(await stack.enter_async_context(service(endpoint, str(path))))
        yield first, processes


async def paused(report: Report, quick: bool) -> None:
    """A submit, and the memory of the server, among many paused runs."""
    many = 20_000 if quick else 1_000_000
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        async with upstream() as endpoint, _serving(Path(name), endpoint, _FEW, many) as (first, processes):
            # Before anything else: how much memory they need only because runs are paused.
            memory = [process.memory / 1e6 for process in processes]
            async with connected(processes[0].target) as few, connected(processes[1].target) as other:
                chosen = [random.Random(1).sample(range(1, count + 1), min(count, 900)) for count in (_FEW, many)]
                contenders = {
                    "few": partial(_submits, processes[0], few, first, iter(chosen[0])),
                    "many": partial(_submits, processes[1], other, first, iter(chosen[1])),
                }
                await Report().compare("not counted", contenders, 2)
                figures = await report.compare("CPU ms of a submit", contenders, 5 if quick else 15)
    report.rows += [
        Row(
            "paused",
            f"submit and answer with {many:,} paused runs",
            "CPU ms a submit",
            f"ours, {_FEW:,} paused runs",
            figures["many"],
            figures["few"],
            Goal(at_most=1.5),
        ),
        Row(
            "paused",
            f"memory of the server with {many:,} paused runs",
            "MB",
            f"ours, {_FEW:,} paused runs",
            memory[1],
            memory[0],
            Goal(at_most=1.1),
        ),
    ]


async def _submits(process: Process, client: Client, first: Paused, numbers: Any) -> float:
    """CPU milliseconds of one of the next submits, with the model's answer."""

    async def submit() -> None:
        for _ in range(_SUBMITS):
            run = copy(first, next(numbers))
            await client.answer(run.run_id, returned(run.call_id, "SECRET-4711"))

    return (await spent(process, submit())).cpu / _SUBMITS * 1e3


async def watchers(report: Report, quick: bool) -> None:
    """The memory of a server for each stream that waits for something to happen, each at a run of its own."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        async with upstream() as endpoint, _serving(Path(name), endpoint, _WATCHERS) as (first, (process,)):
            ours = await _watched(process, first)
            async with reference("bare", endpoint) as bare:
                theirs = await _watched(bare, first)
    what = f"memory of an idle watcher, {_WATCHERS:,} of them"
    report.rows += [
        Row("watchers", what, "bytes", "40 kB", ours, _WATCHER_BYTES, Goal(at_most=1.0)),
        Row("watchers", what, "bytes", "grpc.aio alone", ours, theirs),
    ]


async def _watched(process: Process, first: Paused) -> float:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(process.target)) for _ in range(10)]
        calls = await _attached(clients, first, range(1, 11))
        before = process.memory
        calls += await _attached(clients, first, range(11, _WATCHERS + 1))
        after = process.memory
        for call in calls:
            call.cancel()
    return (after - before) / (_WATCHERS - 10)


async def _attached(clients: Sequence[Client], first: Paused, numbers: Sequence[int]) -> list[Any]:
    """Streams that have told all there is, opened so many at once that gRPC does not refuse some (1000 may wait)."""
    calls = []
    for start in range(0, len(numbers), _AT_ONCE):
        opened = [
            clients[number % len(clients)].watching(copy(first, number).run_id, first.last_sequence)
            for number in numbers[start : start + _AT_ONCE]
        ]
        for call in opened:
            event = (await call.read()).event
            assert event.HasField("live"), event
        calls += opened
    return calls


async def program(report: Report, quick: bool) -> None:
    """CPU time of the command's help, which a shell's completion asks for."""
    command = Path(sys.executable).with_name("agent-service")
    contenders = {
        "ours": partial(_process, str(command), "--help"),
        "python": partial(_process, sys.executable, "-c", "pass"),
    }
    figures = await report.compare("CPU ms of a process", contenders, 9 if quick else 25)
    report.rows.append(
        Row(
            "program",
            "agent-service --help",
            "CPU ms",
            "python -c pass",
            figures["ours"],
            figures["python"],
            Goal(at_most=3.0),
        )
    )


async def _process(*command: str) -> float:
    """CPU milliseconds of a process, from its start to its end."""
    return await asyncio.to_thread(_ended, command)


def _ended(command: tuple[str, ...]) -> float:
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    process = os.posix_spawn(command[0], command, os.environ, file_actions=quiet)
    _, status, usage = os.wait4(process, 0)
    assert status == 0
    return (usage.ru_utime + usage.ru_stime) * 1e3
