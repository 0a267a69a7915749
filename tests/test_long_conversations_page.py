"""What docs/agents.md says of long conversations: its command blocks as they stand, and its file of agents."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from agent_service.agents_file import read_agents
from agent_service.domain.policy import ContextPolicy
from agent_service.engine import tokens
from agent_service.engine.limits import Limits
from tests.pages import blocks, check, section
from tests.scripted_openai import says
from tests.service import scripted

TEXT = section("agents.md", "Long conversations")
MODEL = [says("Noted."), says("On Monday the plumber came."), says("Noted, too.")]


@pytest.mark.anyio
@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl is not installed")
async def test_each_block_shows_what_the_page_says(store: str) -> None:
    """Two long messages, the summary of the first, and what the model would get then."""
    async with scripted(MODEL, store) as (client, upstream):
        for block in blocks(TEXT):
            await check(block, client.target)
        assert upstream.unused_replies == 0


def test_the_file_is_read_as_the_page_says(tmp_path: Path) -> None:
    """It is the agent of the page."""
    (text,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "agents.toml").write_text(text)
    ((diary,), _) = read_agents(tmp_path / "agents.toml", (), Limits())
    assert diary.context == ContextPolicy(1000, threshold=0.6)


def test_the_figures_of_the_estimate_are_those_in_force() -> None:
    """The page says them in words."""
    assert (tokens.BYTES_PER_TOKEN, tokens.MESSAGE_TOKENS) == (4, 4)
    assert (tokens.TOOL_TOKENS, tokens.IMAGE_TOKENS, tokens.WHOLE_CHARS) == (10, 1000, 8192)
