"""The server processes of a campaign, all on one SQLite file or PostgreSQL database, and their deaths."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
from dataclasses import dataclass, field
from pathlib import Path

from tests import host_clocks
from tests.chaos.tools import LEDGER
from tests.postgres import Postgres
from tests.process import PROGRAM, environment, launch
from tests.scripted_openai import ScriptedOpenAI

_START_SECONDS = 60.0
LEASE_SECONDS = 2.0
"""Short, so that a campaign sees many take-overs."""


@dataclass(frozen=True)
class Setup:
    """How servers are started. `program` is what runs `serve`; `workers` are the processes of one server.

    Their store is a file in the folder, or the `database`. The host clock of the first is off by `skew_seconds`.
    """

    folder: Path
    servers: int = 1
    workers: int = 1
    program: tuple[str, ...] = PROGRAM
    database: Postgres | None = None
    skew_seconds: float = 0.0

    @property
    def store(self) -> str:
        """As the setting has it."""
        return "runs.sqlite3" if self.database is None else self.database.url

    @property
    def ledger(self) -> Path:
        """Where the server tools write."""
        return self.folder / "ledger"


@dataclass
class Server:
    """One server on its port, alive or dead."""

    setup: Setup
    port: int
    env: dict[str, str]
    process: asyncio.subprocess.Process | None = None
    killed: bool = False
    log_paths: list[Path] = field(default_factory=list)

    @property
    def target(self) -> str:
        """Its address."""
        return f"127.0.0.1:{self.port}"

    async def launch(self) -> None:
        """Begins a process; it does not serve yet."""
        flags = ["--port", str(self.port), "--store", self.setup.store, "--tools", "tests.chaos.tools"]
        if self.setup.workers > 1:
            flags += ["--workers", str(self.setup.workers)]
        self.process, log_path = await launch(self.setup.folder, self.env, *flags, program=self.setup.program)
        self.log_paths.append(log_path)
        self.killed = False

    async def ready(self) -> None:
        """Returns once it serves."""
        assert self.process is not None
        assert self.process.stdout is not None
        async with asyncio.timeout(_START_SECONDS):
            line = await self.process.stdout.readline()
        if not line.startswith(b"listening on "):
            raise RuntimeError(f"a server did not start: {self.log_paths[-1].read_text()[-2000:]}")

    def kill(self) -> None:
        """Kills the process and its workers at once (kill -9)."""
        assert self.process is not None
        self.killed = True
        for pid in (self.process.pid, *_children(self.process.pid)):
            _signal(pid, signal.SIGKILL)

    def kill_worker(self, choice: float) -> bool:
        """Kills one of its workers; False if it has none. `choice` from 0 to below 1 says which."""
        assert self.process is not None
        workers = _children(self.process.pid)
        if not workers:
            return False
        _signal(workers[int(choice * len(workers))], signal.SIGKILL)
        return True

    def freeze(self, *, thaw: bool = False) -> None:
        """Stops the process and its workers in the middle of whatever they do, or lets them go on."""
        assert self.process is not None
        for pid in (self.process.pid, *_children(self.process.pid)):
            _signal(pid, signal.SIGCONT if thaw else signal.SIGSTOP)

    async def gone(self) -> None:
        """Returns once the killed process is no more."""
        assert self.process is not None
        await self.process.communicate()
        host_clocks.clean_up(self.process.pid)


@dataclass
class Fleet:
    """All servers."""

    servers: list[Server]

    @property
    def targets(self) -> list[str]:
        """Their addresses."""
        return [server.target for server in self.servers]

    async def start(self) -> None:
        """Starts them, the first one first: it makes the tables."""
        for server in self.servers:
            await server.launch()
            await server.ready()

    async def stop(self) -> None:
        """Kills them."""
        for server in self.servers:
            if server.process is not None and server.process.returncode is None:
                server.kill()
                await server.gone()


def fleet(setup: Setup, upstream: ScriptedOpenAI) -> Fleet:
    """The servers, not started yet."""
    env = environment(upstream, AGENT_SERVICE_LEASE_SECONDS=str(LEASE_SECONDS), AGENT_SERVICE_MODEL="scripted-model")
    env[LEDGER] = str(setup.ledger)
    skewed = env | host_clocks.off_by(setup.skew_seconds) if setup.skew_seconds else env
    others = [env] * (setup.servers - 1)
    return Fleet([Server(setup, _free_port(), each) for each in (skewed, *others)])


def _free_port() -> int:
    """Not one that the system gives to outgoing connections: those could take it while the server is dead."""
    while True:
        port = random.randint(20_000, 32_000)
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
