"""What a process asked of the kernel, in order, as strace saw it: what it received, stored, flushed and sent.

A thread stands still until strace has noted the beginning and the end of its call. So what a thread did because another
thread's call had returned is noted after that return.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent_service.domain.values import replace

_RECEIVING = ("recvfrom", "recvmsg")
_SENDING = ("sendto", "sendmsg", "write", "writev")
_STORING = ("pwrite64", "write", "pwritev")
_FLUSHING = ("fsync", "fdatasync")
_TRACED = sorted({*_RECEIVING, *_SENDING, *_STORING, *_FLUSHING})

_CALL = re.compile(r"(?P<thread>\d+) +(?P<name>\w+)\(\d+<(?P<target>.*?)>(?P<rest>[,) ].*)")
_RESUMED = re.compile(r"(?P<thread>\d+) +<\.\.\. \w+ resumed>(?P<rest>.*)")


def why_not() -> str:
    """Why nothing can be traced here; empty if it can."""
    try:
        probe = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True)
    except FileNotFoundError:
        return "strace is not installed"
    return f"strace may not trace: {probe.stderr.strip()}" if probe.returncode else ""


def traced(program: tuple[str, ...], trace: Path) -> tuple[str, ...]:
    """The command that runs the program, as the process that is started, and writes the trace."""
    names = ",".join(_TRACED)
    return ("strace", "-D", "-f", "-yy", "-s", "65535", "-e", f"trace={names}", "-o", str(trace), *program)


def wait_until_whole(trace: Path, pid: int, seconds: float = 30.0) -> None:
    """Waits until the end of the process is in the trace, which strace writes in its own time."""
    end = re.compile(rf"^{pid} +\+\+\+ (exited|killed)", re.MULTILINE)
    for _ in range(int(seconds / 0.02)):
        if end.search(trace.read_text()):
            return
        time.sleep(0.02)
    raise AssertionError(f"the trace has no end: {trace.read_text()[-1000:]}")


@dataclass(frozen=True, slots=True)
class Call:
    """A system call on a descriptor: its arguments and result as text, and when it began and returned."""

    name: str
    target: str
    text: str
    began: int
    returned: int


def calls(trace: Path) -> list[Call]:
    """Those that returned. Times are numbers of lines."""
    return sorted(_calls(trace.read_text().splitlines()), key=lambda call: call.returned)


def _calls(lines: Iterable[str]) -> Iterator[Call]:
    unfinished: dict[str, Call] = {}
    for number, line in enumerate(lines):
        if found := _CALL.match(line):
            call = Call(found["name"], found["target"], found["rest"], number, number)
            if line.endswith("<unfinished ...>"):
                unfinished[found["thread"]] = call
            else:
                yield call
        elif (found := _RESUMED.match(line)) and found["thread"] in unfinished:
            call = unfinished.pop(found["thread"])
            yield replace(call, text=call.text + found["rest"], returned=number)


def flushed_before_sent(trace: Path, marker: str) -> list[list[bool]]:
    """For each time the marker was received: for each time it was then sent, whether the commit had been flushed.

    That is: since it was received, a write of it to the write-ahead log had returned, and after that a flush of the log
    had begun and returned, all before the sending began.
    """
    moments: list[tuple[int, str, Call]] = []
    for call in calls(trace):
        if call.name in _FLUSHING and call.target.endswith("-wal") and call.text.endswith("= 0"):
            moments.append((call.returned, "flushed", call))
        elif marker not in call.text:
            continue
        elif call.name in _RECEIVING:
            moments.append((call.returned, "received", call))
        elif call.name in _STORING and call.target.endswith("-wal"):
            moments.append((call.returned, "stored", call))
        elif call.name in _SENDING and call.target.startswith("TCP"):
            moments.append((call.began, "sent", call))
    return list(_windows(sorted(moments, key=lambda moment: moment[0])))


def _windows(moments: list[tuple[int, str, Call]]) -> Iterator[list[bool]]:
    window: list[bool] | None = None
    stored, flushed = -1, False
    for at, what, call in moments:
        if what == "received":
            if window is not None:
                yield window
            window, stored, flushed = [], -1, False
        elif what == "stored" and stored < 0:
            stored = at
        elif what == "flushed":
            flushed = flushed or 0 <= stored < call.began
        elif what == "sent" and window is not None:
            window.append(flushed)
    if window is not None:
        yield window
