"""What docs/agents.md says of several calls in one answer: its tools and its command blocks as they stand."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from agent_service.engine.limits import Limits
from tests.pages import blocks, check, section
from tests.scripted_openai import calls, says
from tests.service import scripted

TEXT = section("agents.md", "Several calls at once")
BATCH = calls(
    ("order", {"article": "desk", "pieces": 2}),
    ("stock", {"article": "lamp"}),
    ("ask_customer", {}),
    ("stock", {"article": "desk"}),
)
MODEL = [BATCH, says("Two desks are ordered."), BATCH]


@pytest.mark.anyio
@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl is not installed")
async def test_each_block_shows_what_the_page_says(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause for what the server cannot do by itself, the answer to it, and a start whose server tools wait."""
    (tools,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "shop.py").write_text(tools)
    monkeypatch.syspath_prepend(tmp_path)
    async with scripted(MODEL, store, tools="shop") as (client, upstream):
        for block in blocks(TEXT):
            await check(block, client.target)
        assert upstream.requests[1].new_returns == ["ordered 2 of desk", "7", "Two desks, please.", "0"]
        assert upstream.unused_replies == 0


def test_the_bound_is_the_one_in_force() -> None:
    """The page says it in words."""
    assert Limits().max_parallel_tool_calls == 8
    assert "at most eight of a run" in TEXT
