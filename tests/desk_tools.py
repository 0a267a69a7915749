"""Server tools for a server process, each call of which is decided at the test's Desk (see tool_desk)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

from agent_service.engine.tools import ToolContext
from agent_service.tools import server_tool

__all__ = ["fetch", "look_up", "order", "pay", "search", "wipe"]

DESK_PORT = "TOOL_DESK_PORT"
"""The environment variable that names the port of the desk."""
DIE = b"die\n"
"""The order to end the process."""


@server_tool(idempotent=True)
async def look_up(name: str, context: ToolContext) -> str:
    """Finds something. May be repeated."""
    return await _at_the_desk("look_up", context, name=name)


async def pay(amount: int, context: ToolContext) -> str:
    """Moves money. Must not be repeated."""
    return await _at_the_desk("pay", context, amount=amount)


@server_tool(idempotent=True, requires_approval=True)
async def wipe(path: str, context: ToolContext) -> str:
    """Deletes something, once somebody said so. May be repeated."""
    return await _at_the_desk("wipe", context, path=path)


@server_tool(requires_approval=True)
async def order(article: str, context: ToolContext) -> str:
    """Orders something, once somebody said so. Must not be repeated."""
    return await _at_the_desk("order", context, article=article)


@server_tool(idempotent=True, parallel_safe=True)
async def search(query: str, context: ToolContext) -> str:
    """Finds something, also beside other calls. May be repeated."""
    return await _at_the_desk("search", context, query=query)


@server_tool(parallel_safe=True)
async def fetch(url: str, context: ToolContext) -> str:
    """Gets something, also beside other calls. Must not be repeated."""
    return await _at_the_desk("fetch", context, url=url)


async def _at_the_desk(tool: str, context: ToolContext, /, **arguments: Any) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(os.environ[DESK_PORT]))
    try:
        call = {
            "name": tool,
            "arguments": arguments,
            "run_id": context.run_id,
            "tool_call_id": context.tool_call_id,
            "attempt": context.attempt,
            "pid": os.getpid(),
        }
        writer.write(json.dumps(call).encode() + b"\n")
        decided = await reader.readline()
        if decided == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        return str(json.loads(decided))
    finally:
        writer.close()
