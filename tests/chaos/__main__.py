"""Attacks servers, and their database, with kill -9 under load, and checks that nothing was lost and nothing doubled.

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
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import host_clocks
from tests.chaos.campaign import Size, campaign
from tests.chaos.fleet import Setup
from tests.chaos.trial import trials
from tests.postgres import postgres

_SHOWN = 40
_ROUNDS = {"sqlite": ((1, 1), (1, 2), (2, 1)), "postgres": ((2, 1),)}
"""Servers on the store, and processes of each."""


def main() -> int:
    """Runs what the arguments say."""
    parser = _parser()
    arguments = parser.parse_args()
    on_postgres = arguments.store == "postgres"
    if arguments.skew and not on_postgres:
        parser.error("--skew needs --store postgres: the clock of a SQLite file is that of its one host")
    if arguments.skew and host_clocks.library() is None:
        parser.error(f"--skew: {host_clocks.MISSING}")
    # The endpoint's clients die in the middle of its answers.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    seed = secrets.randbelow(10**6) if arguments.seed is None else arguments.seed
    try:
        if arguments.planted:
            return _try_checker(seed, on_postgres=on_postgres)
        return _attack(arguments, seed)
    except (pytest.skip.Exception, pytest.fail.Exception) as error:
        parser.exit(1, f"error: {error}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make chaos ARGS='...'", description=__doc__)
    parser.add_argument("--seed", type=int, help="repeats the plan of a campaign (a new one, which is printed)")
    parser.add_argument("--kills", type=int, default=240, help="at least so many, over all rounds (240)")
    parser.add_argument("--conversations", type=int, default=200, help="at least so many in each round (200)")
    parser.add_argument("--at-once", type=int, default=16, help="conversations at the same time (16)")
    parser.add_argument("--store", choices=tuple(_ROUNDS), default="sqlite", help="what the servers share (sqlite)")
    parser.add_argument("--skew", type=float, default=0.0, metavar="SECONDS", help="of the host clock of one server")
    parser.add_argument(
        "--servers", type=int, help="on one store (sqlite: rounds with 1, with 1 of 2 workers, with 2; postgres: 2)"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes of each server, with --servers (1)")
    parser.add_argument("--planted", action="store_true", help="try the checker on services with one bug each")
    return parser


def _attack(arguments: argparse.Namespace, seed: int) -> int:
    given = ((arguments.servers, arguments.workers),)
    rounds = _ROUNDS[arguments.store] if arguments.servers is None else given
    size = Size(arguments.conversations, -(-arguments.kills // len(rounds)), arguments.at_once)
    worst = 0
    for servers, workers in rounds:
        skew = f", one with a clock that is off by {arguments.skew:+g} s" if arguments.skew else ""
        _say(
            f"seed {seed}: {servers} server(s) of {workers} process(es) on {arguments.store}{skew}, {size.kills} kills"
        )
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
            database = stack.enter_context(postgres()) if arguments.store == "postgres" else None
            setup = Setup(folder, servers, workers, database=database, skew_seconds=arguments.skew)
            worst = max(worst, _round(setup, seed, size))
    return worst


def _round(setup: Setup, seed: int, size: Size) -> int:
    result = asyncio.run(campaign(setup, seed, size))
    for name, count in sorted(result.counts.items()):
        _say(f"{count:9} {name}")
    _show(result.findings)
    _say(f"{result.kills} kills in {result.seconds:.0f} s, {len(result.findings)} findings")
    return 1 if result.findings else 0


def _try_checker(seed: int, *, on_postgres: bool) -> int:
    _say(f"seed {seed}: the service with one planted bug at a time")
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        tried = asyncio.run(trials(Path(folder), seed, on_postgres=on_postgres))
    for each in tried:
        verdict = "as it should be" if each.good else "WRONG"
        _say(f"  {each.bug}: {len(each.result.findings)} findings in {each.result.seconds:.0f} s, {verdict}")
        if not each.good:
            _show(each.result.findings)
    return 0 if all(each.good for each in tried) else 1


def _show(findings: Iterable[str]) -> None:
    for finding in list(findings)[:_SHOWN]:
        words = " ".join(finding.split())
        # The end of a traceback says what it was.
        _say(f"  FOUND {words if len(words) <= 600 else f'{words[:300]} ... {words[-300:]}'}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
