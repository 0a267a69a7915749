"""The path of a token: from the model endpoint through the server to its client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median

from bench.figures import Contender, Curve, Goal, Report, Row
from bench.load import Answers, spent
from bench.processes import Process, reference, service, upstream
from tests.service import Client, connected

RATE = 50
"""Tokens a second of a paced stream."""
_FIRST = 7
"""First tokens that a figure is the median of."""
_FIRST_GOALS = {"socket": Goal(at_most=2.5), "durable": None, "sdk": Goal(at_most=0.5)}
_NAMES = {
    "socket": "bare socket + grpc.aio",
    "durable": "the same after a flushed row",
    "sdk": "openai SDK + grpc.aio",
    "bare": "grpc.aio alone",
}
Server = tuple[Process, Client]


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    times: int
    streams: int
    seconds: float
    burst: int
    curve: tuple[int, ...]
    first: Mapping[int, int]


FULL = Sizes(times=3, streams=10, seconds=3.0, burst=3000, curve=(1, 10, 100), first={1: 5, 10: 3, 100: 3})
QUICK = Sizes(times=2, streams=10, seconds=1.0, burst=2000, curve=(), first={1: 2, 10: 1, 100: 1})


@asynccontextmanager
async def servers(*references: str) -> AsyncIterator[dict[str, Server]]:
    """The service and these references, all on one model endpoint, each with its client."""
    async with AsyncExitStack() as stack:
        endpoint = await stack.enter_async_context(upstream())
        found: dict[str, Server] = {}
        for name in ("ours", *references):
            opened = service(endpoint) if name == "ours" else reference(name, endpoint)
            process = await stack.enter_async_context(opened)
            found[name] = (process, await stack.enter_async_context(connected(process.target)))
        yield found


async def measure(report: Report, quick: bool) -> None:
    """CPU time of a token."""
    sizes = QUICK if quick else FULL
    async with servers("socket", "sdk", "bare") as found:
        for server in found.values():
            await Answers().read(server[1], "text:100")
        await _paced(report, found, sizes)
        await _bursts(report, found, sizes)
        if sizes.curve:
            await _growth(report, found, sizes)


async def _paced(report: Report, found: Mapping[str, Server], sizes: Sizes) -> None:
    figures = await report.compare(
        "CPU us of a paced token", _each(("ours", "socket", "sdk"), found, sizes.streams, sizes.seconds), sizes.times
    )
    for name, most in (("socket", 1.5), ("sdk", 0.6)):
        report.rows.append(
            Row(
                "tokens",
                f"paced: {sizes.streams} streams of {RATE} tokens/s",
                "CPU us a token",
                _NAMES[name],
                figures["ours"],
                figures[name],
                Goal(at_most=most),
            )
        )


async def _bursts(report: Report, found: Mapping[str, Server], sizes: Sizes) -> None:
    contenders: dict[str, Contender] = {
        name: partial(_burst, found[name], f"mixed:{sizes.burst}") for name in ("ours", "bare", "socket", "sdk")
    }
    contenders["joined"] = partial(_burst, found["ours"], f"text:{sizes.burst}", pause=0.002)
    figures = await report.compare("CPU us of a token in a burst", contenders, sizes.times)
    for name, goal in (("bare", Goal(at_least=0.65)), ("socket", None), ("sdk", None)):
        report.rows.append(
            Row(
                "tokens",
                "burst, each token a message",
                "messages/s of a core",
                _NAMES[name],
                1e6 / figures["ours"],
                1e6 / figures[name],
                goal,
            )
        )
    report.rows.append(
        Row(
            "tokens",
            "burst to a slow client, joined",
            "CPU us a token",
            "ours, each a message",
            figures["joined"],
            figures["ours"],
            Goal(at_most=0.2),
        )
    )


async def _growth(report: Report, found: Mapping[str, Server], sizes: Sizes) -> None:
    names = ("ours", "socket", "sdk")
    taken = {name: list[tuple[float, float]]() for name in names}
    for streams in sizes.curve:
        what = f"CPU us of a token, {streams} streams"
        for name, figure in (await report.compare(what, _each(names, found, streams, 1.5), 1)).items():
            taken[name].append((streams, figure))
    report.curves.extend(
        Curve("streams", _NAMES.get(name, name), "streams at once", "CPU us a token", tuple(points))
        for name, points in taken.items()
    )


def _each(names: tuple[str, ...], found: Mapping[str, Server], streams: int, seconds: float) -> dict[str, Contender]:
    return {name: partial(_paced_token, found[name], streams, seconds) for name in names}


async def _paced_token(server: Server, streams: int, seconds: float) -> float:
    """CPU microseconds of a token while nothing begins or ends."""
    process, client = server
    answers = Answers()
    model = f"text:{int(RATE * (seconds + 0.6))}@{RATE}"
    reading = [asyncio.create_task(answers.read(client, model)) for _ in range(streams)]
    await answers.reach(5 * streams)
    before, taken = answers.tokens, await spent(process, asyncio.sleep(seconds))
    tokens = answers.tokens - before
    await asyncio.gather(*reading)
    return taken.cpu / tokens * 1e6


async def _burst(server: Server, model: str, pause: float = 0.0) -> float:
    """CPU microseconds of a token of an answer that comes at once."""
    process, client = server
    answers = Answers()
    taken = await spent(process, answers.read(client, model, pause))
    return taken.cpu / answers.tokens * 1e6


async def first_tokens(report: Report, quick: bool) -> None:
    """When the first token comes, from an endpoint that answers at once: all of it is added by the server."""
    sizes = QUICK if quick else FULL
    async with servers("socket", "durable", "sdk") as found:
        for _, client in found.values():
            await Answers().read(client, "text:5")
        for streams, times in sizes.first.items():
            beside = {name: partial(_beside, server[1], streams) for name, server in found.items()}
            what = f"first token of one more stream, {streams} in all"
            figures = await report.compare(f"ms to the {what}", beside, times)
            _first_rows(report, what, figures, _FIRST_GOALS)
            if streams > 1:
                together = {name: partial(_at_once, server[1], streams) for name, server in found.items()}
                what = f"first tokens of {streams} that begin at once"
                figures = await report.compare(f"ms to the {what}", together, times)
                _first_rows(report, what, figures, dict.fromkeys(_FIRST_GOALS))


def _first_rows(report: Report, what: str, figures: Mapping[str, float], goals: Mapping[str, Goal | None]) -> None:
    report.rows.extend(
        Row("first-token", what, "ms (p50)", _NAMES[name], figures["ours"], figures[name], goal)
        for name, goal in goals.items()
    )


async def _beside(client: Client, streams: int) -> float:
    """Milliseconds, the median of streams that begin one after the other while one less than so many are under way."""
    others = Answers()
    running = [asyncio.create_task(others.read(client, f"text:{60 * RATE}@{RATE}")) for _ in range(streams - 1)]
    try:
        await others.reach(3 * len(running))
        return 1e3 * median([await Answers().read(client, f"text:3@{RATE}") for _ in range(_FIRST)])
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _at_once(client: Client, streams: int) -> float:
    """Milliseconds, the median of streams that begin together."""
    answers = Answers()
    return 1e3 * median(await asyncio.gather(*(answers.read(client, f"text:5@{RATE}") for _ in range(streams))))
