"""How an MCP server is reached: a program that is started, or an endpoint. What is sent is the library's business."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import anyio
import httpx2
import structlog
from mcp.client.stdio import StdioServerParameters, get_default_environment, stdio_client
from mcp.client.streamable_http import MCP_SESSION_ID, streamable_http_client
from mcp.shared.message import SessionMessage

from agent_service.tools.mcp.server import McpServer

log = structlog.get_logger()

_GUARD = Path(__file__).with_name("guard.py")
_MAX_LINE = 4096
_LAST_WORDS_SECONDS = 1.0
_MAX_EVENT_BYTES = 64 * 1024 * 1024
_LEAST_SILENCE_SECONDS = 300.0

Streams = tuple[Any, Any]
"""What the library reads from and writes to."""


@asynccontextmanager
async def program(server: McpServer, ended: Callable[[], None]) -> AsyncIterator[Streams]:
    """Runs the program, which has only the environment that it is configured with and what programs cannot do without.

    `ended` is called when it ends. Leaving closes its standard input and ends what has not ended 2 s later. What it
    writes to stderr is logged. Raises OSError.
    """
    started = _program(server)
    async with (
        _stderr(server) as stderr,
        stdio_client(started, errlog=stderr) as (read, write),
    ):
        stderr.close()  # The program has it; the log then ends with the program.
        yield _Watched(read, ended), write


def _program(server: McpServer) -> StdioServerParameters:
    environment = get_default_environment() | dict(server.env)
    path = shutil.which(server.command, path=environment.get("PATH"))
    if path is None:
        raise FileNotFoundError(f"there is no program '{server.command}' on the path")
    command, arguments = path, list(server.args)
    if sys.platform == "linux":
        # Absolute, as the program may be started in another folder.
        guard = ["-I", "-S", str(_GUARD), str(os.getpid()), str(Path(path).absolute()), server.command]
        command, arguments = sys.executable, [*guard, *arguments]
    return StdioServerParameters(command=command, args=arguments, env=environment, cwd=server.cwd or None)


@asynccontextmanager
async def endpoint(
    server: McpServer, ended: Callable[[], None], answered: Callable[[int, bool], None]
) -> AsyncIterator[Streams]:
    """Opens the endpoint. `answered` is told the HTTP status of each answer, and whether the request was of a session.

    A failing request may end the block with an ExceptionGroup of httpx2's exceptions.
    """

    async def hook(response: httpx2.Response) -> None:
        answered(response.status_code, MCP_SESSION_ID in response.request.headers)

    silence = max(_LEAST_SILENCE_SECONDS, 2 * server.timeout)  # A call ends before.
    async with (
        httpx2.AsyncClient(
            headers=dict(server.headers),
            timeout=httpx2.Timeout(server.connect_timeout, read=silence),
            event_hooks={"response": [hook]},
            # A proxy named in the environment has no business with a loopback address.
            mounts={f"all://{host}": None for host in ("localhost", "127.0.0.1", "[::1]")},
        ) as client,
        streamable_http_client(server.url, http_client=client, max_sse_event_size=_MAX_EVENT_BYTES) as (read, write),
    ):
        yield _Watched(read, ended), write


class _Watched:
    """What comes from a server; tells when nothing can come any more, which the library tells only who waits."""

    def __init__(self, stream: Any, ended: Callable[[], None]) -> None:
        self._stream = stream
        self._ended = ended

    @property
    def last_context(self) -> Any:
        """The library looks for it."""
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> SessionMessage | Exception:
        """The next message. Raises anyio.EndOfStream or anyio.ClosedResourceError."""
        try:
            message: SessionMessage | Exception = await self._stream.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            self._ended()
            raise
        return message

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        """Closes it."""
        await self._stream.aclose()

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> Any:
        return await self._stream.__aexit__(*error)


@asynccontextmanager
async def _stderr(server: McpServer) -> AsyncIterator[Any]:
    """A file for the program to write to, whose lines are logged."""
    reading, writing = os.pipe()
    reader = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb")
    )
    following = asyncio.create_task(_follow(server, reader))
    try:
        with os.fdopen(writing, "w") as file:
            yield file
    finally:
        await _give_time(following)
        pipe.close()


async def _follow(server: McpServer, reader: asyncio.StreamReader) -> None:
    rest = b""
    while chunk := await reader.read(65536):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _MAX_LINE:
            lines, rest = [*lines, rest], b""
        for line in lines:
            _log_line(server, line)
    _log_line(server, rest)


def _log_line(server: McpServer, line: bytes) -> None:
    text = server.hide(line.decode(errors="replace").rstrip())
    if text:
        log.info("mcp.stderr", server=server.name, line=text[:_MAX_LINE])


async def _give_time(task: asyncio.Task[None]) -> None:
    """For the last words of a program; one that it started may keep its stderr open for longer."""
    with anyio.CancelScope(shield=True):
        await asyncio.wait({task}, timeout=_LAST_WORDS_SECONDS)
        task.cancel()
        await asyncio.wait({task})
