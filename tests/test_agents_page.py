"""The command blocks of docs/agents.md about output and images, run as they stand, in order, against a real service."""

from __future__ import annotations

import re
import shutil

import pytest

from agent_service.engine.limits import Limits
from tests.pages import blocks, check, section
from tests.scripted_openai import says
from tests.service import scripted

PAGE = "agents.md"
SECTIONS = ("Structured output", "Images")
MODEL = [says('{"name": "Alice", "age": 7}'), says("A photo.")]


@pytest.mark.anyio
@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl is not installed")
async def test_each_block_shows_what_the_page_says(store: str) -> None:
    """An answer of a schema; what the model gets of an image; and the image in a message that is read back."""
    async with scripted(MODEL, store) as (client, upstream):
        for title in SECTIONS:
            for block in blocks(section(PAGE, title)):
                await check(block, client.target)
        assert upstream.unused_replies == 0


def test_the_bounds_are_those_in_force() -> None:
    """The table of the page has the defaults."""
    shown = dict(re.findall(r"^\| `(\w+)` \| (\S+(?: [KM]iB)?) \|", section(PAGE, "Images"), re.MULTILINE))
    units = {"KiB": 1024, "MiB": 1024 * 1024}
    limits = Limits()
    for name, text in shown.items():
        number, _, unit = text.partition(" ")
        wanted = number == "true" if number in ("true", "false") else float(number) * units.get(unit, 1)
        assert getattr(limits, name) == wanted
    assert len(shown) == 5
