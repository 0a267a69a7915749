"""The service, with a watch on its event loop: whatever holds it for too long is written down, with where it was.

Time is that of the processor, so that a busy machine accuses nobody.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

HELD = "held.txt"
"""The file in the working directory, with an entry for each time."""
SLOW_SECONDS = 1.0
"""So long a request may hold up all others."""
_LOOK_SECONDS = 0.1
_FRAMES = 12

_run = asyncio.Handle._run


class _Watch:
    """Times each callback of the event loop, and looks now and then where a long one is."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._clock = time.pthread_getcpuclockid(self._thread)
        self._begun = 0.0

    def install(self) -> None:
        """From now on callbacks of this thread are watched."""

        def timed(handle: asyncio.Handle) -> None:
            self._begun = begun = time.thread_time()
            _run(handle)
            self._begun, seconds = 0.0, time.thread_time() - begun
            if seconds > SLOW_SECONDS:
                _write(f"{seconds:.1f} s by {handle!r}")

        setattr(asyncio.Handle, "_run", timed)  # noqa: B010 - it is what every callback goes through
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        told = 0.0
        while True:
            time.sleep(_LOOK_SECONDS)
            begun = self._begun
            if begun and begun != told and time.clock_gettime(self._clock) - begun > SLOW_SECONDS / 2:
                told = begun
                frame: Any = sys._current_frames()[self._thread]
                stack = traceback.extract_stack(frame)[-_FRAMES:]
                self._tell(begun, " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(stack)))

    def _tell(self, begun: float, where: str) -> None:
        """Once it is too long."""
        while self._begun == begun and time.clock_gettime(self._clock) - begun < SLOW_SECONDS:
            time.sleep(_LOOK_SECONDS)
        if self._begun == begun:
            _write(f"more than {SLOW_SECONDS:g} s in {where}")


def _write(line: str) -> None:
    with Path(HELD).open("a") as file:
        file.write(f"{line}\n")


if __name__ == "__main__":
    from agent_service.cli import main

    _Watch().install()
    sys.exit(main())
