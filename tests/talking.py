"""A Python client with a service, and a tool that it has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from agent_service.client import (
    AgentClient,
    Retry,
    RunResult,
    client_tool,
)
from tests.scripted_openai import ScriptedOpenAI, calls
from tests.service import Client, scripted

ALICE = calls(("get_secret_code", {"name": "Alice"}))


@client_tool
def get_secret_code(name: str) -> str:
    """Returns the secret code of a person."""
    return {"Alice": "AZURE-7731", "Bob": "CORAL-1102"}[name]


@asynccontextmanager
async def talking(
    script: Any, store: str = "memory", **settings: Any
) -> AsyncIterator[tuple[AgentClient, Client, ScriptedOpenAI]]:
    """A client, stubs for what it does not do, and the model."""
    async with (
        scripted(script, store, **settings) as (direct, upstream),
        AgentClient(direct.target, retry=Retry(attempts=20, first=0.01, most=0.1)) as client,
    ):
        yield client, direct, upstream


async def collected(stream: Any) -> RunResult:
    """The result of a stream."""
    async with asyncio.timeout(20):
        async for _ in stream:
            pass
    result: RunResult = stream.result
    return result
