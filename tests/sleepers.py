"""A sleeptime agent as the tests make it: `desk` answers through `clerk`, and `keeper` reads what was said."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from agentrpc.v1 import agents_pb2, runs_pb2

from tests.scripted_openai import Reply, Request, says
from tests.service import Client

KEEPER = "keeper"
KEEPER_MODEL = "keeper-model"
"""The model of memory agents: tells their requests from those of the foreground."""

_PART = re.compile(r"messages (\d+) to (\d+) of conversation (\S+)\.")


@dataclass(frozen=True)
class Part:
    """The part of a transcript that a memory run was given."""

    conversation_id: str
    first: int
    last: int
    text: str


async def make_agents(
    client: Client,
    *,
    keepers: Iterable[str] = (KEEPER,),
    every: int = 1,
    tools: Iterable[str] = (),
    blocks: Iterable[str] = (),
    **clerk: Any,
) -> None:
    """The agents; the blocks are those of the memory agents."""
    await client.create_agent("clerk", **clerk)
    for keeper in keepers:
        keeps: dict[str, Any] = {"server_tools": tools, "memory_block_ids": blocks}
        await client.create_agent(keeper, instructions="Remember.", model=KEEPER_MODEL, **keeps)
    sleeptime = agents_pb2.Sleeptime(foreground_agent_id="clerk", memory_agent_ids=keepers, every=every)
    await client.create_agent("desk", kind=agents_pb2.AGENT_KIND_SLEEPTIME, sleeptime=sleeptime)


def reads(request: Request) -> bool:
    """Whether the request is that of a memory agent."""
    return request.model == KEEPER_MODEL


def answers(request: Request) -> Reply:
    """A model that says something, in the foreground as in the background."""
    return says("Noted." if reads(request) else f"You said {request.last['content']}.")


async def memory_runs(
    client: Client, count: int, *, agent_id: str = KEEPER, status: Any = runs_pb2.RUN_STATUS_COMPLETED, **which: Any
) -> list[runs_pb2.Run]:
    """The runs of a memory agent, oldest first, once so many have this status."""
    async with asyncio.timeout(20):
        while True:
            runs = list((await client.list_runs(agent_id=agent_id, **which)).runs)[::-1]
            if sum(run.status == status for run in runs) >= count:
                return runs
            await asyncio.sleep(0.02)


async def part_of(client: Client, run: runs_pb2.Run) -> Part:
    """What a memory run was given."""
    text = (await client.messages(run.conversation_id))[0].user.text
    return part_in(text)


def part_in(text: str) -> Part:
    """The part that the input of a memory run tells."""
    found = _PART.search(text)
    assert found is not None, text
    return Part(found[3], int(found[1]), int(found[2]), text.partition("\n\n")[2])
