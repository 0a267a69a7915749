"""What was used, CPU time and memory of this process and of others; a database to measure on; what machine it is."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.postgres import Postgres, postgres

_TICKS = os.sysconf("SC_CLK_TCK")
_CPU_CLOCK = 2
_PACKAGES = ("grpcio", "protobuf", "openai", "aiohttp", "pydantic", "msgspec", "asyncpg")


@contextmanager
def database() -> Iterator[Postgres]:
    """A PostgreSQL server of its own on this host, which flushes every commit."""
    with postgres(durable=True) as server:
        yield server


class Used:
    """Wall time, CPU time of this process and of a PostgreSQL server's processes, in seconds, of a block."""

    def __init__(self, server: Postgres | None = None) -> None:
        self._server = server
        self.wall = self.client = self.server = 0.0

    def __enter__(self) -> Used:
        self.wall, self.client, self.server = time.monotonic(), time.process_time(), self._server_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.monotonic() - self.wall
        self.client = time.process_time() - self.client
        self.server = self._server_seconds() - self.server

    def _server_seconds(self) -> float:
        """Of all its processes; those that have ended are counted by the one that started them."""
        if self._server is None:
            return 0.0
        keeper, *others = self._server.processes
        return _cpu(keeper, children=True) + sum(_cpu(process) for process in others)


def _cpu(process: int, *, children: bool = False) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return sum(map(int, fields[11 : 15 if children else 13])) / _TICKS


def cpu_seconds(process: int) -> float:
    """CPU time, user and system, of all threads of a process so far. To the nanosecond; /proc counts in 10 ms."""
    return time.clock_gettime((~process << 3) | _CPU_CLOCK)  # What clock_getcpuclockid(3) makes of a process id.


def resident(process: int) -> int:
    """Bytes of memory that a process has of its own, such as heap and stacks; files that it maps are not counted."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) * 1024


def describe() -> dict[str, str]:
    """The machine and the versions, as figures are to be read with them."""
    cpu = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":", 1)[1].strip() for line in cpu.splitlines() if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return {
        "CPU": f"{os.cpu_count()} x {model or platform.machine()}",
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "load before": load,
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        "packages": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES),
    }
