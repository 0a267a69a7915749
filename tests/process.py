"""A server in a process of its own, as an operator runs it: for what only a process can show, such as its death."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_service.stores.urls import is_postgres
from tests import host_clocks
from tests.scripted_openai import ScriptedOpenAI
from tests.service import Client, connected

API_KEY = "sk-not-for-the-log-4711"
"""The key every process is given; no log may hold it."""

PROGRAM = (sys.executable, "-m", "agent_service")
"""The command line of the service, before its arguments."""

_SECONDS = 30.0
"""The longest that a process may take to start or to end."""


@dataclass
class ServerProcess:
    """A running server. `target` is its address; its stderr goes to `log_path`."""

    process: asyncio.subprocess.Process
    target: str
    log_path: Path

    @property
    def log(self) -> list[dict[str, Any]]:
        """The log so far, line by line. Each line is JSON, and none holds the key."""
        text = self.log_path.read_text()
        assert API_KEY not in text
        # Not splitlines(), which cuts at line separators that JSON may hold as they are.
        return [json.loads(line) for line in text.split("\n") if line]

    async def logged(self, event: str, *run_ids: str) -> list[dict[str, Any]]:
        """Those lines of the log, once there are some (for each of these runs, if any are named)."""
        for _ in range(1000):
            lines = [line for line in self.log if line["event"] == event]
            if lines and set(run_ids) <= {line.get("run_id") for line in lines}:
                return lines
            await asyncio.sleep(0.02)
        raise AssertionError(f"not logged: {event} {run_ids}")

    @property
    def memory(self) -> int:
        """Bytes of memory in use."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    async def kill(self) -> None:
        """The process dies at once (kill -9)."""
        self.process.kill()
        await asyncio.wait_for(self.process.wait(), _SECONDS)

    def terminate(self) -> None:
        """The process is told to stop (SIGTERM)."""
        self.process.send_signal(signal.SIGTERM)

    async def ended(self) -> int:
        """The exit code, once the process has ended."""
        return await asyncio.wait_for(self.process.wait(), _SECONDS)


def environment(upstream: ScriptedOpenAI | None = None, **more: str) -> dict[str, str]:
    """A clean environment; with `upstream` as the model endpoint."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    endpoint = {"OPENAI_BASE_URL": upstream.base_url, "OPENAI_API_KEY": API_KEY} if upstream else {}
    return kept | endpoint | more


def lease(store: str) -> dict[str, str]:
    """The environment of servers of which the next one goes on at once with what a killed one left.

    That nobody has a file open shows that all others are gone. On a database, only the end of their leases does.
    """
    return {"AGENT_SERVICE_LEASE_SECONDS": "1" if is_postgres(store) else "3600"}


async def launch(
    folder: Path, env: dict[str, str], *flags: str, program: tuple[str, ...] = PROGRAM
) -> tuple[asyncio.subprocess.Process, Path]:
    """Starts `serve` in this folder; the process, and the file that its stderr goes to."""
    handle, path = tempfile.mkstemp(prefix="log-", dir=folder)
    with os.fdopen(handle, "w") as log:
        process = await asyncio.create_subprocess_exec(
            *(*program, "serve", "--port", "0", *flags),
            cwd=folder,
            env=env | host_clocks.of_next(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
    return process, Path(path)


@asynccontextmanager
async def running(
    folder: Path, env: dict[str, str], *flags: str, program: tuple[str, ...] = PROGRAM
) -> AsyncIterator[tuple[ServerProcess, Client]]:
    """A server and its client; killed at the end if it still runs. Its whole log must be JSON without the key."""
    process, log_path = await launch(folder, env, *flags, program=program)
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), _SECONDS)).decode()
        assert line.startswith("listening on "), log_path.read_text()
        server = ServerProcess(process, line.removeprefix("listening on ").strip(), log_path)
        async with connected(server.target) as client:
            yield server, client
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
        host_clocks.clean_up(process.pid)
    assert server.log


async def refused(folder: Path, env: dict[str, str], *flags: str) -> str:
    """The one line with which a server refuses to start; it must say nothing else and exit with 1."""
    process, log_path = await launch(folder, env, *flags)
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = log_path.read_text()
    assert (process.returncode, output) == (1, b""), said
    line, end = said[:-1], said[-1:]
    assert end == "\n"
    assert "\n" not in line, said
    assert API_KEY not in line
    assert line.startswith("error: ")
    return line.removeprefix("error: ")
