"""The messages of one stream on their way to its client, which may stop reading."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from agent_service.domain.errors import AgentServiceError, Reason


class Writes:
    """Writes to one stream from the present task. Nothing may be read for at most `stall_seconds`.

    One timer watches over all writes: a message only notes when its write begins, as setting a timer for each of them
    would cost more than most of what is done for a token.
    """

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any], stall_seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._context = context
        self._task = task
        self._seconds = stall_seconds
        self._loop = asyncio.get_running_loop()
        self._begun: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stalled = False

    async def write(self, response: Any) -> None:
        """Sends one message. Raises READER_STALLED."""
        self._begun = self._loop.time()
        if self._timer is None:
            self._watch(self._begun)
        try:
            await self._context.write(response)
        except asyncio.CancelledError:
            # Somebody else may have cancelled the task at the same time.
            if self._stalled and self._task.uncancel() == 0:
                raise self._reader_stalled() from None
            raise
        finally:
            self._begun = None

    def close(self) -> None:
        """Nothing is written any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self, begun: float) -> None:
        self._timer = self._loop.call_at(begun + self._seconds, self._look)

    def _look(self) -> None:
        """Ends a write that has taken too long; a later one is given its time, and without any the next one watches."""
        self._timer = None
        if self._begun is None:
            return
        if self._loop.time() < self._begun + self._seconds:
            self._watch(self._begun)
            return
        self._stalled = True
        self._task.cancel()

    def _reader_stalled(self) -> AgentServiceError:
        return AgentServiceError(
            Reason.READER_STALLED,
            f"nothing was read from this stream for {self._seconds:g} s; "
            "attach again (a run: with WatchRun after the last sequence seen)",
            retry_after=1.0,
        )
