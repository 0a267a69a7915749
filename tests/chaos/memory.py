"""The memory agent of a campaign: it reads the conversations that are talked with the sleeptime agent."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from agentrpc.v1 import run_service_pb2, runs_pb2

from tests.blocks import make
from tests.chaos.line import Line
from tests.service import Client
from tests.sleepers import KEEPER, Part, make_agents, part_of

AGENT = "desk"
"""The sleeptime agent."""
_LOOK_SECONDS = 0.2
_TOOLS = ("charge", "look_up", "refund")
NOTES = "notes"
"""The memory block that the memory agent adds a line to in each of its runs."""
_NOTES_LIMIT = 100_000
Parts = Mapping[str, Part]
"""What each memory run was given, by its id."""


@dataclass(frozen=True)
class Reading:
    """All memory runs there are, oldest first, and what each was given."""

    runs: list[runs_pb2.Run]
    parts: Parts

    def read_to(self, conversation_id: str) -> int:
        """The last message of a conversation that was in a COMPLETED memory run."""
        over = [run.run_id for run in self.runs if run.status == runs_pb2.RUN_STATUS_COMPLETED]
        parts = [self.parts[run_id] for run_id in over]
        return max((part.last for part in parts if part.conversation_id == conversation_id), default=0)


async def prepare(client: Client) -> None:
    """Makes the agents and their block."""
    await make(client, NOTES, limit=_NOTES_LIMIT)
    await make_agents(client, tools=["look_up"], blocks=[NOTES], server_tools=_TOOLS)


async def cancel_some(line: Line, rng: Random, count: int) -> None:
    """Cancels so many memory runs, at any moment of theirs: their parts must be read all the same."""
    asked = run_service_pb2.ListRunsRequest(agent_id=KEEPER, statuses=[runs_pb2.RUN_STATUS_RUNNING])
    while count:
        await asyncio.sleep(rng.uniform(0, 2 * _LOOK_SECONDS))
        for run in (await line.ask(lambda client: client.runs.ListRuns(asked, wait_for_ready=True))).runs:
            await line.ask(functools.partial(_cancel, run_service_pb2.CancelRunRequest(run_id=run.run_id)))
            line.journal.counts["memory runs cancelled"] += 1
            count -= 1


def _cancel(asked: run_service_pb2.CancelRunRequest, client: Client) -> Any:
    return client.runs.CancelRun(asked, wait_for_ready=True)


async def reading(client: Client, due: Mapping[str, int], patience_seconds: float) -> Reading:
    """What was read, once each conversation was read to the message that is due, or when the patience is over."""
    parts: dict[str, Part] = {}
    deadline = asyncio.get_running_loop().time() + patience_seconds
    while True:
        found = Reading(await _runs(client), parts)
        for run in found.runs:
            if run.run_id not in parts:
                parts[run.run_id] = await part_of(client, run)
        done = all(found.read_to(conversation_id) >= last for conversation_id, last in due.items())
        if done or asyncio.get_running_loop().time() > deadline:
            return found
        await asyncio.sleep(_LOOK_SECONDS)


async def _runs(client: Client) -> list[runs_pb2.Run]:
    found: list[runs_pb2.Run] = []
    token = ""
    while True:
        page = await client.list_runs(agent_id=KEEPER, page_size=1000, page_token=token)
        found += page.runs
        token = page.next_page_token
        if not token:
            return found[::-1]
