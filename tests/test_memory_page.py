"""What docs/agents.md says of memory: its command blocks as they stand, its table, its limits and its file."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from agent_service.agents_file import read_agents, read_memory_blocks
from agent_service.domain.memory_edit import MemoryTool
from agent_service.engine.limits import Limits
from tests.pages import blocks, check, section
from tests.scripted_openai import calls, says
from tests.service import scripted

TEXT = section("agents.md", "Memory")
MODEL = [calls(("memory_append", {"label": "human", "text": "Lives in Turin."})), says("Noted.")]


@pytest.mark.anyio
@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl is not installed")
async def test_each_block_shows_what_the_page_says(store: str) -> None:
    """Blocks and an agent, the prompt, an edit, what the run tells of it, and an update by a caller."""
    async with scripted(MODEL, store) as (client, upstream):
        for block in blocks(TEXT):
            await check(block, client.target)
        assert upstream.unused_replies == 0


def test_every_tool_is_in_the_table() -> None:
    """By its name."""
    assert re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE) == list(MemoryTool)


def test_the_limits_are_those_in_force() -> None:
    """The text has the defaults."""
    limits = Limits()
    told = (limits.default_memory_block_limit, limits.max_memory_block_limit, limits.max_memory_blocks)
    assert re.findall(r"Limits count.* (\d+) unless.* (\d+) .*\n.* (\d+) blocks", TEXT) == [tuple(map(str, told))]


def test_the_file_of_the_page_has_blocks(tmp_path: Path) -> None:
    """As it stands."""
    (text,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    path = tmp_path / "agents.toml"
    path.write_text(text)
    ((agent,), _) = read_agents(path, (), Limits())
    assert agent.memory_block_ids == ("ada", "law")
    assert [block.label for block in read_memory_blocks(path, Limits())] == ["human", "law"]
