"""A host clock that is off, for one server of a campaign: libfaketime (Debian, Ubuntu: apt install faketime)."""

from __future__ import annotations

from pathlib import Path

MISSING = "libfaketime is not installed (Debian, Ubuntu: apt install faketime)"
"""Why no clock can be off here."""


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
