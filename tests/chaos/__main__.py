"""`python -m tests.chaos`: a campaign from the command line; exit code 1 if the checker found anything."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
from pathlib import Path

from tests.chaos.campaign import Result, Size, campaign
from tests.chaos.fleet import Setup

_SHOWN = 40


def main() -> int:
    """Runs what the arguments say."""
    arguments = _parser().parse_args()
    seed = secrets.randbelow(10**6) if arguments.seed is None else arguments.seed
    rounds = [(1, 1), (2, 1)] if arguments.servers is None else [(arguments.servers, arguments.workers)]
    size = Size(arguments.conversations, -(-arguments.kills // len(rounds)), arguments.at_once)
    return max(_round(seed, size, *processes) for processes in rounds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make chaos ARGS='...'", description=__doc__)
    parser.add_argument("--seed", type=int, help="repeats the plan of a campaign (a new one, which is printed)")
    parser.add_argument("--kills", type=int, default=240, help="at least so many, over all rounds (240)")
    parser.add_argument("--conversations", type=int, default=300, help="at least so many in each round (300)")
    parser.add_argument("--at-once", type=int, default=16, help="conversations at the same time (16)")
    parser.add_argument("--servers", type=int, help="servers on one file (one round with 1, then one with 2)")
    parser.add_argument("--workers", type=int, default=1, help="processes of each server, with --servers (1)")
    return parser


def _round(seed: int, size: Size, servers: int, workers: int) -> int:
    sys.stdout.write(f"seed {seed}: {servers} server(s) of {workers} process(es), {size.kills} kills\n")
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        result = asyncio.run(campaign(Setup(Path(folder), servers, workers), seed, size))
    _report(result)
    return 1 if result.findings else 0


def _report(result: Result) -> None:
    write = sys.stdout.write
    for name, count in sorted(result.counts.items()):
        write(f"  {count:7} {name}\n")
    for finding in result.findings[:_SHOWN]:
        write(f"  FOUND {finding[:600]}\n")
    write(f"{result.kills} kills in {result.seconds:.0f} s, {len(result.findings)} findings\n")
    sys.stdout.flush()


sys.exit(main())
