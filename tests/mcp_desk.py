"""Starts `tests/mcp_server.py` in its ways, and connects to it."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent_service.engine.limits import Limits
from agent_service.engine.tools import ToolContext, ToolOutput
from agent_service.tools.mcp.server import McpServer
from agent_service.tools.mcp.tools import McpTools

ROOT = Path(__file__).parents[1]
CONTEXT = ToolContext("acme", "run_1", "conv_1", "call_1")

_SECONDS = 20.0


@dataclass
class Journal:
    """What the server wrote down."""

    path: Path

    @property
    def lines(self) -> list[str]:
        """All of it."""
        return self.path.read_text().splitlines() if self.path.exists() else []

    async def wrote(self, line: str, times: int = 1) -> None:
        """Returns once the server has written a line so often."""
        await eventually(lambda: self.lines.count(line) >= times, line)


async def eventually(condition: Callable[[], Any], what: str) -> None:
    """Returns once something holds; fails if it does not in time."""
    for _ in range(int(_SECONDS / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"never: {what}")


def arguments(transport: str, journal: Journal | None, *flags: str) -> tuple[str, ...]:
    """What the interpreter is started with."""
    noted = ("--journal", str(journal.path)) if journal else ()
    return ("-m", "tests.mcp_server", transport, *noted, *flags)


def program(journal: Journal | None = None, *flags: str, **fields: Any) -> McpServer:
    """The server as a program that the service starts."""
    started = {"command": sys.executable, "args": arguments("stdio", journal, *flags), "cwd": str(ROOT)}
    return McpServer("desk", **{"timeout": _SECONDS, **started, **fields})


@dataclass
class Endpoint:
    """The server as an endpoint. Killed and started again, it has the same port."""

    journal: Journal
    flags: tuple[str, ...]
    port: int
    _process: asyncio.subprocess.Process | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}/mcp"

    def server(self, **fields: Any) -> McpServer:
        """It as it is configured."""
        return McpServer("desk", **{"timeout": _SECONDS, "url": self.url, **fields})

    async def start(self) -> None:
        """Returns when it listens."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments("http", self.journal, *self.flags, "--port", str(self.port)),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert await asyncio.wait_for(self._process.stdout.readline(), _SECONDS)

    async def kill(self) -> None:
        """It dies at once."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.communicate()


@asynccontextmanager
async def running(journal: Journal, *flags: str) -> AsyncIterator[Endpoint]:
    """An endpoint that runs."""
    # A socket that is bound but does not listen keeps the port for it while it is killed.
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        endpoint = Endpoint(journal, flags, held.getsockname()[1])
        try:
            await endpoint.start()
            yield endpoint
        finally:
            await endpoint.kill()


@asynccontextmanager
async def connected(server: McpServer, limits: Limits | None = None) -> AsyncIterator[McpTools]:
    """The tools of the server."""
    tools = McpTools([server], limits or Limits())
    async with tools.connected():
        yield tools


async def call(tools: McpTools, name: str, **values: Any) -> ToolOutput:
    """What comes of a call, within bounds."""
    return await asyncio.wait_for(tools.call(f"desk_{name}", json.dumps(values), CONTEXT), 2 * _SECONDS)
