"""The programs of docs/clients.md, run as they stand against a service on another port."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from tests.pages import DOCS
from tests.scripted_openai import Reply, Request, Usage, calls, says
from tests.service import scripted

pytestmark = pytest.mark.anyio


def reply(request: Request) -> Reply:
    """The model that the page's reader talks to."""
    if request.last["role"] == "tool":
        return says(
            {"get_weather": "It will be 21 degrees.", "sign": "Done: lease is signed"}.get(tool(request), "Paid.")
        )
    match str(request.last["content"]):
        case "What is the weather in Paris?":
            return calls(("get_weather", {"city": "Paris"}))
        case "Pay 5 euros, then 5000.":
            return calls(("pay", {"euros": 5}), ("pay", {"euros": 5000}))
        case "Sign the lease.":
            return calls(("sign", {"contract": "lease"}))
        case "Say good day.":
            return says(["Good", " day."], usage=Usage(11, 4))
    return says("Goodbye.")


def tool(request: Request) -> str:
    """The tool that was called last."""
    called: str = request.messages[-2].get("tool_calls", [{"function": {"name": ""}}])[0]["function"]["name"]
    return called


def programs() -> list[tuple[str, str]]:
    """Each with the output that the page shows."""
    page = (DOCS / "clients.md").read_text()
    found = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```\n", page, re.DOTALL)
    assert len(found) == page.count("```python\n") > 0
    return found


@pytest.mark.parametrize("number", range(len(programs())))
async def test_the_programs_print_what_the_page_says(number: int, tmp_path: Path) -> None:
    """As they stand, but for the port."""
    code, shown = programs()[number]
    async with scripted(reply, "memory") as (client, _), asyncio.timeout(30):
        program = tmp_path / "program.py"
        program.write_text(code.replace("localhost:50051", client.target))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(program)), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        assert output.decode() == shown
