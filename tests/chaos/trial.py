"""The checker on trial: it must find each planted bug, by a campaign that is as small as the bug allows."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import planted, planted_postgres
from tests.chaos.campaign import Result, Size, campaign
from tests.chaos.fleet import Setup
from tests.postgres import Postgres, postgres
from tests.process import PROGRAM

_AT_ONCE = 3


@dataclass(frozen=True)
class Trial:
    """How a bug comes to light. `rules` are those one of which must be broken; others may be, too."""

    rules: tuple[str, ...]
    servers: int = 1
    kills: int = 0
    answer: str = ""
    ending: str = ""
    skew_seconds: float = 0.0
    patience_seconds: float = 8.0


@dataclass(frozen=True)
class Tried:
    """What a trial led to. `good`: the checker named the bug for what it is; without a bug, it named nothing."""

    bug: str
    result: Result
    good: bool


_TOLD_TOO_EARLY = ("events_seen_are_there", "messages_seen_are_there")
_STALE_OWNER = ("runs_begin_and_end_once", "ended_runs_stay_as_they_were_shown")
_LOST_UPDATE = ("receipts_are_there", "accepted_once", "answers_are_stored_once")

SQLITE = {
    "none": Trial((), kills=2, patience_seconds=30.0),
    "publish_before_commit": Trial(_TOLD_TOO_EARLY, kills=6),
    "stale_epoch_accepted": Trial(_STALE_OWNER, servers=2, ending="cancel_running"),
    "number_used_twice": Trial(("events_seen_are_there",)),
    "receipt_not_stored": Trial(("shown_in_one_way",), answer="twice"),
    "row_lock_skipped": Trial(_LOST_UPDATE, answer="race"),
    "late_answer_accepted": Trial(("late_answers_are_refused", "each_call_has_one_outcome"), answer="late"),
    "second_final_stop": Trial(("ended_runs_stay_as_they_were_shown",), ending="cancel"),
    "doubled_resume": Trial(("answers_are_stored_once", "answers_follow_the_whole_returns"), answer="twice"),
    "started_tool_runs_again": Trial(("server_tools_run_once",), kills=16),
    "read_when_begun": Trial(("each_message_is_read_once",), kills=8),
    "kept_message_lost": Trial(("requests_show_what_is_stored",)),
    "edit_made_twice": Trial(("each_edit_is_made_once",)),
}
"""By the bugs of `planted`. The service without a bug comes first."""

POSTGRES = {
    "none": Trial((), servers=2, kills=4, patience_seconds=30.0),
    "publish_before_commit": Trial(_TOLD_TOO_EARLY, servers=2, kills=8),
    # Who asks at once does not find what was acknowledged.
    "acknowledged_before_commit": Trial(("clients_are_not_refused",), servers=2),
    "acknowledged_before_flush": Trial(("acknowledged_starts_are_there", *_TOLD_TOO_EARLY), servers=2, kills=12),
    "stale_epoch_accepted": Trial(_STALE_OWNER, servers=2, ending="cancel_running"),
    "row_lock_skipped": Trial(_LOST_UPDATE, servers=2, answer="race"),
    "host_clock": Trial(("one_clock_tells_the_times",), servers=2, skew_seconds=3600.0),
}
"""By the bugs of `planted_postgres`."""


async def trials(folder: Path, seed: int, *, on_postgres: bool) -> list[Tried]:
    """All bugs of a store, some at a time, each in a folder of its own, and on a database of its own."""
    gate = asyncio.Semaphore(_AT_ONCE)
    chosen: Mapping[str, Trial] = POSTGRES if on_postgres else SQLITE
    module = planted_postgres if on_postgres else planted

    async def one(bug: str, trial: Trial) -> Tried:
        (folder / bug).mkdir()
        program = PROGRAM if bug == "none" else (sys.executable, "-m", module.__name__, bug)
        async with gate:
            with postgres() if on_postgres else nullcontext() as database:
                result = await _run(trial, folder / bug, program, database, seed)
        return Tried(bug, result, _named(trial, result))

    return await asyncio.gather(*(one(*each) for each in chosen.items()))


def _named(trial: Trial, result: Result) -> bool:
    if not trial.rules:
        return not result.findings
    return any(finding.startswith(f"{rule}:") for rule in trial.rules for finding in result.findings)


async def _run(trial: Trial, folder: Path, program: tuple[str, ...], database: Postgres | None, seed: int) -> Result:
    size = Size(30, trial.kills, 24, trial.patience_seconds, trial.answer, trial.ending)
    setup = Setup(folder, trial.servers, program=program, database=database, skew_seconds=trial.skew_seconds)
    return await campaign(setup, seed, size)
