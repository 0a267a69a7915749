"""Writes the newest figures into docs/performance.md: python -m bench.page [--check]

With --check, only tells whether the page has them.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from bench.figures import Row, markdown

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "bench" / "results" / "latest.json"


def text(results: str) -> str:
    """The machine, and the table of rows, from the JSON of a run."""
    found = json.loads(results)
    machine = "\n".join(f"- {name}: {value}" for name, value in found["machine"].items())
    rows = markdown([Row.of(record) for record in found["rows"]])
    return f"Run on {found['time'][:10]} in {found['seconds']} s, on this machine:\n\n{machine}\n\n{rows}"


def filled(page: str, results: str) -> str:
    """The page with them between its marks."""
    return re.sub(
        r"(<!-- figures -->\n).*?(<!-- /figures -->)", lambda m: f"{m[1]}{text(results)}\n{m[2]}", page, flags=re.DOTALL
    )


def main() -> int:
    """Returns 1 if the page was checked and is not up to date."""
    page = PAGE.read_text()
    wanted = filled(page, RESULTS.read_text())
    if "--check" in sys.argv and wanted != page:
        sys.stderr.write("error: the figures in docs/performance.md are not up to date: run make docs\n")
        return 1
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
