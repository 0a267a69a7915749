"""Whole conversations on SQLite: rounds with a pause, and what a turn costs in a long history."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from statistics import median

from bench.environment import install
from bench.figures import Contender, Curve, Goal, Report, Row
from bench.load import one_round, spent, together, turn
from bench.processes import Process, library, reference, service, upstream
from tests.service import Client, connected

CALLERS = 20
_NAMES = {
    "loop": "aiohttp loop + SQLite",
    "langgraph": "LangGraph + SQLite saver",
    "pydantic-ai": "pydantic-ai + SQLite",
}
_LIBRARIES = ("langgraph", "pydantic-ai")
Server = tuple[Process, Client]


@asynccontextmanager
async def servers() -> AsyncIterator[tuple[dict[str, Server], dict[str, str]]]:
    """The service and the references, each with its client; and why others are missing."""
    async with AsyncExitStack() as stack:
        endpoint = await stack.enter_async_context(upstream())
        problem = install()
        missing = dict.fromkeys(_LIBRARIES, problem) if problem else {}
        opening = {"ours": service(endpoint), "loop": reference("loop", endpoint)}
        opening |= {name: library(name, endpoint) for name in _LIBRARIES if name not in missing}
        found: dict[str, Server] = {}
        for name, opened in opening.items():
            try:
                process = await stack.enter_async_context(opened)
            except RuntimeError as error:
                missing[name] = f"does not start: {str(error).strip().splitlines()[-1]}"
                continue
            found[name] = (process, await stack.enter_async_context(connected(process.target)))
            await one_round(found[name][1])
        yield found, missing


async def measure(report: Report, quick: bool) -> None:
    """CPU time of a round, and how many are done in a second."""
    times, rounds = (2, 2) if quick else (4, 3)
    async with servers() as (found, missing):
        rates: dict[str, list[float]] = {name: [] for name in found}
        contenders = {
            name: partial(_rounds, server, CALLERS, rounds, rates[name].append) for name, server in found.items()
        }
        figures = await report.compare("CPU ms of a round", contenders, times)
        report.samples.update({f"rounds/s, {name}": values for name, values in rates.items()})
        _rows(report, figures, {name: median(values) for name, values in rates.items()}, missing)
        if not quick:
            await _growth(report, found)


def _rows(report: Report, cpu: Mapping[str, float], rate: Mapping[str, float], missing: Mapping[str, str]) -> None:
    cpu_goals = {"langgraph": Goal(at_most=0.25), "loop": Goal(at_most=3.0), "pydantic-ai": None}
    rate_goals = {"langgraph": Goal(at_least=3.0), "loop": None, "pydantic-ai": None}
    for name, unit, figures, goals in (
        (f"round, {CALLERS} callers", "CPU ms a round", cpu, cpu_goals),
        (f"rounds, {CALLERS} callers", "rounds/s", rate, rate_goals),
    ):
        report.rows.extend(
            Row("rounds", name, unit, _NAMES[other], figures["ours"], figures.get(other), goal, missing.get(other, ""))
            for other, goal in goals.items()
        )


async def _growth(report: Report, found: Mapping[str, Server]) -> None:
    for name, server in found.items():
        points = [
            (callers, await _rounds(server, callers, max(1, 40 // callers), lambda _: None))
            for callers in (1, 4, 16, 64)
        ]
        report.curves.append(
            Curve("callers", _NAMES.get(name, name), "callers at once", "CPU ms a round", tuple(points))
        )


async def _rounds(server: Server, callers: int, each: int, rate: Callable[[float], None]) -> float:
    """CPU milliseconds of a round; the rate is told."""
    process, client = server
    taken = await spent(process, together(callers, each, partial(one_round, client)))
    rate(callers * each / taken.wall)
    return taken.cpu / (callers * each) * 1e3


# Turns

_LONG, _SHORT = 1000, 10
_WINDOW = 10
"""Turns that a figure is the mean of."""
_LIBRARY_TURNS = 100
"""So far libraries are followed; they take too long after that."""


async def turns(report: Report, quick: bool) -> None:
    """What the thousandth turn costs in those that the tenth does."""
    async with servers() as (found, _):
        marks = (_SHORT, 30, 100, 300, _LONG)
        ours = await _grown(found["ours"], marks)
        conversation_id = ours.conversation_id
        contenders: dict[str, Contender] = {
            "turn 1000": partial(_window, found["ours"], lambda: conversation_id),
            "turn 10": partial(_tenth, found["ours"]),
        }
        figures = await report.compare("CPU ms of a turn", contenders, 3 if quick else 7)
        report.rows.append(
            Row(
                "turns",
                f"turn {_LONG} of a conversation",
                "CPU ms a turn",
                f"ours, turn {_SHORT}",
                figures["turn 1000"],
                figures["turn 10"],
                Goal(at_most=2.5),
            )
        )
        report.curves.append(ours.curve("ours"))
        if not quick:
            for name, server in found.items():
                if name != "ours":
                    most = _LIBRARY_TURNS if name in _LIBRARIES else _LONG
                    grown = await _grown(server, tuple(mark for mark in marks if mark <= most))
                    report.curves.append(grown.curve(_NAMES[name]))


class _Grown:
    """A conversation that has become long."""

    def __init__(self, conversation_id: str, points: list[tuple[float, float]]) -> None:
        self.conversation_id = conversation_id
        self._points = tuple(points)

    def curve(self, name: str) -> Curve:
        """What its turns cost."""
        return Curve("turns", name, "turns before", "CPU ms a turn", self._points)


async def _grown(server: Server, marks: tuple[int, ...]) -> _Grown:
    _, client = server
    points: list[tuple[float, float]] = []
    conversation_id, done = "", 0
    for mark in marks:
        while done < mark - _WINDOW // 2:
            conversation_id, done = await turn(client, conversation_id), done + 1
        points.append((mark, await _window(server, partial(str, conversation_id))))
        done += _WINDOW
    return _Grown(conversation_id, points)


async def _window(server: Server, conversation: Callable[[], str]) -> float:
    """CPU milliseconds of one of the next turns."""
    process, client = server
    conversation_id = conversation()
    taken = await spent(process, together(1, _WINDOW, partial(turn, client, conversation_id)))
    return taken.cpu / _WINDOW * 1e3


async def _tenth(server: Server) -> float:
    """The same around the tenth turn of a new conversation."""
    conversation_id = ""
    for _ in range(_SHORT - _WINDOW // 2):
        conversation_id = await turn(server[1], conversation_id)
    return await _window(server, partial(str, conversation_id))
