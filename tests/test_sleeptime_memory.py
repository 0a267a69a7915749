"""Memory agents that edit blocks which the foreground agent is shown."""

from __future__ import annotations

from typing import Any

import pytest
from agentrpc.v1 import agents_pb2, runs_pb2

from tests import blocks
from tests.scripted_openai import Reply, Request, calls, says
from tests.service import SECRET, Client, returned, scripted
from tests.sleepers import KEEPER, KEEPER_MODEL, memory_runs, reads

pytestmark = pytest.mark.anyio


async def prepare(client: Client, *keepers: str) -> None:
    """`desk` answers as `clerk`, who is shown the blocks that the keepers edit after each run."""
    for name in ("human", "topics"):
        await blocks.make(client, name)
    await client.create_agent("clerk", memory_block_ids=["human", "topics"])
    for keeper in keepers:
        await blocks.remembering(client, "human", "topics", agent_id=keeper, model=KEEPER_MODEL)
    sleeptime = agents_pb2.Sleeptime(foreground_agent_id="clerk", memory_agent_ids=keepers, every=1)
    await client.create_agent("desk", kind=agents_pb2.AGENT_KIND_SLEEPTIME, sleeptime=sleeptime)


def keeps(request: Request) -> Reply:
    """A memory agent notes the last thing that was said, once."""
    if not reads(request):
        return says("I see.")
    if request.last["role"] == "tool":
        return says("Noted.")
    said = [line for line in request.history[0]["content"].splitlines() if line.startswith("User: ")]
    return blocks.appends("human", said[-1].removeprefix("User: "))


async def test_the_next_request_shows_what_a_memory_agent_noted(store: str) -> None:
    """The foreground agent is shown the block as it is now, and tells its callers which one it saw."""
    async with scripted(keeps, store) as (client, upstream):
        await prepare(client, KEEPER)
        first = (await client.ask("I am Alice.", agent_id="desk")).run
        await memory_runs(client, 1)
        assert await blocks.value(client, "human") == "I am Alice."
        second = (await client.ask("Who am I?", agent_id="desk", conversation_id=first.conversation_id)).run
        (shown,) = [r for r in upstream.requests if not reads(r) and r.last["content"] == "Who am I?"]
        assert "Value:\nI am Alice.\n" in blocks.memory_of(shown.system)
        assert blocks.reads(await client.watch(second.run_id)) == [[("human", 2), ("topics", 1)]]


async def test_two_memory_agents_that_edit_one_block_lose_nothing(store: str) -> None:
    """Both note each of two conversations: four lines, each once."""
    async with scripted(keeps, store) as (client, _):
        await prepare(client, "one", "two")
        for text in ("Tea.", "Coffee."):
            await client.ask(text, agent_id="desk")
        for keeper in ("one", "two"):
            await memory_runs(client, 2, agent_id=keeper)
        assert sorted((await blocks.value(client, "human")).splitlines()) == ["Coffee."] * 2 + ["Tea."] * 2


async def test_memory_agents_have_no_tools_of_the_caller_and_the_foreground_has_its_own(store: str) -> None:
    """The client tool of a start pauses the foreground; the requests of the memory agent offer memory tools only."""

    def script(request: Request) -> Reply:
        asks = not reads(request) and request.last["role"] == "user"
        return calls(("get_secret_code", {"name": "Alice"})) if asks else keeps(request)

    async with scripted(script, store) as (client, upstream):
        await prepare(client, KEEPER)
        paused = (await client.ask("Code?", SECRET, agent_id="desk")).run
        assert paused.status == runs_pb2.RUN_STATUS_PAUSED
        await client.answer(paused.run_id, returned(paused.pending_tool_calls[0], "A-1"))
        await memory_runs(client, 1)
        offered: dict[bool, set[Any]] = {True: set(), False: set()}
        for request in upstream.requests:
            offered[reads(request)].update(request.tool_names)
        assert offered[True] == set(blocks.TOOLS)
        assert offered[False] == {*blocks.TOOLS, "get_secret_code"}
