"""The server tools of a campaign. Each writes what it does into a file that outlives its process: the ledger."""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path

from agent_service.engine.tools import ToolContext
from agent_service.tools import server_tool

__all__ = ["charge", "look_up", "refund"]

LEDGER = "CHAOS_LEDGER"
"""Names the ledger."""
_SECONDS = 0.06
"""How long a tool works before and after it wrote, so that kills hit it on both sides."""


async def charge(what: str, context: ToolContext) -> str:
    """Takes money: must never run twice."""
    return await _execute("charge", context)


@server_tool(idempotent=True)
async def look_up(what: str, context: ToolContext) -> str:
    """Looks something up: may run again after a crash."""
    return await _execute("look_up", context)


@server_tool(requires_approval=True)
async def refund(what: str, context: ToolContext) -> str:
    """Gives money back, once somebody said so: must never run twice."""
    return await _execute("refund", context)


async def _execute(name: str, context: ToolContext) -> str:
    await asyncio.sleep(_SECONDS)
    proof = f"{name} {secrets.token_hex(6)}"
    line = f"{context.tool_call_id} {proof}\n"
    _write(line)
    await asyncio.sleep(_SECONDS)
    return proof


def _write(line: str) -> None:
    with Path(os.environ[LEDGER]).open("a") as ledger:
        ledger.write(line)
