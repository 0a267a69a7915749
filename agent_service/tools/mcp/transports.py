"""How an MCP server is reached: a program that is started, or an endpoint. What is sent is the library's business."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
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
_OF_GATEWAYS = (502, 503, 504)
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


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of an HTTP request. `trouble` is empty if it succeeded.

    `broke`: there is no answer of the server. `nothing_done`: it has certainly not acted on the request.
    `session_gone`: it does not know the session any more.
    """

    trouble: str = ""
    broke: bool = False
    nothing_done: bool = False
    session_gone: bool = False


Told = Callable[[Answer], None]
"""Is told what came of each HTTP request, in the context of who made it."""


@asynccontextmanager
async def endpoint(server: McpServer, ended: Callable[[], None], told: Told) -> AsyncIterator[Streams]:
    """Opens the endpoint, which need not be there."""
    silence = max(_LEAST_SILENCE_SECONDS, 2 * server.timeout)  # A call ends before.
    async with (
        _HttpClient(
            told,
            server.trace_headers,
            headers=dict(server.headers),
            timeout=httpx2.Timeout(server.connect_timeout, read=silence),
            # A proxy named in the environment has no business with a loopback address.
            mounts={f"all://{host}": None for host in ("localhost", "127.0.0.1", "[::1]")},
        ) as client,
        streamable_http_client(server.url, http_client=client, max_sse_event_size=_MAX_EVENT_BYTES) as (read, write),
    ):
        yield _Watched(read, ended), write


class _HttpClient(httpx2.AsyncClient):
    """Answers for a server that does not: an exception would end the library's transport, and with it all calls."""

    def __init__(self, told: Told, trace_headers: Callable[[], Mapping[str, str]], **options: Any) -> None:
        super().__init__(**options)
        self._told = told
        self._trace_headers = trace_headers

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """See httpx2.AsyncClient."""
        # A GET for the rest of a stream that broke says nothing of what was done for the POST before.
        first = request.method == "POST"
        request.headers.update(self._trace_headers())
        try:
            response = await super().send(request, **options)
        except httpx2.TransportError as error:
            never_sent = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
            self._told(Answer(f"{type(error).__name__}: {error}", broke=True, nothing_done=first and never_sent))
            return httpx2.Response(503, request=request)
        status = response.status_code
        gone = status == 404 and MCP_SESSION_ID in request.headers
        trouble = f"HTTP status {status}" if response.is_error else ""
        self._told(Answer(trouble, broke=status in _OF_GATEWAYS, nothing_done=first and gone, session_gone=gone))
        return response


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
