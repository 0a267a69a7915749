"""Where the server tools of a server process ask the test what to do, so that it sees and decides every execution."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from tests.desk_tools import DESK_PORT, DIE

_SECONDS = 15.0


@dataclass(frozen=True)
class Execution:
    """One execution of a server tool, which goes on until the test answers or its process gives it up."""

    name: str
    arguments: dict[str, Any]
    run_id: str
    tool_call_id: str
    attempt: int
    pid: int
    _reader: asyncio.StreamReader = field(repr=False)
    _writer: asyncio.StreamWriter = field(repr=False)

    def answer(self, text: str) -> None:
        """It returns this text."""
        self._writer.write(json.dumps(text).encode() + b"\n")

    def die(self) -> None:
        """It takes its process with it, as kill -9 does."""
        self._writer.write(DIE)

    async def ended(self) -> None:
        """Returns once it is over: returned, cancelled, or dead."""
        assert await asyncio.wait_for(self._reader.read(), _SECONDS) == b""


class Desk:
    """Takes the calls of the tools in `desk_tools`, one after the other."""

    def __init__(self) -> None:
        self.count = 0
        self._waiting: asyncio.Queue[Execution] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def environment(self) -> dict[str, str]:
        """What a server needs to have these tools."""
        return {"AGENT_SERVICE_TOOLS": "tests.desk_tools", DESK_PORT: str(self._port)}

    async def execution(self) -> Execution:
        """The next one that has begun."""
        return await asyncio.wait_for(self._waiting.get(), _SECONDS)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        call = json.loads(await reader.readline())
        self.count += 1
        self._waiting.put_nowait(Execution(**call, _reader=reader, _writer=writer))
