"""`agent-service runs` and `agent-service inbox`, against a real service: what they print and how they end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from agentrpc.v1 import runs_pb2, tools_pb2

from agent_service.cli import main
from agent_service.tools import server_tool
from tests.scripted_openai import Gate, calls, fails, says
from tests.service import SECRET, Client, scripted

pytestmark = pytest.mark.anyio

CALL = calls(("get_secret_code", {"name": "Alice"}))
TOOLS = "tests.test_console:refund"


@server_tool(requires_approval=True)
async def refund(order: str) -> str:
    """Pays an order back."""
    return f"paid back {order}"


class Shell:
    """Types commands."""

    def __init__(self, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
        self._target = client.target
        self._capsys = capsys

    async def __call__(self, *words: str, code: int = 0) -> list[str]:
        """The lines that a command prints; it must end with this exit code."""
        self._capsys.readouterr()
        ended = await asyncio.to_thread(main, [*words, "--target", self._target])
        printed = self._capsys.readouterr()
        assert ended == code, printed
        lines = printed.err if code == 1 else printed.out
        return [line for line in lines.splitlines() if "[info" not in line and "[warning" not in line]


async def test_runs_are_listed_and_shown(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The newest first, one a line, by status; one with what it waits for; as JSON for scripts."""
    async with scripted([says("Hello."), CALL], store) as (client, _):
        shell = Shell(client, capsys)
        await client.ask("Hi", run_id="run-1")
        await client.ask("Code?", SECRET, run_id="run-2")
        listed = await shell("runs", "list")
        assert [line.split()[2:4] for line in listed] == [["run-2", "PAUSED"], ["run-1", "COMPLETED"]]
        assert [line.split()[2] for line in await shell("runs", "list", "--status", "completed")] == ["run-1"]
        assert len(await shell("runs", "list", "--limit", "1")) == 1
        shown = await shell("runs", "show", "run-2")
        assert 'get_secret_code({"name": "Alice"})  CLIENT_EXECUTION' in shown[-1]
        (line,) = await shell("runs", "show", "run-2", "--json")
        assert json.loads(line)["pendingToolCalls"][0]["name"] == "get_secret_code"


async def test_a_call_is_answered_from_the_inbox(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The inbox names run and call; the answer is taken, and the run can be watched to its end."""
    async with scripted([CALL, says("It is A-1.")], store) as (client, _):
        shell = Shell(client, capsys)
        await client.ask("Code?", SECRET, run_id="run-1")
        _, line = await shell("inbox")
        _, run_id, call_id, *_ = line.split()
        assert len(await shell("inbox", "--tool", "other")) == 1
        assert "run-1" in (await shell("runs", "submit", run_id, call_id, "A-1"))[0]
        watched = await shell("runs", "watch", "run-1", "--after", "5")
        assert [line.split()[1] for line in watched][-1] == "run_stopped"
        assert "COMPLETED END_TURN" in watched[-1]
        assert await shell("inbox", "--json") == []


async def test_the_inbox_can_be_followed(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Calls that come and go are told until the service ends."""
    async with scripted([CALL], store) as (client, _):
        following = asyncio.create_task(asyncio.to_thread(main, ["inbox", "--follow", "--target", client.target]))
        await client.ask("Code?", SECRET, run_id="run-1")
        printed = ""
        while "+  run-1" not in printed:
            printed += capsys.readouterr().out
            await client.run("run-1")
        await client.cancel("run-1")
        while "-  run-1" not in printed:
            printed += capsys.readouterr().out
            await client.run("run-1")
    assert await following == 1


async def test_calls_are_answered_one_by_one(
    store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is claimed, so that no other worker has it meanwhile; the end of the input ends it."""
    lines = ["A-1", "A-2"]

    def typed(prompt: str) -> str:
        if not lines:
            raise EOFError
        return lines.pop(0)

    monkeypatch.setattr("builtins.input", typed)
    async with scripted([CALL, CALL, CALL, says("Thanks."), says("Thanks.")], store) as (client, upstream):
        for number in range(3):
            await client.ask("Code?", SECRET, run_id=f"run-{number}")
        told = await Shell(client, capsys)("inbox", "--answer")
        assert told[0] == 'run-0  get_secret_code({"name": "Alice"})'
        assert told[-1] == 'run-2  get_secret_code({"name": "Alice"})'
        for run_id in ("run-0", "run-1"):
            await client.watch(run_id)
        answers = [text for request in upstream.requests for text in request.returns.values()]
        assert sorted(answers) == ["A-1", "A-2"]
        (left,) = (await client.waiting()).calls
        assert (left.run_id, left.worker_id.partition("-")[0]) == ("run-2", "terminal")


async def test_a_tool_that_failed_is_answered_as_such(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The model reads an error."""
    async with scripted([CALL, says("Sorry.")], store) as (client, _):
        run = (await client.ask("Code?", SECRET, run_id="run-1")).run
        await Shell(client, capsys)(
            "runs", "submit", "run-1", run.pending_tool_calls[0].tool_call_id, "No such person.", "--error"
        )
        await client.watch("run-1")
        (told,) = [m.tool_return for m in await client.messages(run.conversation_id) if m.HasField("tool_return")]
        assert (told.outcome, told.text) == (tools_pb2.TOOL_CALL_OUTCOME_FAILED, "No such person.")


@pytest.mark.parametrize(("word", "told"), [("approve", "paid back 7"), ("deny", "Denied: no")])
async def test_a_call_is_approved_or_denied(store: str, word: str, told: str, capsys: Any) -> None:
    """With a reason where it is denied."""
    script = [calls(("refund", {"order": "7"})), says("Done.")]
    async with scripted(script, store, tools=TOOLS) as (client, upstream):
        shell = Shell(client, capsys)
        run = (await client.ask("Refund 7.", run_id="run-1")).run
        await shell("runs", word, "run-1", run.pending_tool_calls[0].tool_call_id, "--reason", "no")
        await shell("runs", "watch", "run-1")
        assert list(upstream.requests[-1].returns.values()) == [told]


async def test_runs_are_retried_and_cancelled(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The line shows the run after it; a watched run that did not complete ends with 3."""
    gate = Gate()
    async with scripted([fails(503, "Busy."), says("Slowly.", gate=gate)], store) as (client, _):
        shell = Shell(client, capsys)
        await client.ask("Hi", run_id="run-1")
        assert any("may be retried" in line for line in await shell("runs", "show", "run-1"))
        assert "RUNNING" in (await shell("runs", "retry", "run-1"))[0]
        assert "CANCELLED" in (await shell("runs", "cancel", "run-1"))[0]
        assert "CANCELLED" in (await shell("runs", "watch", "run-1", code=3))[-1]
        assert (await client.run("run-1")).status == runs_pb2.RUN_STATUS_CANCELLED


async def test_what_goes_wrong_is_said_in_one_line(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In the service's own words, with exit code 1; bad usage ends with 2."""
    async with scripted([], store) as (client, _):
        shell = Shell(client, capsys)
        (line,) = await shell("runs", "show", "run-9", code=1)
        assert line.startswith("error: NOT_FOUND: run_id:")
        with pytest.raises(SystemExit) as ended:
            main(["runs", "list", "--status", "asleep"])
        assert ended.value.code == 2
