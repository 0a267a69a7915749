"""Figures of one run: samples taken by turns, rows with their goals, tables, and how something grows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

Contender = Callable[[], Awaitable[float]]
"""Measures one of those that are compared, once."""


@dataclass(frozen=True)
class Goal:
    """What the ratio of our figure to that of the reference has to be."""

    at_most: float | None = None
    at_least: float | None = None

    def reached(self, ratio: float) -> bool:
        """Whether this ratio is it."""
        return not (
            (self.at_most is not None and ratio > self.at_most) or (self.at_least is not None and ratio < self.at_least)
        )

    def __str__(self) -> str:
        return f"<= {self.at_most:g}" if self.at_most is not None else f">= {self.at_least or 0:g}"


@dataclass(frozen=True)
class Row:
    """One line of the table. Without a goal it is for information; without a figure `note` says why."""

    part: str
    name: str
    unit: str
    reference: str
    ours: float | None = None
    theirs: float | None = None
    goal: Goal | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Our figure in those of the reference."""
        return self.ours / self.theirs if self.ours is not None and self.theirs else None

    @property
    def verdict(self) -> str:
        """Whether the goal was reached."""
        if self.ratio is None:
            return "not measured"
        if self.goal is None:
            return ""
        return "pass" if self.goal.reached(self.ratio) else "MISSED"

    def record(self) -> dict[str, Any]:
        """As it is written to files."""
        goal = {} if self.goal is None else {"at_most": self.goal.at_most, "at_least": self.goal.at_least}
        return {**vars(self), "goal": goal, "ratio": self.ratio, "verdict": self.verdict}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Row:
        """From what was written."""
        fields = {name: record[name] for name in cls.__dataclass_fields__}
        return cls(**{**fields, "goal": Goal(**record["goal"]) if record["goal"] else None})


@dataclass(frozen=True)
class Curve:
    """How a figure grows: one line of a plot, whose axes may be logarithmic."""

    plot: str
    name: str
    x: str
    y: str
    points: tuple[tuple[float, float], ...]
    logarithmic: bool = True


@dataclass
class Report:
    """What a run has found so far. `samples` are all that rows were made from, by what they are of."""

    rows: list[Row] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)

    async def compare(self, what: str, contenders: Mapping[str, Contender], times: int) -> dict[str, float]:
        """The median of each; they are measured by turns (A B C A B C ...), so that what disturbs meets all alike."""
        taken: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(times):
            for name, measure in contenders.items():
                taken[name].append(await measure())
        self.samples.update({f"{what}, {name}": values for name, values in taken.items()})
        return {name: median(values) for name, values in taken.items()}


_HEAD = ("part", "what", "goal", "ours", "reference", "its figure", "unit", "ratio", "")


def table(rows: Sequence[Row]) -> str:
    """The rows for a terminal."""
    lines = [_HEAD, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    right = {3, 5, 7}
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown(rows: Sequence[Row]) -> str:
    """The rows for a page."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (_HEAD, ("---",) * len(_HEAD), *map(_cells, rows)))


def _cells(row: Row) -> tuple[str, ...]:
    goal = str(row.goal) if row.goal else ""
    ratio = "" if row.ratio is None else short(row.ratio)
    verdict = "; ".join(filter(None, (row.verdict, row.note)))
    return (row.part, row.name, goal, short(row.ours), row.reference, short(row.theirs), row.unit, ratio, verdict)


def short(value: float | None) -> str:
    """Three digits, without an exponent."""
    if value is None:
        return "-"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}"


def slope(points: Sequence[tuple[float, float]]) -> float:
    """By how much y grows for each 1 of x: the median of the slopes of all pairs (Theil and Sen), so that a few
    points that lie far off do not matter. 0 for fewer than two points."""
    slopes = [
        (y2 - y1) / (x2 - x1) for index, (x1, y1) in enumerate(points) for x2, y2 in points[index + 1 :] if x2 != x1
    ]
    return median(slopes) if slopes else 0.0
