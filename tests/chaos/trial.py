"""The checker on trial: it must find each planted bug, by a campaign that is as small as the bug allows."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.campaign import Result, Size, campaign
from tests.chaos.fleet import Setup
from tests.chaos.planted import BUGS
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


TRIALS = {
    "publish_before_commit": Trial(("events_seen_are_there", "messages_seen_are_there"), kills=6),
    "stale_epoch_accepted": Trial(
        ("runs_begin_and_end_once", "ended_runs_stay_as_they_were_shown"), servers=2, ending="cancel_running"
    ),
    "number_used_twice": Trial(("events_seen_are_there",)),
    "receipt_not_stored": Trial(("shown_in_one_way",), answer="twice"),
    "row_lock_skipped": Trial(("receipts_are_there", "accepted_once", "answers_are_stored_once"), answer="race"),
    "late_answer_accepted": Trial(("late_answers_are_refused", "each_call_has_one_outcome"), answer="late"),
    "second_final_stop": Trial(("ended_runs_stay_as_they_were_shown",), ending="cancel"),
    "doubled_resume": Trial(("answers_are_stored_once", "answers_follow_the_whole_returns"), answer="twice"),
    "started_tool_runs_again": Trial(("server_tools_run_once",), kills=16),
}


async def trials(folder: Path, seed: int) -> dict[str, Result]:
    """All bugs, some at a time, each in a folder of its own. The service without a bug comes first, as "none"."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(bug: str) -> tuple[str, Result]:
        (folder / bug).mkdir()
        async with gate:
            return bug, await _run(bug, folder / bug, seed)

    return dict(await asyncio.gather(*(one(bug) for bug in ("none", *BUGS))))


def found(bug: str, result: Result) -> bool:
    """Whether the checker named the bug for what it is; without a bug, whether it named nothing."""
    if bug == "none":
        return not result.findings
    return any(finding.startswith(f"{rule}:") for rule in TRIALS[bug].rules for finding in result.findings)


async def _run(bug: str, folder: Path, seed: int) -> Result:
    chosen = TRIALS.get(bug, Trial((), kills=2))
    program = PROGRAM if bug == "none" else (sys.executable, "-m", "tests.chaos.planted", bug)
    patience = 30.0 if bug == "none" else 8.0
    size = Size(30, chosen.kills, 24, patience, chosen.answer, chosen.ending)
    return await campaign(Setup(folder, chosen.servers, program=program), seed, size)
