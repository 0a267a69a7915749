"""Group commit: what waits is written in one transaction, by a few statements for all of it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import structlog

from agent_service.domain.errors import AgentServiceError
from agent_service.domain.event import Event
from agent_service.engine.store import Committed
from agent_service.stores.errors import unavailable
from agent_service.stores.postgres_database import ATTEMPTS, Connection, Database
from agent_service.stores.postgres_hosts import CLASHES

log = structlog.get_logger()

MAX_BATCH = 64
"""At most so many are written together; keeps the locks short."""
LANES = 2
"""So many batches are under way at once: while the database works on one, the next one is made."""

A = TypeVar("A")
Told = tuple[str, str, tuple[Event, ...]]


@dataclass(slots=True)
class Job(Generic[A]):
    """One write. `what` says what is asked; whoever writes sets `result` and what is to be `told`, or `error`."""

    key: Hashable
    what: A
    result: Any = None
    told: list[Told] = field(default_factory=list)
    error: Exception | None = None
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    late: bool = False

    def give_up(self) -> None:
        """Its caller is told that it may be written or not."""
        if not self.done.done():
            self.late = True
            self.done.set_exception(unavailable("it did not answer in time"))


WriteAll = Callable[[Connection, Sequence[Job[A]]], Awaitable[None]]
"""Writes all jobs; an error of one goes into the job. Raises if nothing can be written, and is called again then."""


class Batches(Generic[A]):
    """Writes jobs, those of one key one after the other. `tell` hears what is committed, in the order of commits."""

    def __init__(
        self,
        database: Database,
        write: WriteAll[A],
        tell: Callable[[Sequence[Told]], None],
        doubt: Callable[[], None],
        committed: Committed | None = None,
    ) -> None:
        self._database = database
        self._write = write
        self._tell = tell
        self._doubt = doubt
        self._committed = committed
        self._waiting: deque[Job[A]] = deque()
        self._under_way: set[Hashable] = set()
        self._free_lanes = LANES
        self._lanes: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Jobs that wait for their turn."""
        return len(self._waiting)

    async def put(self, key: Hashable, what: A) -> Any:
        """The result of the job, when it is committed; it is written even if its caller is cancelled.

        Raises STORE_UNAVAILABLE if that takes longer than the database's `seconds`; what still waits is not written.
        """
        job = Job(key, what)
        self._waiting.append(job)
        self._open_lane()
        timer = asyncio.get_running_loop().call_later(self._database.seconds, job.give_up)
        try:
            await job.done
        finally:
            timer.cancel()
        if job.error is not None:
            raise job.error
        return job.result

    async def close(self) -> None:
        """Finishes what waits."""
        while self._lanes:
            await asyncio.wait(self._lanes)

    def _open_lane(self) -> None:
        if self._free_lanes:
            self._free_lanes -= 1
            lane = asyncio.create_task(self._drain())
            self._lanes.add(lane)
            lane.add_done_callback(self._lanes.discard)

    async def _drain(self) -> None:
        # Taken in a task of its own, so that what others ask for in the same tick comes along.
        while batch := self._take():
            await self._commit(batch)
            self._under_way.difference_update(job.key for job in batch)
            for job in batch:
                if not job.done.done():
                    job.done.set_result(None)
            await asyncio.sleep(0)
        # At once: a task has not ended yet for those who ask now, and what they put would wait for ever.
        self._free_lanes += 1

    def _take(self) -> list[Job[A]]:
        """The first of those that wait, one for each key of which nothing is under way."""
        batch: list[Job[A]] = []
        left: list[Job[A]] = []
        while self._waiting and len(batch) < MAX_BATCH:
            job = self._waiting.popleft()
            if job.key in self._under_way:
                left.append(job)
            elif not job.late:
                self._under_way.add(job.key)
                batch.append(job)
        self._waiting.extendleft(reversed(left))
        return batch

    async def _commit(self, batch: list[Job[A]]) -> None:
        """One transaction for all; if that cannot be written, one for each, so that none fails for its neighbours.

        If nobody knows whether it was committed, nothing is repeated: an owner's move would be made twice.
        """

        async def write(connection: Connection) -> None:
            for job in batch:
                job.result, job.told, job.error = None, [], None
            await self._write(connection, batch)

        def committed(_: None) -> None:
            if self._committed is not None:
                self._committed(len(batch), time.monotonic() - began)
            try:
                self._tell([told for job in batch for told in job.told])
            except Exception:  # It is committed, and those who wait for it must hear of theirs.
                log.exception("store.publish_failed")

        began = time.monotonic()
        try:
            await self._database.write(write, committed, attempts=ATTEMPTS if len(batch) == 1 else 1)
        except Exception as error:
            # What the work raised, such as for a row that this program cannot read, was not committed either.
            refused = not isinstance(error, AgentServiceError) or isinstance(error.__cause__, CLASHES)
            if refused and len(batch) > 1:
                for job in batch:
                    await self._commit([job])
                return
            if not refused:
                self._doubt()
            for job in batch:
                job.error = error
