"""SIGTERM and SIGINT: the first one asks for a clean stop, the next one that it takes no more time."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager


class StopSignals:
    """What this process was told: `asked` to stop, and `hurried` while it stops.

    A `patient` process is hurried by SIGINT only: a service manager may send SIGTERM to it and to the process that
    passes the signal on to it.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.asked = asyncio.Event()
        self.hurried = asyncio.Event()
        self._starting: asyncio.Task[object] | None = None
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._told, not patient)
        loop.add_signal_handler(signal.SIGINT, self._told, True)

    @contextmanager
    def while_starting(self) -> Iterator[None]:
        """For all that a process does until it stops. Until `started`, the first signal ends the block, as if it had
        come to its end."""
        task = self._starting = asyncio.current_task()
        assert task is not None
        try:
            yield
        except asyncio.CancelledError:
            if self._starting is None or not self.asked.is_set():
                raise
            task.uncancel()
        finally:
            self._starting = None

    def started(self) -> None:
        """From now on, the process looks at `asked` by itself."""
        self._starting = None

    def _told(self, hurries: bool) -> None:
        if not self.asked.is_set():
            self.asked.set()
            if self._starting is not None:
                self._starting.cancel()
        elif hurries:
            self.hurried.set()
