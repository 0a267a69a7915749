"""Attacks servers with kill -9 under load, and checks that nothing was lost and nothing doubled.

The exit code is 1 if the checker found anything, or, with --planted, if it missed a bug.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.chaos.campaign import Size, campaign
from tests.chaos.fleet import Setup
from tests.chaos.trial import found, trials

_SHOWN = 40
_ROUNDS = ((1, 1), (1, 2), (2, 1))
"""Servers on the file, and processes of each."""


def main() -> int:
    """Runs what the arguments say."""
    arguments = _parser().parse_args()
    # The endpoint's clients die in the middle of its answers.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    seed = secrets.randbelow(10**6) if arguments.seed is None else arguments.seed
    if arguments.planted:
        return _try_checker(seed)
    rounds = _ROUNDS if arguments.servers is None else ((arguments.servers, arguments.workers),)
    size = Size(arguments.conversations, -(-arguments.kills // len(rounds)), arguments.at_once)
    return max([_round(seed, size, *processes) for processes in rounds])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make chaos ARGS='...'", description=__doc__)
    parser.add_argument("--seed", type=int, help="repeats the plan of a campaign (a new one, which is printed)")
    parser.add_argument("--kills", type=int, default=240, help="at least so many, over all rounds (240)")
    parser.add_argument("--conversations", type=int, default=200, help="at least so many in each round (200)")
    parser.add_argument("--at-once", type=int, default=16, help="conversations at the same time (16)")
    parser.add_argument("--servers", type=int, help="servers on one file (rounds with 1, with 1 of 2 workers, with 2)")
    parser.add_argument("--workers", type=int, default=1, help="processes of each server, with --servers (1)")
    parser.add_argument("--planted", action="store_true", help="try the checker on services with one bug each")
    return parser


def _round(seed: int, size: Size, servers: int, workers: int) -> int:
    _say(f"seed {seed}: {servers} server(s) of {workers} process(es), {size.kills} kills")
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        result = asyncio.run(campaign(Setup(Path(folder), servers, workers), seed, size))
    for name, count in sorted(result.counts.items()):
        _say(f"{count:9} {name}")
    _show(result.findings)
    _say(f"{result.kills} kills in {result.seconds:.0f} s, {len(result.findings)} findings")
    return 1 if result.findings else 0


def _try_checker(seed: int) -> int:
    _say(f"seed {seed}: the service with one planted bug at a time")
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        results = asyncio.run(trials(Path(folder), seed))
    for bug, result in results.items():
        verdict = "as it should be" if found(bug, result) else "WRONG"
        _say(f"  {bug}: {len(result.findings)} findings in {result.seconds:.0f} s, {verdict}")
        if not found(bug, result):
            _show(result.findings)
    return 0 if all(found(bug, result) for bug, result in results.items()) else 1


def _show(findings: Iterable[str]) -> None:
    for finding in list(findings)[:_SHOWN]:
        _say(f"  FOUND {' '.join(finding.split())[:600]}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
