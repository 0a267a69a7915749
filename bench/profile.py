"""Where CPU time goes, as flame graphs: python -m bench.profile [PART ...] [--seconds N]

For each part a load runs against the service (or a store in a process of its own), and py-spy samples that process:
build/profile/PART.svg, and PART.txt with the functions that most samples are in. It reads the memory of another
process, for which Linux may want root.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from bench.load import Answers, one_round, together
from bench.machine import database
from bench.processes import ROOT, Process, run, service, started, upstream
from bench.stored import Paused, copies, copy, pause_one
from tests.service import Client, connected, returned

OUTPUT = ROOT / "build" / "profile"
_RATE = 200
_SHOWN = 25
_CALLERS = 20

Load = Callable[[], Awaitable[object]]
"""A piece of load, to be repeated."""
Part = Callable[[AsyncExitStack], Awaitable[tuple[Process, Load]]]


async def tokens(stack: AsyncExitStack) -> tuple[Process, Load]:
    """Paced streams."""
    process, client = await _service(stack)
    return process, lambda: asyncio.gather(*(Answers().read(client, "text:100@50") for _ in range(_CALLERS)))


async def burst(stack: AsyncExitStack) -> tuple[Process, Load]:
    """Streams whose tokens come at once, each a message of its own."""
    process, client = await _service(stack)
    return process, lambda: Answers().read(client, "mixed:2000")


async def rounds(stack: AsyncExitStack) -> tuple[Process, Load]:
    """Rounds with a pause on SQLite."""
    process, client = await _service(stack)
    return process, partial(together, _CALLERS, 3, partial(one_round, client))


async def submit(stack: AsyncExitStack) -> tuple[Process, Load]:
    """Submits to runs that were paused before, on SQLite, with the answers of the model."""
    endpoint = await stack.enter_async_context(upstream())
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
    first = await pause_one(endpoint, folder / "store")
    copies(folder / "store", first, 50_000)
    process = await stack.enter_async_context(service(endpoint, str(folder / "store")))
    client = await stack.enter_async_context(connected(process.target))
    numbers = iter(range(1, 50_001))
    return process, partial(together, _CALLERS, 5, lambda: _submit(client, copy(first, next(numbers))))


async def _submit(client: Client, run: Paused) -> None:
    await client.answer(run.run_id, returned(run.call_id, "SECRET-4711"))


async def sqlite(stack: AsyncExitStack) -> tuple[Process, Load]:
    """Cycles of the SQLite store by 64 callers."""
    return await _store(stack, "sqlite")


async def postgres(stack: AsyncExitStack) -> tuple[Process, Load]:
    """Cycles of the PostgreSQL store by 64 callers."""
    return await _store(stack, stack.enter_context(database()).url)


PARTS: dict[str, Part] = {part.__name__: part for part in (tokens, burst, rounds, submit, sqlite, postgres)}


async def _service(stack: AsyncExitStack) -> tuple[Process, Client]:
    process = await stack.enter_async_context(service(await stack.enter_async_context(upstream())))
    return process, await stack.enter_async_context(connected(process.target))


async def _store(stack: AsyncExitStack, store: str) -> tuple[Process, Load]:
    process = await stack.enter_async_context(started(sys.executable, "-m", "bench.cycles", store))
    return process, partial(asyncio.sleep, 0.1)  # It makes its load itself.


@asynccontextmanager
async def _loaded(load: Load) -> AsyncIterator[None]:
    """With this load again and again; fails if that does."""

    async def repeat() -> None:
        while True:
            await load()

    task = asyncio.create_task(repeat())
    try:
        yield
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def profile(name: str, seconds: int) -> str:
    """The flame graph and the text of one part; the text."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        process, load = await PARTS[name](stack)
        await load()
        async with _loaded(load):
            await _record(process, seconds, "flamegraph", OUTPUT / f"{name}.svg")
            raw = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "raw"
            await _record(process, seconds, "raw", raw)
            text = f"{PARTS[name].__doc__}\n\n{hottest(raw.read_text().splitlines())}\n"
    (OUTPUT / f"{name}.txt").write_text(text)
    return f"{name}: {text}"


async def _record(process: Process, seconds: int, form: str, path: Path) -> None:
    spy = Path(sys.executable).with_name("py-spy")
    # Stopped for each sample, threads that wait would look as if they worked.
    how = ("--nonblocking", "--rate", str(_RATE), "--duration", str(seconds))
    child = await asyncio.create_subprocess_exec(
        *(str(spy), "record", "--pid", str(process.pid), *how, "--format", form, "--output", str(path)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await child.communicate()
    if child.returncode:
        raise SystemExit(f"error: py-spy cannot look at the process: {said.decode().strip()}")


def hottest(stacks: Iterable[str]) -> str:
    """A table of functions: the share of samples that are in each, alone and with what it calls. A line of `stacks` is
    "outer (file:line);inner (file:line) COUNT"."""
    alone: Counter[str] = Counter()
    within: Counter[str] = Counter()
    total = 0
    for line in stacks:
        frames, _, count = line.rpartition(" ")
        names = [_function(frame) for frame in frames.split(";")]
        total += int(count)
        alone[names[-1]] += int(count)
        for name in set(names):
            within[name] += int(count)
    lines = ["  with  alone  function"]
    lines += [
        f"{100 * within[name] / total:5.1f}% {100 * count / total:5.1f}%  {name}"
        for name, count in alone.most_common(_SHOWN)
    ]
    lines.append("\n  with  function of the service")
    ours = [name for name in within if "agent_service/" in name]
    lines += [
        f"{100 * within[name] / total:5.1f}%  {name}" for name in sorted(ours, key=lambda each: -within[each])[:_SHOWN]
    ]
    return "\n".join(lines)


def _function(frame: str) -> str:
    """A frame without its line, and without what is before the package in its path."""
    return re.sub(r"\(.*?((?:[\w.-]+/){0,2}[\w<>.-]+):\d+\)$", r"(\1)", frame)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[], metavar="PART", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--seconds", type=int, default=10, help="of samples for each (10)")
    given = parser.parse_args()
    for name in given.parts or PARTS:
        if name not in PARTS:
            parser.error(f"{name!r} is none of {', '.join(PARTS)}")
        print(run(profile(name, given.seconds)), flush=True)
    print(f"written: {OUTPUT}")


if __name__ == "__main__":
    main()
