"""The command blocks of docs/debugging.md, run as they stand, in order, against real services on other ports."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.scripted_openai import ScriptedOpenAI, calls, fails, says, silent
from tests.service import serving

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl is not installed"),
]

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "debugging.md"
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
_ISSUED = re.compile(r"\b(call|conv|msg)_[0-9a-f]{24}\b")


def blocks() -> list[tuple[str, str]]:
    """Each block of commands with the output that the page shows for it."""
    return re.findall(r"```sh\n(.*?)```\n\n```text\n(.*?)```\n", PAGE.read_text(), re.DOTALL)


async def run(commands: str) -> str:
    """What the commands print. They fail exactly if that ends with an error."""
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", commands),
        cwd=ROOT,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await asyncio.wait_for(process.communicate(), 60))[0].decode()
    assert bool(process.returncode) == output.startswith("ERROR:"), output
    return output


def missing(shown: str, output: str) -> str:
    """The first line that is shown and not there, in this order; lines between may only be left out at `...`."""
    left = [_ISSUED.sub(r"\1_x", line) for line in output.splitlines()]
    skips = False
    for line in (_ISSUED.sub(r"\1_x", line) for line in shown.splitlines()):
        if line == "...":
            skips = True
            continue
        while skips and left and left[0] != line:
            left.pop(0)
        if not left or left.pop(0) != line:
            return line
        skips = False
    return "" if skips or not left else f"the end; it goes on with {left[0]}"


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
        for commands, text in blocks():
            if RESTARTED in text:
                await upstream.wait_for_requests(len(MODEL) - 1)
                await stack.aclose()
                shown = await stack.enter_async_context(serving(upstream, file))
            here = commands.replace("localhost:50051", shown.target).replace("localhost:50052", hidden.target)
            output = await run(here)
            assert not missing(text, output), f"{commands}shows no line {missing(text, output)!r}, but\n{output}"


async def test_without_reflection_a_tool_without_descriptors_sees_nothing() -> None:
    """The setting does what the page says."""
    async with ScriptedOpenAI([]) as upstream, serving(upstream, "memory", reflection=False) as hidden:
        process = await asyncio.create_subprocess_exec(
            *("grpcurl", "-plaintext", hidden.target, "list"), stderr=asyncio.subprocess.PIPE
        )
        errors = (await asyncio.wait_for(process.communicate(), 60))[1]
        assert b"server does not support the reflection API" in errors


def test_every_block_of_commands_has_an_output() -> None:
    """So that each is checked."""
    page = PAGE.read_text()
    assert len(blocks()) == page.count("```sh\n") == page.count("```text\n")
