"""Plots of how costs grow: PNG files, and the same in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.figures import Curve

_WIDTH, _HEIGHT = 90, 18


def draw(curves: Sequence[Curve], stem: Path) -> Iterator[str]:
    """Writes STEM-PLOT.png for each plot; what to print for it."""
    for plot in dict.fromkeys(curve.plot for curve in curves):
        shown = [curve for curve in curves if curve.plot == plot]
        path = stem.with_name(f"{stem.name}-{plot}.png")
        save(shown, path)
        yield f"{terminal(shown)}\nplot: {path}\n"


def save(curves: Sequence[Curve], path: Path) -> None:
    """One plot as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for curve in curves:
        axes.plot(*zip(*curve.points, strict=True), label=curve.name, marker="o" if len(curve.points) < 20 else None)
    if curves[0].logarithmic:
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.set_xlabel(curves[0].x)
    axes.set_ylabel(curves[0].y)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)


def terminal(curves: Sequence[Curve]) -> str:
    """One plot as text."""
    import plotext

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(_WIDTH, _HEIGHT)
    for curve in curves:
        x, y = ([point[axis] for point in curve.points] for axis in (0, 1))
        plotext.plot(x, y, label=curve.name)
    if curves[0].logarithmic:
        plotext.xscale("log")
        plotext.yscale("log")
    plotext.title(f"{curves[0].y} by {curves[0].x}")
    return str(plotext.uncolorize(plotext.build())).rstrip()
