"""What memory agents have read of a conversation, and what they have to read: pure edits, stored with what causes them.

An edit is stored in the transaction of what causes it: that a run of the conversation is COMPLETED, that a memory run
starts, that it stops. So between two of them there is no moment at which a part could be lost or be given twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent_service.domain.run import MemoryPlan, Run, RunStatus
from agent_service.domain.values import replace

MAX_TRIES = 12
"""After so many failures in a row a part waits for the end of the next n-th run."""
FIRST_DELAY = 10 * 10**9
"""Nanoseconds from the first failure to the next try; each further delay is twice as long."""
LONGEST_DELAY = 3600 * 10**9
NEVER = 2**63 - 1
"""A time that does not come: of work that was given up."""


class WorkTakenError(Exception):
    """The work is done or is being done by another memory run, or is gone. Never shown to callers."""


@dataclass(frozen=True, slots=True)
class MemoryWork:
    """How far a memory agent is with a conversation. Times are Unix nanoseconds.

    `finished` counts COMPLETED runs since it was last due. Messages up to `through_position` were in COMPLETED memory
    runs; those up to `due_position` are to be given, because of the end of `parent_run_id`. `run_id` is the memory run
    under way, or empty. `tries` counts failures in a row; nothing begins and nothing is retried before `not_before`.
    """

    memory_agent_id: str
    finished: int = 0
    through_position: int = 0
    due_position: int = 0
    parent_run_id: str = ""
    run_id: str = ""
    tries: int = 0
    not_before: int = 0

    @property
    def due(self) -> bool:
        """Whether there is something that no memory run is given or was given."""
        return not self.run_id and self.due_position > self.through_position

    @property
    def without_run(self) -> MemoryWork:
        """The memory run under way is none any more."""
        return replace(self, run_id="")

    @property
    def given_up(self) -> bool:
        """Whether it failed too often."""
        return self.tries >= MAX_TRIES


@dataclass(frozen=True, slots=True)
class DueWork:
    """Work that is due, or whose memory run is INTERRUPTED, and the conversation it is about, which was made then."""

    tenant: str
    conversation_id: str
    conversation_time: int
    work: MemoryWork


def completed(work: MemoryWork, plan: MemoryPlan, run: Run, last_position: int, now: int) -> MemoryWork:
    """A run of the conversation is COMPLETED."""
    if work.finished + 1 < plan.every:
        return replace(work, finished=work.finished + 1)
    work = replace(work, finished=0, due_position=last_position, parent_run_id=run.run_id)
    if work.run_id or (work.tries and not work.given_up):
        return work
    return replace(work, tries=0, not_before=now)


def taken(work: MemoryWork | None, run: Run) -> MemoryWork:
    """A memory run starts with a part. Raises WorkTakenError unless that is what is due."""
    part = run.memory_part
    assert part is not None
    if work is None or not work.due or work.through_position != part.after or work.due_position < part.through:
        raise WorkTakenError(run.run_id)
    return replace(work, run_id=run.run_id)


def stopped(work: MemoryWork, run: Run, now: int) -> MemoryWork:
    """The memory run stopped, for now or for good."""
    part = run.memory_part
    assert part is not None
    if run.status is RunStatus.COMPLETED:
        return replace(work.without_run, through_position=part.through, tries=0, not_before=now)
    if run.status is RunStatus.INTERRUPTED:
        return put_off(work, now)
    if run.status.terminal:
        return put_off(work.without_run, now)
    return work


def holds(status: RunStatus) -> bool:
    """Whether a memory run about a deleted conversation still keeps its agent from beginning another one. None that is
    INTERRUPTED, as nobody retries it."""
    return status.active


def put_off(work: MemoryWork, now: int) -> MemoryWork:
    """It failed once more, and is tried again after a while; at the end of the next n-th run if it fails for good."""
    tries = work.tries + 1
    delay = min(FIRST_DELAY << min(tries - 1, MAX_TRIES), LONGEST_DELAY)
    given_up = tries >= MAX_TRIES and not work.run_id
    return replace(work, tries=tries, not_before=NEVER if given_up else now + delay)
