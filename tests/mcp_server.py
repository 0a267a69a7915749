"""An MCP server for the tests, of the official package, in a process of its own: `python -m tests.mcp_server --help`.

It writes what it does into a journal, line by line, since a killed process can tell nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import uvicorn
from mcp import MCPError
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http import EventStore
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged
from mcp.shared.message import SessionMessage
from mcp_types import (
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    CallToolRequestParams,
    CallToolResult,
    ContentBlock,
    DiscoverResult,
    ErrorData,
    ImageContent,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCRequest,
    ListToolsResult,
    PaginatedRequestParams,
    RequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)

Context = ServerRequestContext[Any]
READ_ONLY, IDEMPOTENT = ToolAnnotations(read_only_hint=True), ToolAnnotations(idempotent_hint=True)

Body = Callable[["Desk", Context, dict[str, Any]], Awaitable[CallToolResult]]

_NUMBERS = {"a": {"type": "integer"}, "b": {"type": "integer"}}
_TOOLS: dict[str, tuple[Tool, Body]] = {}


def _tool(
    name: str,
    description: str = "",
    parameters: dict[str, Any] | None = None,
    annotations: ToolAnnotations | None = None,
    output: dict[str, Any] | None = None,
) -> Callable[[Body], Body]:
    schema = {"type": "object", **(parameters or {})}
    tool = Tool(name=name, description=description, input_schema=schema, annotations=annotations, output_schema=output)

    def add(body: Body) -> Body:
        _TOOLS[name] = (tool, body)
        return body

    return add


def _said(*texts: str, failed: bool = False, **fields: Any) -> CallToolResult:
    content: list[ContentBlock] = [TextContent(type="text", text=text) for text in texts]
    return CallToolResult(content=content, is_error=failed, **fields)


class Desk:
    """What the server has and does."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.tools = {name: tool for name, tool in _TOOLS.items() if name != "grown"}
        for name in options.without:
            del self.tools[name]
        self.bus = InMemorySubscriptionBus()
        self._journal = Path(options.journal) if options.journal else None
        self.note("started")
        self.note(f"pid {os.getpid()}")

    def note(self, line: str) -> None:
        """Writes a line into the journal."""
        if self._journal:
            with self._journal.open("a") as file:
                file.write(f"{line}\n")

    async def list_tools(self, _: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        """Two pages."""
        tools = [tool for tool, _ in self.tools.values()]
        self.note("listed")
        if params and params.cursor:
            return ListToolsResult(tools=tools[3:])
        return ListToolsResult(tools=tools[:3], next_cursor="3")

    async def call_tool(self, context: Context, params: CallToolRequestParams) -> CallToolResult:
        """Notes the call and makes it."""
        self.note(f"{params.name} {json.dumps(params.arguments)}")
        if params.name not in self.tools:
            return _said(f"there is no tool {params.name}", failed=True)
        _, body = self.tools[params.name]
        try:
            return await body(self, context, params.arguments or {})
        except anyio.get_cancelled_exc_class():
            self.note(f"{params.name} cancelled")
            raise


@_tool("add", "Adds two numbers.", {"properties": _NUMBERS, "required": ["a", "b"]}, READ_ONLY)
async def add(desk: Desk, context: Context, arguments: dict[str, Any]) -> CallToolResult:
    result = {"sum": arguments["a"] + arguments["b"]}
    return _said(json.dumps(result), structured_content=result)


@_tool("say.hello", "Says hello.", annotations=IDEMPOTENT)
async def hello(desk: Desk, context: Context, arguments: dict[str, Any]) -> CallToolResult:
    return _said("hello", "there")


@_tool("hang")
async def hang(desk: Desk, context: Context, arguments: dict[str, Any]) -> CallToolResult:
    await anyio.sleep_forever()
    raise AssertionError


@_tool("stuck", "Reads nothing any more, not even that its standard input has closed.")
async def stuck(desk: Desk, context: Context, arguments: dict[str, Any]) -> CallToolResult:
    time.sleep(3600)  # noqa: ASYNC251  # blocking is the point
    raise AssertionError


@_tool("big", "", {"properties": {"size": {"type": "integer"}}})
async def big(desk: Desk, context: Context, arguments: dict[str, Any]) -> CallToolResult:
    return _said("x" * arguments["size"])


@_tool("fail")
async def fail(desk: Desk, context: Context, arguments: dict[str, Any]) -> CallToolResult:
    return _said("the disk is full", failed=True)


@_tool("refuse")
async def refuse(desk: Desk, context: Context, arguments: dict[str, Any]) -> CallToolResult:
    raise MCPError(INVALID_PARAMS, f"not with {os.environ.get('TOKEN')}")


@_tool("picture")
async def picture(desk: Desk, context: Context, arguments: dict[str, Any]) -> CallToolResult:
    image = ImageContent(type="image", data="AAAA", mime_type="image/png")
    return CallToolResult(content=[TextContent(type="text", text="a cat"), image])


@_tool("environment", "The names and values of the environment.")
async def environment(desk: Desk, context: Context, arguments: dict[str, Any]) -> CallToolResult:
    return _said(json.dumps(dict(os.environ)))


@_tool("headers", "The HTTP headers of the request.")
async def headers(desk: Desk, context: Context, arguments: dict[str, Any]) -> CallToolResult:
    assert context.request is not None
    return _said(json.dumps(dict(context.request.headers)))


@_tool("complain", "Writes to stderr.")
async def complain(desk: Desk, context: Context, arguments: dict[str, Any]) -> CallToolResult:
    sys.stderr.write(f"the token is {os.environ.get('TOKEN')}\n")
    sys.stderr.flush()
    return _said("done")


@_tool("die", "Ends the server.", annotations=IDEMPOTENT)
async def die(desk: Desk, context: Context, arguments: dict[str, Any]) -> CallToolResult:
    os._exit(3)


@_tool("grow", "Adds the tool 'grown' and removes 'fail'.")
async def grow(desk: Desk, context: Context, arguments: dict[str, Any]) -> CallToolResult:
    desk.tools["grown"] = _TOOLS["grown"]
    del desk.tools["fail"]
    await desk.bus.publish(ToolsListChanged())
    await context.session.send_tool_list_changed()
    return _said("grown")


@_tool("grown")
async def grown(desk: Desk, context: Context, arguments: dict[str, Any]) -> CallToolResult:
    return _said("here I am")


@_tool("lie", "Promises a number.", output={"type": "object", "properties": {"n": {"type": "integer"}}})
async def lie(desk: Desk, context: Context, arguments: dict[str, Any]) -> CallToolResult:
    return _said("a", structured_content={"n": "a"})


@_tool("broken", "Has a schema that is none.", {"properties": {"a": {"type": "nonsense"}}})
@_tool("n" * 70, "Has too long a name.")
@_tool("twin.a", "Has the same name as the next one where dots are not allowed.")
@_tool("twin_a")
async def never(desk: Desk, context: Context, arguments: dict[str, Any]) -> CallToolResult:
    raise AssertionError


async def _no_discovery(context: Context, params: RequestParams) -> DiscoverResult:
    raise MCPError(METHOD_NOT_FOUND, "Method not found")


def _server(desk: Desk, *, old: bool) -> Server[Any]:
    listen = None if old else ListenHandler(desk.bus)
    server = Server("desk", on_list_tools=desk.list_tools, on_call_tool=desk.call_tool, on_subscriptions_listen=listen)
    if old:
        server.add_request_handler("server/discover", RequestParams, _no_discovery)
    return server


async def _over_stdio(server: Server[Any], old: bool) -> None:
    options = server.create_initialization_options(NotificationOptions(tools_changed=True))
    async with stdio_server() as (read, write):
        if old:
            # The package takes the first request as the choice of a protocol, so this one must not reach it.
            first = await read.receive()
            assert isinstance(first, SessionMessage)
            assert isinstance(first.message, JSONRPCRequest)
            assert first.message.method == "server/discover"
            error = ErrorData(code=METHOD_NOT_FOUND, message="Method not found")
            await write.send(SessionMessage(JSONRPCError(jsonrpc="2.0", id=first.message.id, error=error)))
        await server.run(read, write, options)


class _Events(EventStore):
    """Gives events their numbers, so that clients ask for more of a stream that broke; there never is more."""

    def __init__(self) -> None:
        self._numbers = count(1)

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        return str(next(self._numbers))

    async def replay_events_after(self, last_event_id: str, send_callback: Any) -> None:
        return None


async def _over_http(server: Server[Any], port: int) -> None:
    """Says on standard output that it listens."""
    listener = socket.create_server(("127.0.0.1", port))
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    config = uvicorn.Config(
        server.streamable_http_app(event_store=_Events()), log_level="warning", timeout_graceful_shutdown=1
    )
    await uvicorn.Server(config).serve(sockets=[listener])


def main() -> None:
    """Serves until standard input closes (stdio), or until it is killed (http)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("transport", choices=["stdio", "http"])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--journal", default="")
    parser.add_argument("--old", action="store_true", help="speak only the protocol before 2026-07-28")
    parser.add_argument("--without", nargs="*", default=[], help="tools that it does not have")
    options = parser.parse_args()
    server = _server(Desk(options), old=options.old)
    if options.transport == "stdio":
        anyio.run(_over_stdio, server, options.old)
    else:
        anyio.run(_over_http, server, options.port)


if __name__ == "__main__":
    main()
