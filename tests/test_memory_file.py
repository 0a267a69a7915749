"""Memory blocks of the agents file: made at the start where there are none, and left alone from then on."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent_service.agents_file import read_agents, read_memory_blocks
from agent_service.domain.memory import MemoryBlock
from agent_service.engine.limits import Limits
from agent_service.settings import SettingsError
from tests.blocks import TOOLS, block, delete, make, overwrite
from tests.scripted_openai import ScriptedOpenAI, says
from tests.service import scripted, serving

WHOLE = """
[memory_blocks.human]
value = "Ada"
description = "Who they are."

[memory_blocks."team.law"]
label = "law"
value = '''
Never lie.'''
limit = 50
read_only = true

[agents.keeper]
memory_blocks = ["team.law", "human"]
server_tools = ["memory_append"]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file will be."""
    return tmp_path / "agents.toml"


def test_blocks_are_read_as_they_stand(path: Path) -> None:
    """The label is the name unless told otherwise; agents name blocks in their order, and memory tools."""
    path.write_text(WHOLE)
    human = MemoryBlock("human", "human", "Ada", "Who they are.", 5000)
    law = MemoryBlock("team.law", "law", "Never lie.", "", 50, read_only=True)
    assert read_memory_blocks(path, Limits()) == (human, law)
    ((keeper,), _) = read_agents(path, (), Limits())
    assert (keeper.memory_block_ids, keeper.server_tools) == (("team.law", "human"), ("memory_append",))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[memory_blocks.'a b']", "memory_blocks.a b: the name is not 1 to 64"),
        ("[memory_blocks.'a.b']", "memory_blocks.a.b.label: 'a.b' is not 1 to 64 letters, digits, '_' or '-'"),
        ("[memory_blocks.a]\nlimit = 2\nvalue = 'abc'", "memory_blocks.a.value: 3 characters; at most 2"),
        ("[memory_blocks.a]\nlimit = 200000", "memory_blocks.a.limit: 200000 is not 1 to 100000"),
        ("[memory_blocks.a]\ntext = 'abc'", "memory_blocks.a.text"),
    ],
)
def test_a_block_that_cannot_be_is_refused(path: Path, text: str, told: str) -> None:
    """With its place and what to change."""
    path.write_text(text)
    with pytest.raises(SettingsError) as error:
        read_memory_blocks(path, Limits())
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("['c']", "no memory block 'c' in this file; its memory blocks: a, b"),
        ("['a', 'b']", "'a' and 'b' have the same label, 'x'"),
        ("['a', 'a']", "'a' and 'a' have the same label, 'x'"),
        (str(["a"] * 33), "33 memory blocks; at most 32 are allowed"),
    ],
)
def test_an_agent_that_cannot_have_its_blocks_is_refused(path: Path, named: str, told: str) -> None:
    """With its place and what to change."""
    blocks = "[memory_blocks.a]\nlabel = 'x'\n[memory_blocks.b]\nlabel = 'x'"
    path.write_text(f"{blocks}\n[agents.keeper]\nmemory_blocks = {named}")
    with pytest.raises(SettingsError) as error:
        read_agents(path, (), Limits())
    assert f"agents.keeper.memory_blocks: {told}" in str(error.value)


@pytest.fixture
def crowded(path: Path) -> Path:
    """A file with an agent that has more blocks and rules than the default limits allow."""
    blocks = "".join(f"[memory_blocks.b{n}]\n" for n in range(33))
    rules = "".join(f"[[agents.keeper.tool_rules]]\nterminal.tool_name = 't{n}'\n" for n in range(129))
    path.write_text(f"{blocks}\n[agents.keeper]\nmemory_blocks = {[f'b{n}' for n in range(33)]}\n{rules}")
    return path


@pytest.mark.anyio
async def test_the_servers_own_limits_hold(crowded: Path) -> None:
    """For blocks and tool rules of agents alike, whether they allow more than the default or less."""
    limits = '{"max_memory_blocks": 33, "max_tool_rules": 129}'
    async with scripted([], "memory", agents_file=crowded, limits=limits) as (client, _):
        keeper = await client.get_agent("keeper")
        assert (len(keeper.memory_block_ids), len(keeper.tool_rules)) == (33, 129)
    with pytest.raises(SettingsError, match="33 memory blocks; at most 2"):
        read_agents(crowded, (), Limits(max_memory_blocks=2))
    with pytest.raises(SettingsError, match=r"129 .*at most 2"):
        read_agents(crowded, (), Limits(max_memory_blocks=33, max_tool_rules=2))


@pytest.fixture
def whole(path: Path) -> Path:
    """The file above."""
    path.write_text(WHOLE)
    return path


@pytest.mark.anyio
async def test_a_configured_agent_remembers(whole: Path, store: str) -> None:
    """Its blocks are there before the first call."""
    async with scripted([says("Hi.")], store, agents_file=whole) as (client, upstream):
        await client.ask("Hello.", agent_id="keeper")
        (request,) = upstream.requests
        assert request.tool_names == TOOLS[:1]
        assert request.system.index("Never lie.") < request.system.index("Ada")
        assert list((await client.get_agent("keeper")).memory_block_ids) == ["team.law", "human"]


@pytest.mark.anyio
async def test_a_block_that_is_there_is_never_overwritten(whole: Path, shared_store: str) -> None:
    """Whether it was changed or made by a call; one that was deleted is made again."""
    async with ScriptedOpenAI([]) as upstream:
        async with serving(upstream, shared_store) as client:
            mine = await make(client, "team.law", "Mine.", label="other")
        async with serving(upstream, shared_store, agents_file=whole) as client:
            assert await block(client, "team.law") == mine
            changed = await overwrite(client, "human", "Bob")
        async with serving(upstream, shared_store, agents_file=whole) as client:
            assert await block(client, "human") == changed
            await delete(client, "human")
        async with serving(upstream, shared_store, agents_file=whole) as client:
            assert (await block(client, "human")).value == "Ada"
