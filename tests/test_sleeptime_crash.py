"""Memory runs when processes die, commits fail, and several processes look at one store: each part is read once."""

from __future__ import annotations

import asyncio
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from agentrpc.v1 import runs_pb2

from agent_service.engine import upkeep
from tests.commits import Commit, Commits, commits, disk_full, io_error, lost_reply
from tests.process import API_KEY, environment, lease, running
from tests.scripted_openai import Gate, Reply, Request, ScriptedOpenAI, gated, says
from tests.service import Client, scripted, serving
from tests.sleepers import KEEPER, answers, make_agents, memory_runs, part_of, reads

__all__ = ["commits"]

pytestmark = pytest.mark.anyio

COMPLETED = runs_pb2.RUN_STATUS_COMPLETED
_STEPS = {
    "the end of the run": ("assistant", 1),
    "the start of the memory run": ("run_accepted", 2),
    "the end of the memory run": ("assistant", 2),
}
"""The commits, in order, that lead from a run to what its memory agent has read."""


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that tests need not wait for a second."""
    monkeypatch.setattr(upkeep, "SWEEP_SECONDS", 0.01)


async def parts_read(client: Client, conversation_id: str, agent_id: str = KEEPER) -> list[tuple[int, int]]:
    """The first and the last message of each part that was in a COMPLETED memory run, in order."""
    runs = await memory_runs(client, 0, agent_id=agent_id, page_size=1000)
    parts = [await part_of(client, run) for run in runs if run.status == COMPLETED]
    return sorted((part.first, part.last) for part in parts if part.conversation_id == conversation_id)


async def whole(client: Client, conversation_id: str, agent_id: str = KEEPER) -> None:
    """Returns once all of a conversation was read; each message must have been read once."""
    async with asyncio.timeout(30):
        while True:
            last = (await client.get_conversation(conversation_id)).message_count
            parts = await parts_read(client, conversation_id, agent_id)
            assert all(end + 1 == begin for (_, end), (begin, _) in pairwise(parts)), parts
            if parts and parts[-1][1] == last:
                assert parts[0][0] == 1
                return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", _STEPS)
async def test_a_crash_at_any_step_loses_and_doubles_nothing(
    tmp_path: Path, commits: Commits, step: str, after: bool
) -> None:
    """The file as it is just before a commit, or just after it, before anybody was told, is gone on with."""
    path, left = tmp_path / "runs.sqlite3", tmp_path / "left.sqlite3"
    mark, nth = _STEPS[step]
    async with scripted(answers, str(path)) as (client, upstream):
        await make_agents(client)
        with commits.held(mark, nth=nth, after=after) as held:
            asking = asyncio.ensure_future(client.ask("a", agent_id="desk", run_id="run_1"))
            await held.reached.wait()
            for suffix in ("", "-wal"):
                shutil.copy(f"{path}{suffix}", f"{left}{suffix}")
        conversation = (await asking).run.conversation_id
        await whole(client, conversation)
        async with serving(upstream, str(left)) as other:
            await whole(other, conversation)
            assert (await other.run("run_1")).status == COMPLETED
            assert [run.parent_run_id for run in await memory_runs(other, 1)] == ["run_1"]


@pytest.mark.parametrize("failure", [disk_full, io_error, lost_reply])
@pytest.mark.parametrize("step", _STEPS)
async def test_a_commit_that_fails_at_any_step_loses_and_doubles_nothing(
    tmp_path: Path, commits: Commits, step: str, failure: Commit
) -> None:
    """Whether it was stored or not, and nobody knows it: the part is read once."""
    mark, nth = _STEPS[step]
    async with scripted(answers, str(tmp_path / "runs.sqlite3"), lease_seconds=1.0) as (client, _):
        await make_agents(client)
        commits.at(mark, failure, nth=nth)
        conversation = (await client.ask("a", agent_id="desk")).run.conversation_id
        await whole(client, conversation)
        assert commits.unused == []
        assert len((await client.list_runs(agent_id=KEEPER)).runs) == 1


async def test_a_memory_run_whose_process_is_killed_goes_on_in_another_one(tmp_path: Path, shared_store: str) -> None:
    """It is the same run, and the work that became due meanwhile is done after it."""
    gate = Gate()
    held = [True]

    def script(request: Request) -> Reply:
        return gated(says("Slow."), gate) if reads(request) and held else answers(request)

    flags = ("--store", shared_store)
    async with ScriptedOpenAI(script, api_key=API_KEY) as upstream:
        env = environment(upstream) | lease(shared_store)
        async with running(tmp_path, env, *flags) as (server, client):
            await make_agents(client)
            run = (await client.ask("a", agent_id="desk")).run
            await upstream.wait_for_requests(2)
            (begun,) = (await client.list_runs(agent_id=KEEPER)).runs
            await client.ask("b", agent_id="desk", conversation_id=run.conversation_id)
            await server.kill()
        held.clear()
        async with running(tmp_path, env, *flags) as (_, client):
            await whole(client, run.conversation_id)
            done = await memory_runs(client, 2)
            assert done[0].run_id == begun.run_id
            assert [each.status for each in done] == [COMPLETED, COMPLETED]
        gate.open()


async def test_services_that_race_read_each_part_once(shared_store: str) -> None:
    """Runs of the same conversations end at two services, which both look; a memory agent has one memory run at a
    time over both."""
    keepers = ("one", "two")
    async with scripted(answers, shared_store) as (here, upstream), serving(upstream, shared_store) as there:
        await make_agents(here, keepers=keepers, every=2)

        async def talk(number: int) -> str:
            conversation = ""
            for turn in range(6):
                client = (here, there)[(number + turn) % 2]
                asked: dict[str, Any] = {"agent_id": "desk", "conversation_id": conversation}
                conversation = (await client.ask(f"{number}", **asked)).run.conversation_id
            return conversation

        conversations = await asyncio.gather(*(talk(number) for number in range(6)))
        for keeper in keepers:
            for conversation in conversations:
                await whole(there, conversation, keeper)
            runs = await memory_runs(here, 0, agent_id=keeper, page_size=1000)
            spans = sorted((run.create_time.ToNanoseconds(), run.end_time.ToNanoseconds()) for run in runs)
            assert all(end <= begun for (_, end), (begun, _) in pairwise(spans))
            assert {run.status for run in runs} == {COMPLETED}
