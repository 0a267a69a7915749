"""Group commit, apart from the database: what waits together is written together, and nothing waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.stores.codec import UnknownCodecError
from agent_service.stores.postgres_batches import LANES, MAX_BATCH, Batches, Job
from agent_service.stores.postgres_database import Connection, Database

pytestmark = pytest.mark.anyio


class Commits:
    """Where a database is: each commit takes some turns of the event loop, or waits until it is let go."""

    def __init__(self, seconds: float = 60) -> None:
        self.seconds = seconds
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.sizes: list[int] = []
        self.written: list[str] = []
        self.began = asyncio.Semaphore(0)
        self.at_once = 0
        self.under_way: list[object] = []

    async def write(self, work: Any, done: Callable[[None], None], *, attempts: int) -> None:
        """Does the work and says so."""
        self.at_once += 1
        self.began.release()
        began = len(self.under_way)
        await work(None)
        mine = self.under_way[began:]
        assert len(set(self.under_way)) == len(self.under_way)
        await asyncio.sleep(0)
        await self.may_end.wait()
        for key in mine:
            self.under_way.remove(key)
        self.at_once -= 1
        done(None)

    async def note(self, _: Connection, jobs: Sequence[Job[str]]) -> None:
        """Writes: the results are what was asked."""
        self.sizes.append(len(jobs))
        self.under_way += [job.key for job in jobs]
        for job in jobs:
            job.result = job.what
            self.written.append(job.what)


def batches(commits: Commits) -> Batches[str]:
    """Group commit on these commits."""
    return Batches(cast(Database, commits), commits.note, lambda told: None, lambda: None)


async def occupied(writes: Batches[str], commits: Commits) -> list[asyncio.Task[Any]]:
    """Every lane has a job whose commit does not end until it may."""
    commits.may_end.clear()
    jobs = []
    for number in range(LANES):
        jobs.append(asyncio.create_task(writes.put(number, "first")))
        await commits.began.acquire()
    return jobs


async def test_whoever_asks_in_the_moment_a_batch_ends_is_served() -> None:
    """Callers who ask again as soon as they are answered are all answered, however their questions fall together."""
    writes = batches(Commits())

    async def caller(name: int) -> None:
        for turn in range(50):
            assert await writes.put(name, f"{name}.{turn}") == f"{name}.{turn}"

    for count in range(1, 9):
        async with asyncio.timeout(10):
            await asyncio.gather(*(caller(name) for name in range(count)))


async def test_what_waits_is_written_together_and_no_key_twice_at_once() -> None:
    """While commits are held up, what comes waits; then it goes in few batches, those of one key one by one."""
    commits = Commits()
    writes = batches(commits)
    first = await occupied(writes, commits)
    same = [asyncio.create_task(writes.put("same", str(number))) for number in range(3)]
    others = [asyncio.create_task(writes.put(f"other {number}", "")) for number in range(MAX_BATCH + 10)]
    await asyncio.sleep(0)
    assert commits.at_once == LANES
    commits.may_end.set()
    assert await asyncio.gather(*same) == ["0", "1", "2"]
    await asyncio.gather(*first, *others)
    assert max(commits.sizes) == MAX_BATCH
    assert len(commits.sizes) < LANES + 3 + 3


async def test_what_is_asked_for_in_one_moment_goes_in_one_batch() -> None:
    """The first of them does not go ahead by itself."""
    commits = Commits()
    writes = batches(commits)
    await asyncio.gather(*(writes.put(number, str(number)) for number in range(20)))
    assert commits.sizes == [20]


async def test_what_has_waited_too_long_is_not_written() -> None:
    """Its caller is told in time, however many are before it, and nothing of it is done later."""
    commits = Commits(seconds=0.05)
    writes = batches(commits)
    first = await occupied(writes, commits)
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(*first, *(writes.put(name, name) for name in "abc"), return_exceptions=True)
    for outcome in outcomes:
        assert isinstance(outcome, AgentServiceError)
        assert outcome.reason is Reason.STORE_UNAVAILABLE
    commits.may_end.set()
    await writes.close()
    assert commits.written == ["first"] * LANES


async def test_a_row_that_cannot_be_read_fails_its_own_job_alone() -> None:
    """Say that a newer program wrote it: what is written together with it is written without it."""
    commits = Commits()

    async def write(connection: Connection, jobs: Sequence[Job[str]]) -> None:
        if any(job.what == "unreadable" for job in jobs):
            raise UnknownCodecError
        await commits.note(connection, jobs)

    writes = Batches(cast(Database, commits), write, lambda told: None, lambda: None)
    first = await occupied(writes, commits)
    names = ("before", "unreadable", "after")
    together = [asyncio.create_task(writes.put(name, name)) for name in names]
    await asyncio.sleep(0)
    commits.may_end.set()
    before, unreadable, after = await asyncio.gather(*together, return_exceptions=True)
    assert (before, after) == ("before", "after")
    assert isinstance(unreadable, UnknownCodecError)
    await asyncio.gather(*first)
