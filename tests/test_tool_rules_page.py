"""What docs/agents.md says of tool rules: its command blocks as they stand, and its file of agents."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from agent_service.agents_file import read_agents
from agent_service.domain.rules import RuleKind
from agent_service.engine.limits import Limits
from tests.pages import blocks, check, section
from tests.scripted_openai import calls
from tests.service import scripted

TEXT = section("agents.md", "Tool rules")
MODEL = [
    calls(("find_order", {"number": 7})),
    calls(("answer", {}), ("refund", {"number": 7}), unruly=True),
]


@pytest.mark.anyio
@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl is not installed")
async def test_each_block_shows_what_the_page_says(store: str) -> None:
    """An agent with rules, a forced call with given arguments, a refused one, an end, and a dead end."""
    async with scripted(MODEL, store) as (client, upstream):
        for block in blocks(TEXT):
            await check(block, client.target)
        assert upstream.unused_replies == 0


def test_every_kind_of_rule_is_in_the_table() -> None:
    """By its name in JSON."""
    named = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert [re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name) for name in named] == list(RuleKind)


def test_the_file_of_the_page_has_rules(tmp_path: Path) -> None:
    """As it stands."""
    (text,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    path = tmp_path / "agents.toml"
    path.write_text(text)
    ((agent,), _) = read_agents(path, (), Limits())
    kinds = [RuleKind.RUN_FIRST, RuleKind.CONDITIONAL, RuleKind.MAX_COUNT, RuleKind.TERMINAL]
    assert [rule.kind for rule in agent.tool_rules] == kinds
