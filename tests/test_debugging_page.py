"""The command blocks of docs/debugging.md, run as they stand, in order, against real services on other ports."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.pages import DOCS, blocks, check
from tests.scripted_openai import ScriptedOpenAI, calls, fails, says, silent
from tests.service import serving

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl is not installed"),
]

PAGE = DOCS / "debugging.md"
MODEL = [
    calls(("get_secret_code", {"name": "Alice"})),
    says("The code is AZURE-7731."),
    says("Hello."),
    fails(503, "Overloaded."),
    says("Hello."),
    calls(("get_secret_code", {})),
    silent("Once upon", after=1),
    says("The end."),
]
RESTARTED = "RUN_CAUSE_RECOVERY"
"""Is shown by the block before which the page has the server started again."""


async def test_each_block_shows_what_the_page_says(tmp_path: Path) -> None:
    """Reflection, descriptors, a run with its pause and resume, lists, errors, streams, a server that is started
    again, and one without reflection."""
    file = str(tmp_path / "runs.sqlite3")
    async with (
        ScriptedOpenAI(MODEL, expect_all_used=True) as upstream,
        serving(upstream, "memory", reflection=False) as hidden,
        AsyncExitStack() as stack,
    ):
        shown = await stack.enter_async_context(serving(upstream, file))
        for block in blocks(PAGE.read_text()):
            if RESTARTED in block[1]:
                await upstream.wait_for_requests(len(MODEL) - 1)
                await stack.aclose()
                shown = await stack.enter_async_context(serving(upstream, file))
            await check(block, shown.target, hidden.target)


async def test_without_reflection_a_tool_without_descriptors_sees_nothing() -> None:
    """The setting does what the page says."""
    async with ScriptedOpenAI([]) as upstream, serving(upstream, "memory", reflection=False) as hidden:
        process = await asyncio.create_subprocess_exec(
            *("grpcurl", "-plaintext", hidden.target, "list"), stderr=asyncio.subprocess.PIPE
        )
        errors = (await asyncio.wait_for(process.communicate(), 60))[1]
        assert b"server does not support the reflection API" in errors
