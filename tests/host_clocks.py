"""A host clock that is off, for a server process: libfaketime (Debian, Ubuntu: apt install faketime)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MISSING = "libfaketime is not installed (Debian, Ubuntu: apt install faketime)"
"""Why no clock can be off here."""


REPLICAS = pytest.mark.parametrize(
    ("shared_store", "clocks"),
    [("sqlite", (0.0,)), ("postgres", (0.0,)), ("postgres", (3600.0, 0.0))],
    ids=["sqlite", "postgres", "postgres, one clock an hour off"],
    indirect=True,
)
"""Marks tests of server processes on one store. On SQLite they are on one host, whose clock is that of the store."""

_next: Iterator[float] = itertools.repeat(0.0)


@contextmanager
def off(seconds: tuple[float, ...]) -> Iterator[None]:
    """The clocks of servers that are launched in this block are off by these, in turn."""
    global _next
    if any(seconds) and library() is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)
    _next = itertools.cycle(seconds)
    try:
        yield
    finally:
        _next = itertools.repeat(0.0)


def of_next() -> dict[str, str]:
    """What belongs into the environment of the server that is launched now."""
    seconds = next(_next)
    return off_by(seconds) if seconds else {}


def library() -> Path | None:
    """The one for programs with threads."""
    return next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


def off_by(seconds: float) -> dict[str, str]:
    """What the environment of a process has to hold, so that its clock, and those of its children, are off by this."""
    found = library()
    if found is None:
        raise RuntimeError(MISSING)
    # Timeouts are measured with the monotonic clock, which is never set.
    return {"LD_PRELOAD": str(found), "FAKETIME": f"{seconds:+g}", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def clean_up(pid: int) -> None:
    """Removes what the library keeps in shared memory for a process, and leaves there when that is killed."""
    for path in Path("/dev/shm").glob(f"*faketime_*_{pid}"):
        path.unlink(missing_ok=True)
