"""Keeps the tasks of running runs: started here, never awaited by an RPC, ended at shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Supervisor:
    """Background tasks by key. A task handles its own errors; one that does not is reported to `on_crash`."""

    def __init__(self, on_crash: Callable[[BaseException], None]) -> None:
        self._tasks: dict[asyncio.Task[Any], object] = {}
        self._by_key: dict[object, set[asyncio.Task[Any]]] = {}
        self._on_crash = on_crash

    def spawn(self, key: object, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Starts a task."""
        task = asyncio.create_task(work)
        self._tasks[task] = key
        self._by_key.setdefault(key, set()).add(task)
        task.add_done_callback(self._ended)
        return task

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs work to its end even if the caller is cancelled while waiting."""
        return await asyncio.shield(self.spawn(None, work))

    def cancel(self, key: object) -> None:
        """Cancels the tasks of a key."""
        for task in self._by_key.get(key, ()):
            task.cancel()

    async def settle_or(self, hurried: asyncio.Event, grace: float) -> None:
        """The same as `settle`, but not beyond the time when `hurried` is set."""
        ways = {asyncio.create_task(self.settle(grace)), asyncio.create_task(hurried.wait())}
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()

    async def settle(self, grace: float) -> None:
        """Gives tasks `grace` seconds to end, and those that they start meanwhile."""
        time = asyncio.get_running_loop().time
        deadline = time() + grace
        while self._tasks:
            left = max(deadline - time(), 0)
            await asyncio.wait(list(self._tasks), timeout=left)
            if not left:
                return

    async def cancel_all(self) -> None:
        """Ends what still works."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        key = self._tasks.pop(task, None)
        tasks = self._by_key[key]
        tasks.discard(task)
        if not tasks:
            del self._by_key[key]
        error = None if task.cancelled() else task.exception()
        if error is not None and key is not None:
            self._on_crash(error)
