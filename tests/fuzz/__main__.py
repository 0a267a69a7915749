"""Sends a server malformed requests, hostile schemas and hostile model answers, and says what it does not bear.

The exit code is 1 if anything was found.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fuzz.campaign import Result, campaign
from tests.postgres import postgres

_STORES = ("sqlite", "postgres", "memory")


def main() -> int:
    """Runs what the arguments say."""
    parser = argparse.ArgumentParser(prog="make fuzz ARGS='...'", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="so many cases (10,000)")
    parser.add_argument("--seed", type=int, help="makes the same cases again (a new one, which is printed)")
    parser.add_argument("--store", choices=_STORES, default="sqlite", help="of the server (sqlite)")
    parser.add_argument("--only", type=int, nargs="+", metavar="CASE", help="only these cases of the seed")
    arguments = parser.parse_args()
    seed = secrets.randbelow(10**6) if arguments.seed is None else arguments.seed
    numbers = arguments.only or range(arguments.requests)
    _say(f"seed {seed}: {len(numbers)} cases on {arguments.store}")
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-")))
            store = {"sqlite": "runs.sqlite3", "memory": "memory"}.get(arguments.store)
            store = store or stack.enter_context(postgres(durable=False)).url
            result = asyncio.run(campaign(folder, store, seed, numbers))
    except (pytest.skip.Exception, pytest.fail.Exception) as error:
        parser.exit(1, f"error: {error}\n")
    _show(result)
    return 1 if result.findings else 0


def _show(result: Result) -> None:
    for name, count in sorted(result.counts.items()):
        _say(f"{count:9} {name}")
    for finding in result.findings:
        _say(f"  FOUND {finding}")
    first, last = (size >> 20 for size in result.memory)
    _say(f"memory {first} MiB after a tenth, {last} MiB at the end; slowest probe {result.slowest_seconds:.2f} s")
    _say(f"{result.seconds:.0f} s, {len(result.findings)} findings")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
