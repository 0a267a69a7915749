"""The README's command blocks, run as they stand against a service on another port."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agentrpc.v1 import runs_pb2

from tests.scripted_openai import ScriptedOpenAI, calls, says
from tests.service import Client, serving

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[1]
ASKED = calls(("get_secret_code", {"name": "Alice"}))


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


async def run(command: list[str], cwd: Path) -> str:
    """A program's output; it must succeed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=os.environ | {"PATH": path},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Client]:
    """A service whose model does what the README's reader sees."""
    script = [ASKED, says("The code is AZURE-7731."), says("Hello."), says("unused")]
    async with ScriptedOpenAI(script) as upstream, serving(upstream, str(tmp_path / "runs.sqlite3")) as client:
        yield client


@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl is not installed")
async def test_the_grpcurl_lines_do_what_the_readme_says(service: Client, tmp_path: Path) -> None:
    """Step pauses, SubmitToolReturns resumes, Stream and WatchRun tell events, buf curl reads the run."""
    outputs = []
    for block in blocks("sh"):
        here = block.replace("localhost:50051", service.target)
        outputs.append(await run(["bash", "-euo", "pipefail", "-c", here], tmp_path))
    asked, submitted, streamed, read = outputs
    assert "RUN_STATUS_PAUSED" in asked
    assert "STOP_REASON_REQUIRES_APPROVAL" in asked
    assert "The code is AZURE-7731." in submitted
    assert "RUN_STATUS_COMPLETED" in submitted
    assert "text_delta" in streamed or "textDelta" in streamed
    assert streamed.count("RUN_STATUS_COMPLETED") == 2
    assert "RUN_STATUS_COMPLETED" in read
    assert (await service.run("ask-1")).stop_reason == runs_pb2.STOP_REASON_END_TURN


async def test_the_python_client_prints_the_answer(service: Client, tmp_path: Path) -> None:
    """It has 25 lines of code at most, and works as it stands."""
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
    program = tmp_path / "client.py"
    program.write_text(code.replace("localhost:50051", service.target))
    assert await run([sys.executable, str(program)], tmp_path) == "The code is AZURE-7731.\n"


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    """What the first screen names exists."""
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"^    make ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert named == ["demo", "test"]
    assert set(named) <= set(targets)


def test_links_lead_to_files() -> None:
    """No link of the README or the docs leads nowhere."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"
