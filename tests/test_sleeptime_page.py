"""What docs/agents.md says of sleeptime agents: its command blocks, its file and its bounds as they stand."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from agent_service.agents_file import read_agents
from agent_service.domain.memory_work import FIRST_DELAY, LONGEST_DELAY, MAX_TRIES, MemoryWork, put_off
from agent_service.engine.limits import Limits
from tests.pages import blocks, check, section
from tests.scripted_openai import says
from tests.service import scripted

TEXT = section("agents.md", "Sleeptime agents")
MODEL = [says("Gladly, Alice."), says("Alice wants a green lamp.")]


@pytest.mark.anyio
@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl is not installed")
async def test_each_block_shows_what_the_page_says(store: str) -> None:
    """The agents are made; a run is answered, and read by the memory agent."""
    async with scripted(MODEL, store) as (client, upstream):
        for block in blocks(TEXT):
            await check(block, client.target)
        assert [request.system for request in upstream.requests] == [
            "You sell lamps.",
            "Say in one line what is worth keeping.",
        ]


def test_the_file_makes_the_same_agents(tmp_path: Path) -> None:
    """The server starts with it."""
    (toml,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    path = tmp_path / "agents.toml"
    path.write_text(toml)
    agents, _ = read_agents(path, (), Limits())
    (desk,) = (agent for agent in agents if agent.sleeptime is not None)
    assert (desk.agent_id, desk.sleeptime.foreground_agent_id if desk.sleeptime else "") == ("desk", "clerk")


def test_the_bounds_are_those_in_force() -> None:
    """The page says them in words: the size of a part, and how long and how often a part is tried."""
    assert Limits().max_memory_part_bytes == 64 * 1024
    assert (FIRST_DELAY, LONGEST_DELAY, MAX_TRIES) == (10 * 10**9, 3600 * 10**9, 12)
    work, now = MemoryWork("keeper", due_position=2), 0
    for tries in range(1, MAX_TRIES):
        work = put_off(work, now)
        assert work.not_before - now == min(FIRST_DELAY * 2 ** (tries - 1), LONGEST_DELAY)
        now = work.not_before
    assert 3 < now / (3600 * 10**9) < 4
    assert put_off(work, now).given_up
