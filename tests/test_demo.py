"""The demo against a scripted model: what it tells, and that it fails unless the flow truly happened."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from tests.process import environment
from tests.scripted_openai import Reply, ScriptedOpenAI, calls, fails, says

pytestmark = pytest.mark.anyio

ALICE = calls(("get_secret_code", {"name": "Alice"}))
GRACE = calls(("get_secret_code", {"name": "Grace"}))


async def demo(script: list[Reply], *flags: str) -> tuple[int | None, str]:
    """Exit code and output of the command."""
    async with ScriptedOpenAI(script) as upstream, asyncio.timeout(60):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent_service", "demo", *flags),
            env=environment(upstream, OPENAI_API_KEY="unused"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return process.returncode, output.decode()


async def test_the_flow_happens_over_the_death_of_a_server(tmp_path: Path) -> None:
    """Two processes at one address; the call is executed between, and the run goes on in the second one."""
    store = tmp_path / "demo.sqlite3"
    code, shown = await demo([ALICE, says(["It is ", "AZURE-7731."]), says("AZURE-7731.")], "--keep", str(store))
    assert code == 0, shown
    servers = re.findall(r"A server: pid (\d+), (\S+),", shown)
    assert len({pid for pid, _ in servers}) == 2
    assert len({address for _, address in servers}) == 1
    for line in (
        "<- 1 run_accepted",
        '<- 4 tool_call  get_secret_code({"name": "Alice"})',
        "<- 5 run_stopped  PAUSED, REQUIRES_APPROVAL",
        '<- 7 tool_return  {"code":"AZURE-7731"}',
        '<- 9 assistant  "It is AZURE-7731."  (streamed',
        "<- 10 run_stopped  COMPLETED, END_TURN",
        "The flow happened: 3 model requests; one pause, over the death of a server; history in order.",
        "The model repeated the code both times.",
        f"Everything is in {store}: agent-service serve --store {store}",
    ):
        assert line in shown
    assert shown.index("<- 5 run_stopped") < shown.index(servers[1][0]) < shown.index("<- 6 tool_returns_accepted")
    assert await asyncio.to_thread(store.exists)


async def test_a_model_that_calls_with_another_name_gets_a_second_try() -> None:
    """With the other name that the tool knows."""
    code, shown = await demo([GRACE, says("Hm."), GRACE, says("OCHRE-2049."), says("OCHRE-2049.")])
    assert code == 0, shown
    assert "That did not work: the model called the tool with ['Grace'], not once with Alice." in shown


async def test_a_model_that_does_not_repeat_the_code_is_told_of() -> None:
    """The flow happened, and the exit code says that the answers were wrong."""
    code, shown = await demo([ALICE, says("Who knows?"), says("Who knows?")])
    assert code == 1
    assert "The flow happened" in shown
    assert "The model did not repeat the code both times." in shown


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ([says("No.")] * 2, "error: the model called the tool with [], not once with Grace"),
        ([fails(400, "bad")] * 2, "error: the run should have ended, and is FAILED: the endpoint answered 400: bad"),
    ],
)
async def test_it_fails_if_the_flow_did_not_happen_twice(script: list[Reply], problem: str) -> None:
    """With what happened in place of it."""
    code, shown = await demo(script)
    assert code == 1
    assert problem in shown
