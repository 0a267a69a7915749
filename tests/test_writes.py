"""How long a client may read nothing, on a clock that leaps to the next timer."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

import pytest

from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.transport.writes import Writes


class _Leaping(selectors.DefaultSelector):
    """Does not wait: the time that it was to wait is over at once."""

    time = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.time += timeout or 0.0
        return super().select(0)


class _Reader:
    """A client that takes so many seconds for each message."""

    def __init__(self, *seconds: float) -> None:
        self._seconds = iter(seconds)

    async def write(self, message: object) -> None:
        await asyncio.sleep(next(self._seconds))


def _run(work: Coroutine[Any, Any, None]) -> float:
    """Runs it; how long it took by its clock."""
    selector = _Leaping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.time  # type: ignore[method-assign]  # the clock of this loop alone
    try:
        loop.run_until_complete(work)
    finally:
        loop.close()
    return selector.time


async def _write(*seconds: float, rest: float = 0.0) -> None:
    writes = Writes(_Reader(*seconds), 10.0)  # type: ignore[arg-type]  # all of the context that is needed here
    for _ in seconds:
        await writes.write("a message")
        await asyncio.sleep(rest)
    writes.close()


def test_a_slow_reader_is_not_cut() -> None:
    """Each message has its time from its own write on, whatever the ones before took."""
    assert _run(_write(9.0, 9.0, 9.0)) == pytest.approx(27.0)


def test_a_silent_stream_is_not_cut() -> None:
    """Between two messages nobody has to read anything."""
    assert _run(_write(0.0, 9.0, 0.0, rest=95.0)) == pytest.approx(294.0)


@pytest.mark.parametrize("before", [(), (3.0,), (9.0, 9.0)])
def test_a_reader_that_takes_nothing_is_cut(before: tuple[float, ...]) -> None:
    """After the time for one message, exactly, however the ones before went."""

    async def work() -> None:
        with pytest.raises(AgentServiceError) as caught:
            await _write(*before, 1e9)
        assert caught.value.reason is Reason.READER_STALLED
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    assert _run(work()) == pytest.approx(sum(before) + 10.0)


def test_a_client_that_leaves_during_a_write_is_no_stalled_reader() -> None:
    """The cancellation passes."""

    async def work() -> None:
        task = asyncio.create_task(_write(1e9))
        await asyncio.sleep(5.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert _run(work()) == pytest.approx(5.0)
