"""Counters that a test can wait on, from any thread and any event loop, without polling."""

import asyncio
import threading
from dataclasses import dataclass

# More than any script sends: opens a gate for good.
_EVERYTHING = 1 << 62


@dataclass(frozen=True, eq=False)
class _Waiter:
    goal: int
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]

    def wake(self) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._resolve)

    def _resolve(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class Tally:
    """A count that only grows. Safe to use from several threads and event loops at once."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._count = 0
        self._changed = threading.Condition()
        self._waiters: list[_Waiter] = []

    @property
    def count(self) -> int:
        """The count now."""
        return self._count

    def add(self, amount: int = 1) -> None:
        """Raises the count and wakes those whose goal is reached."""
        with self._changed:
            self._count += amount
            due = [waiter for waiter in self._waiters if waiter.goal <= self._count]
            self._waiters = [waiter for waiter in self._waiters if waiter.goal > self._count]
            self._changed.notify_all()
        for waiter in due:
            waiter.wake()

    async def reach(self, goal: int, timeout: float | None = 10.0) -> None:  # noqa: ASYNC109 - every wait of a test has a bound
        """Returns once the count is `goal` or more; TimeoutError after `timeout` seconds."""
        waiter = self._enlist(goal)
        if waiter is None:
            return
        try:
            async with asyncio.timeout(timeout):
                await waiter.future
        except TimeoutError:
            raise self._late(goal, timeout) from None
        finally:
            self._dismiss(waiter)

    def reach_sync(self, goal: int, timeout: float | None = 10.0) -> None:
        """As `reach`, blocking the thread."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._count >= goal, timeout):
                raise self._late(goal, timeout)

    def _enlist(self, goal: int) -> _Waiter | None:
        loop = asyncio.get_running_loop()
        with self._changed:
            if self._count >= goal:
                return None
            waiter = _Waiter(goal, loop, loop.create_future())
            self._waiters.append(waiter)
            return waiter

    def _dismiss(self, waiter: _Waiter) -> None:
        with self._changed:
            self._waiters = [other for other in self._waiters if other is not waiter]

    def _late(self, goal: int, timeout: float | None) -> TimeoutError:
        return TimeoutError(f"{self._what}: {self._count}, not {goal}, after {timeout} s")


class Happening(Tally):
    """Something that happens once or more; `count` tells how often."""

    def is_set(self) -> bool:
        """Whether it has happened."""
        return self._count > 0

    async def wait(self, timeout: float | None = 10.0) -> None:  # noqa: ASYNC109 - every wait of a test has a bound
        """Returns once it has happened; TimeoutError after `timeout` seconds."""
        await self.reach(1, timeout)

    def wait_sync(self, timeout: float | None = 10.0) -> None:
        """As `wait`, blocking the thread."""
        self.reach_sync(1, timeout)


class Gate:
    """Lets a test decide when each step of a reply goes out.

    The steps of a streamed reply are its content chunks, in order, and then one step for the
    end of the stream (finish reason, usage, ``[DONE]``). A reply that is an HTTP error is one
    step. Given to several replies, a gate counts their steps together. Works across threads.
    """

    def __init__(self) -> None:
        self._asked = 0
        self._released = Tally("steps released")
        self._out = Tally("steps sent")

    def release(self, steps: int = 1) -> None:
        """Lets that many more steps go out, also ones that are not due yet."""
        self._released.add(steps)

    def open(self) -> None:
        """Lets everything go out from now on."""
        self._released.add(_EVERYTHING)

    async def reached(self, steps: int, timeout: float | None = 10.0) -> None:  # noqa: ASYNC109 - every wait of a test has a bound
        """Returns once that many steps are written to the socket."""
        await self._out.reach(steps, timeout)

    def reached_sync(self, steps: int, timeout: float | None = 10.0) -> None:
        """As `reached`, blocking the thread."""
        self._out.reach_sync(steps, timeout)

    async def next_step(self) -> None:
        """For the server: returns when the test lets its next step go out."""
        self._asked += 1
        await self._released.reach(self._asked, timeout=None)

    def step_sent(self) -> None:
        """For the server: the step is written to the socket."""
        self._out.add()
