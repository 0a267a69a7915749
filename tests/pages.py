"""The command blocks of a page in docs/: run as they stand, and compared with the output that stands below them."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

_ISSUED = re.compile(r"\b(call|conv|msg)_[0-9a-f]{24}\b")

Block = tuple[str, str]
"""Commands, and the output that the page shows for them."""


def section(page: str, title: str) -> str:
    """The text under a heading of a page."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None, f"{page} has no section {title!r}"
    return found[1]


def blocks(text: str) -> list[Block]:
    """The blocks of a text, each of which has an output."""
    found = re.findall(r"```sh\n(.*?)```\n\n```text\n(.*?)```\n", text, re.DOTALL)
    assert len(found) == text.count("```sh\n") == text.count("```text\n") > 0
    return found


async def check(block: Block, *targets: str, folder: Path = ROOT) -> None:
    """Runs the commands against these targets (for the page's localhost:50051, localhost:50052, ...); they must show
    what the page says."""
    commands, text = block
    here = commands
    for number, target in enumerate(targets):
        here = here.replace(f"localhost:{50051 + number}", target)
    output = await run(here, folder)
    missing = _missing(text, output)
    assert not missing, f"{commands}shows no line {missing!r}, but\n{output}"


async def run(commands: str, folder: Path = ROOT) -> str:
    """What the commands print. They fail exactly if that ends with an error."""
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", commands),
        cwd=folder,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await asyncio.wait_for(process.communicate(), 60))[0].decode()
    assert bool(process.returncode) == output.startswith("ERROR:"), output
    return output


def _missing(shown: str, output: str) -> str:
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
