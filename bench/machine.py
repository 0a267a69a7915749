"""What was used: CPU time of this process and of others, and a database to measure on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.postgres import Postgres, postgres

_TICKS = os.sysconf("SC_CLK_TCK")


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
