"""Our figures beside those of references from the same run: python -m bench [--quick] [--only PART ...]

Writes a table, the same as JSON with all samples, and plots of how costs grow. Only figures of one run compare. CPU
time is that of the server's process; it depends little on what else the machine does, while seconds do.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from bench import footprint, pauses, rounds, tokens
from bench.figures import Report, table
from bench.machine import describe
from bench.plots import draw
from bench.processes import run

RESULTS = Path(__file__).parent / "results"

Part = Callable[[Report, bool], Awaitable[None]]
PARTS: dict[str, Part] = {
    "tokens": tokens.measure,
    "first-token": tokens.first_tokens,
    "rounds": rounds.measure,
    "turns": rounds.turns,
    "sqlite": pauses.on_sqlite,
    "postgres": pauses.on_postgres,
    "paused": footprint.paused,
    "watchers": footprint.watchers,
    "program": footprint.program,
}


async def measure(parts: list[str], quick: bool) -> Report:
    """All of these parts, one after the other."""
    report = Report()
    for name in parts:
        began, known = time.monotonic(), len(report.rows)
        print(f"{name} ...", file=sys.stderr, flush=True)
        await PARTS[name](report, quick)
        print(f"{table(report.rows[known:])}\n({time.monotonic() - began:.0f} s)\n", file=sys.stderr, flush=True)
    return report


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute or two: less of everything, and coarser")
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--output", type=Path, help="where the JSON goes (bench/results/latest.json, or quick.json)")
    given = parser.parse_args()
    machine = describe()
    began = time.monotonic()
    report = run(measure(given.only or list(PARTS), given.quick))
    path = given.output or RESULTS / ("quick.json" if given.quick or given.only else "latest.json")
    found = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began),
        "command": f"python -m bench {' '.join(sys.argv[1:])}".strip(),
        "machine": machine,
        "rows": [row.record() for row in report.rows],
        "curves": [vars(curve) for curve in report.curves],
        "samples": report.samples,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{json.dumps(found, indent=1)}\n")
    for line in draw(report.curves, path.with_suffix("")):
        print(line)
    print("\n".join(f"{name}: {value}" for name, value in machine.items()))
    print(f"\n{table(report.rows)}\n\nwritten: {path}")


if __name__ == "__main__":
    main()
