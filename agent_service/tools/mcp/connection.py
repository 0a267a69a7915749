"""The connection to one MCP server: made, kept, made again. One task enters and leaves all that the library opens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import anyio
import structlog
from mcp import Client, MCPError
from mcp.client import IncomingMessage
from mcp.client.subscriptions import SubscriptionLost
from mcp_types import (
    CONNECTION_CLOSED,
    INTERNAL_ERROR,
    REQUEST_TIMEOUT,
    CallToolResult,
    Implementation,
    Tool,
    ToolListChangedNotification,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from agent_service import __version__
from agent_service.tools.mcp.server import McpServer
from agent_service.tools.mcp.transports import Answer, endpoint, program

log = structlog.get_logger()

_RELIST_SECONDS = 60.0
"""How often a server is asked for its tools, since not every one tells of a change."""
_PAUSES = (0.5, 30.0)
_QUICK_DEATH_SECONDS = 10.0
_LEAVE_SECONDS = 5.0
_DRAIN_SECONDS = 2.0
_MAX_PAGES = 100
_MAX_REASON = 300


class NotExecutedError(Exception):
    """A call was not made; the text says why."""


class NotConnectedError(NotExecutedError):
    """There was no connection to make it on, and none could be made."""


class BrokeOffError(Exception):
    """The connection broke during a call, of whose outcome nothing is known; the text says how."""


@dataclass
class _Sending:
    """A call that is under way; `answer` is what came of its last HTTP request."""

    answer: Answer = field(default_factory=Answer)


_sending: ContextVar[_Sending | None] = ContextVar("_sending", default=None)


@dataclass
class _Link:
    """One connection, from the attempt to make it to its end.

    `calls` are under way. `trouble` is how HTTP fails; `why` tells how the other side ended it.
    """

    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    client: Client | None = None
    calls: int = 0
    trouble: str = ""
    why: str = ""

    def end(self, why: str = "") -> None:
        """Makes the task that keeps it leave it."""
        if not self.ending.is_set():
            self.why = why
            self.ending.set()

    @contextmanager
    def calling(self) -> Iterator[_Sending]:
        """While a call is under way."""
        self.calls += 1
        self.idle.clear()
        token = _sending.set(sending := _Sending())
        try:
            yield sending
        except (asyncio.CancelledError, TimeoutError):
            self.changed.set()  # Does the server still answer?
            raise
        finally:
            _sending.reset(token)
            self.calls -= 1
            if not self.calls:
                self.idle.set()

    def told(self, answer: Answer) -> None:
        """See Told."""
        self.trouble = answer.trouble
        if answer.session_gone:
            self.end("the server does not know the session any more")
        if sending := _sending.get():
            sending.answer = answer

    async def received(self, message: IncomingMessage) -> None:
        """Notes that the tools have changed."""
        if isinstance(message, ToolListChangedNotification):
            self.changed.set()


class Connection:
    """Keeps one server connected from `open` to `close`; `on_tools` is told its tools whenever they were listed."""

    def __init__(self, server: McpServer, on_tools: Callable[[Sequence[Tool]], None]) -> None:
        self._server = server
        self._on_tools = on_tools
        self._link: _Link | None = None
        self._attempt: asyncio.Future[str]
        self._wanted = asyncio.Event()
        self._closing = False

    def open(self) -> asyncio.Future[str]:
        """Begins to connect. What is returned is done when the first attempt has an end."""
        self._attempt = first = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._keep(), name=f"mcp-{self._server.name}")
        return first

    async def close(self) -> None:
        """Disconnects; a program has ended then."""
        self._closing = True
        self._wanted.set()
        if self._link is not None:
            self._link.end()
            if self._link.client is None:
                self._link.scope.cancel()
        await self._task

    async def reached(self) -> None:
        """Returns when there is a connection, which is tried at once. Raises NotConnectedError if it fails."""
        await self._connected(asyncio.get_running_loop().time() + self._server.timeout)

    async def call(self, tool: str, arguments: dict[str, Any], *, repeatable: bool) -> CallToolResult:
        """Calls a tool; again, once, if the connection broke and it was not executed or is `repeatable`.

        Without a connection an attempt is made at once. A cancellation is told to the server, and so is that time is
        over. Raises NotExecutedError, BrokeOffError, TimeoutError, MCPError for what the server refuses,
        ValidationError or RuntimeError for a result that is none.
        """
        deadline = asyncio.get_running_loop().time() + self._server.timeout
        try:
            return await self._call(tool, arguments, deadline)
        except NotConnectedError:
            raise
        except NotExecutedError:
            return await self._call(tool, arguments, deadline)
        except BrokeOffError as broke:
            if not repeatable:
                raise
            try:
                return await self._call(tool, arguments, deadline)
            except NotExecutedError:
                raise broke from None

    async def _call(self, tool: str, arguments: dict[str, Any], deadline: float) -> CallToolResult:
        link, client = await self._connected(deadline)
        with link.calling() as sending:
            try:
                async with asyncio.timeout_at(deadline):
                    # Without a limit here, the one for connecting would hold.
                    return await client.call_tool(tool, arguments, read_timeout_seconds=2 * self._server.timeout)
            except MCPError as error:
                answer = sending.answer
                if answer.nothing_done:
                    raise NotExecutedError(self._server.hide(answer.trouble)) from error
                if answer.broke or error.code == CONNECTION_CLOSED:
                    raise BrokeOffError(self._server.hide(answer.trouble or error.message)) from error
                if error.code == INTERNAL_ERROR and answer.trouble:  # of the library, which does not tell the status
                    raise MCPError(error.code, f"{error.message} ({answer.trouble})") from error
                raise

    async def _connected(self, deadline: float) -> tuple[_Link, Client]:
        """The present connection, else the next one. Raises NotConnectedError if making it fails."""
        link = self._link
        if link is None or link.client is None or link.ending.is_set():
            self._wanted.set()
            try:
                async with asyncio.timeout_at(deadline):
                    reason = await asyncio.shield(self._attempt)
            except TimeoutError:
                raise NotConnectedError("it has not answered yet") from None
            link = self._link
            if link is None or link.client is None:
                raise NotConnectedError(reason or "the connection ended")
        return link, link.client

    async def _keep(self) -> None:
        pause = _PAUSES[0]
        while not self._closing:
            self._wanted.clear()
            began = time.monotonic()
            await self._try()
            if time.monotonic() - began > _QUICK_DEATH_SECONDS:
                pause = _PAUSES[0]
            with anyio.move_on_after(pause):
                await self._wanted.wait()
            pause = min(2 * pause, _PAUSES[1])
        self._tell("the service is stopping")

    async def _try(self) -> None:
        """One attempt and, if it succeeds, the life of the connection."""
        self._link = link = _Link()
        reason = ""
        with link.scope:
            try:
                await self._live(link)
            except Exception as error:
                reason = self._reason(link, error)
        self._link = None
        if self._closing:
            return
        reason = link.why or reason
        if link.client is None:
            self._tell(reason)
        log.warning(
            "mcp.not_connected" if link.client is None else "mcp.disconnected", server=self._server.name, reason=reason
        )

    def _tell(self, reason: str) -> None:
        """Tells those who wait what came of the attempt, empty for success; from now on the next one is waited for."""
        attempt, self._attempt = self._attempt, asyncio.get_running_loop().create_future()
        attempt.set_result(reason)

    async def _live(self, link: _Link) -> None:
        server = self._server
        if server.command:
            transport = program(server, lambda: link.end("the program ended"))
        else:
            transport = endpoint(server, lambda: link.end("the connection ended"), link.told)
        async with Client(
            transport,
            read_timeout_seconds=server.connect_timeout,
            message_handler=link.received,
            client_info=Implementation(name="agent-service", version=__version__),
            cache=None,
        ) as client:
            try:
                await self._list(client)
                link.client = client
                self._tell("")
                log.info("mcp.connected", server=server.name, where=server.where, protocol=client.protocol_version)
                await self._stay(link, client)
            finally:
                link.end()
                link.scope.deadline = anyio.current_time() + _LEAVE_SECONDS

    async def _stay(self, link: _Link, client: Client) -> None:
        """Returns when the connection is to be left."""
        async with anyio.create_task_group() as tasks:
            tools = client.server_capabilities.tools
            if client.protocol_version in MODERN_PROTOCOL_VERSIONS and tools and tools.list_changed:
                tasks.start_soon(self._listen, link, client)
            tasks.start_soon(self._follow, link, client)
            await link.ending.wait()
            tasks.cancel_scope.cancel()
        # A call that a server without its session refuses learns so by itself.
        with anyio.move_on_after(_DRAIN_SECONDS):
            while link.calls:
                await link.idle.wait()

    async def _follow(self, link: _Link, client: Client) -> None:
        """Lists the tools again when they may have changed, and now and then."""
        pause, retry = _RELIST_SECONDS, _PAUSES[0]
        while True:
            with anyio.move_on_after(pause):
                await link.changed.wait()
            link.changed.clear()
            if await self._list_again(link, client):
                pause, retry = _RELIST_SECONDS, _PAUSES[0]
            else:
                pause, retry = retry, min(2 * retry, _PAUSES[1])

    async def _listen(self, link: _Link, client: Client) -> None:
        """Keeps the stream open on which a server of the newer protocol tells of changes."""
        while True:
            try:
                async with client.listen(tools_list_changed=True) as events:
                    link.changed.set()  # What changed before was not told.
                    async for _ in events:
                        link.changed.set()
            except (MCPError, SubscriptionLost, TimeoutError) as error:
                log.debug("mcp.not_told", server=self._server.name, error=str(error))
            link.changed.set()  # It also shows whether the server is there.
            await anyio.sleep(_RELIST_SECONDS)

    async def _list_again(self, link: _Link, client: Client) -> bool:
        """Whether it succeeded. If not, the connection is kept, unless nothing but a lack of life explains it."""
        try:
            await self._list(client)
        except (MCPError, ValidationError) as error:
            if isinstance(error, MCPError) and error.code == REQUEST_TIMEOUT and not link.calls:
                raise
            log.warning("mcp.not_listed", server=self._server.name, reason=self._reason(link, error))
            return False
        return True

    async def _list(self, client: Client) -> None:
        tools: list[Tool] = []
        cursor = None
        for _ in range(_MAX_PAGES):
            page = await client.list_tools(cursor=cursor)
            tools += page.tools
            cursor = page.next_cursor
            if cursor is None:
                break
        self._on_tools(tools)

    def _reason(self, link: _Link, error: BaseException) -> str:
        error = next(_leaves(error))
        said = error.message if isinstance(error, MCPError) else f"{type(error).__name__}: {error}"
        return self._server.hide(link.trouble or said)[:_MAX_REASON]


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error
