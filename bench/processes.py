"""The processes that are measured: the service as an operator runs it, the references, and the model endpoint."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from bench.environment import PYTHON
from bench.machine import cpu_seconds, resident
from tests.process import PROGRAM, environment

ROOT = Path(__file__).parents[1]
_SECONDS = 30.0
T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """A running server, its address, and the folder that it keeps its files in."""

    pid: int
    target: str
    folder: Path

    @property
    def cpu(self) -> float:
        """CPU seconds so far, user and system."""
        return cpu_seconds(self.pid)

    @property
    def memory(self) -> int:
        """Bytes of memory of its own."""
        return resident(self.pid)

    @property
    def log(self) -> str:
        """What it has written to its standard error."""
        return (self.folder / "log").read_text()

    def count(self, what: str) -> int:
        """How many open files ("fd") or threads ("task") it has."""
        return sum(1 for _ in Path(f"/proc/{self.pid}", what).iterdir())


@asynccontextmanager
async def started(*command: str, env: dict[str, str] | None = None) -> AsyncIterator[Process]:
    """A process that prints "listening on ADDRESS", in a folder of its own; killed at the end."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name, _log(Path(name)) as log:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=name,
            env=environment() | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'generated'}"} | (env or {}),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
        try:
            assert process.stdout is not None
            line = (await asyncio.wait_for(process.stdout.readline(), _SECONDS)).decode()
            server = Process(process.pid, line.removeprefix("listening on ").strip(), Path(name))
            if not line.startswith("listening on "):
                raise RuntimeError(f"{' '.join(command)}: {server.log[-2000:]}")
            yield server
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


def _log(folder: Path) -> IO[str]:
    return (folder / "log").open("w")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs it to its end. SIGTERM ends it as Ctrl-C does, so that no process is left behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return asyncio.run(work)


@asynccontextmanager
async def upstream() -> AsyncIterator[Process]:
    """The model endpoint."""
    async with started(sys.executable, "-m", "bench.upstream") as process:
        yield process


@asynccontextmanager
async def service(upstream: Process, store: str = "bench.sqlite3", limits: str = "{}") -> AsyncIterator[Process]:
    """The service with its defaults, on a new SQLite file or on this store. The client names the model."""
    endpoint = {"OPENAI_BASE_URL": f"http://{upstream.target}/v1", "AGENT_SERVICE_MODEL": "tool"}
    env = endpoint | {"AGENT_SERVICE_LIMITS": limits}
    async with started(*PROGRAM, "serve", "--port", "0", "--store", store, env=env) as process:
        yield process


@asynccontextmanager
async def reference(name: str, upstream: Process) -> AsyncIterator[Process]:
    """A reference that needs no more than the service does; see bench/references."""
    async with started(sys.executable, "-m", "bench.references", name, f"http://{upstream.target}/v1") as process:
        yield process


@asynccontextmanager
async def library(name: str, upstream: Process) -> AsyncIterator[Process]:
    """A reference that is built with a library of agents, in the environment made for these."""
    async with started(str(PYTHON), "-m", "bench.references", name, f"http://{upstream.target}/v1") as process:
        yield process
