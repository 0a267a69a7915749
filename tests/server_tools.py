"""Server tools that the tests give to a service, and what they count."""

from __future__ import annotations

import asyncio
from collections import Counter

from agent_service.engine.tools import ToolContext
from agent_service.tools import server_tool
from tests.scripted_openai import Gate

__all__ = ["add", "broken", "delete_file", "endless", "get_secret_code", "hold", "send_message"]

executions: Counter[str] = Counter()
"""How often each call was executed, by its tool_call_id."""
hold_gates: dict[str, Gate] = {}
"""What calls of `hold` wait for, by the run's id."""


async def get_secret_code(name: str, context: ToolContext) -> str:
    """Returns the secret code of a person, as the server knows it."""
    executions[context.tool_call_id] += 1
    return f"SERVER-CODE of {name}"


async def send_message(message: str, context: ToolContext) -> str:
    """Says something to the user."""
    executions[context.tool_call_id] += 1
    return f"{len(message)} characters sent"


async def add(a: int, b: int, context: ToolContext) -> str:
    """Adds two numbers."""
    executions[context.tool_call_id] += 1
    return str(a + b)


async def hold(context: ToolContext) -> str:
    """Works until the test lets it end."""
    executions[context.tool_call_id] += 1
    gate = hold_gates[context.run_id]
    gate.step_sent()
    await gate.next_step()
    return "held"


@server_tool(parallel_safe=True)
async def broken() -> str:
    """Fails."""
    raise ValueError("it is broken")


@server_tool(parallel_safe=True, timeout=0.05)
async def endless() -> str:
    """Never ends by itself."""
    await asyncio.Event().wait()
    return "ended"


@server_tool(requires_approval=True)
async def delete_file(path: str, context: ToolContext, force: bool = False) -> str:
    """Deletes a file."""
    executions[context.tool_call_id] += 1
    return f"deleted {path}" + (" by force" if force else "")
