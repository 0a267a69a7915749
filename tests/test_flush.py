"""Flush before acknowledgement, seen from outside: a server process under strace."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import run_service_pb2

from tests import unflushed_server
from tests.process import API_KEY, PROGRAM, environment, running
from tests.scripted_openai import ScriptedOpenAI, calls, says
from tests.service import SECRET, Client, event_kinds, returned, step
from tests.strace import flushed_before_sent, traced, wait_until_whole, why_not

_WHY_NOT = why_not()

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(bool(_WHY_NOT) and not os.environ.get("CI"), reason=_WHY_NOT or "strace works"),
]

_CALL = calls(("get_secret_code", {"name": "Alice"}))

# Each mark is text that a commit stores and an acknowledgement carries.
_MARKS = {
    "a start by Step": "run-of-the-step",
    "the answer of the model": "answer-of-the-model",
    "a start by Stream": "run-of-the-stream",
    "a submit": "request-of-the-submit",
    "a tool return": "text-of-the-return",
    "a cancel": "run-to-be-cancelled",
}


async def _work(client: Client) -> None:
    """Starts, submits and cancels; each is acknowledged before the next."""
    await client.ask("Hello", run_id=_MARKS["a start by Step"])
    streamed = pb.StreamRequest(step=step("Code?", SECRET, run_id=_MARKS["a start by Stream"]))
    events = [response.event async for response in client.agent.Stream(streamed)]
    assert event_kinds(events)[-1] == "run_stopped"
    (call,) = events[-1].run_stopped.remaining
    answer = returned(call, _MARKS["a tool return"])
    await client.answer(_MARKS["a start by Stream"], answer, request_id=_MARKS["a submit"])
    await client.ask("Code?", SECRET, run_id=_MARKS["a cancel"])
    await client.runs.CancelRun(run_service_pb2.CancelRunRequest(run_id=_MARKS["a cancel"]))


async def _acknowledgements(folder: Path, program: tuple[str, ...]) -> dict[str, list[list[bool]]]:
    """For each mark and each request or answer it came in with: whether what was sent then had been flushed before."""
    assert not _WHY_NOT
    trace = folder / "trace"
    script = [says([_MARKS["the answer of the model"]]), _CALL, says("Thanks."), _CALL]
    async with ScriptedOpenAI(script, api_key=API_KEY) as upstream:
        flags = ("--store", "runs.sqlite3")
        async with running(folder, environment(upstream), *flags, program=traced(program, trace)) as (server, client):
            await _work(client)
        await asyncio.to_thread(wait_until_whole, trace, server.process.pid)
    return {what: flushed_before_sent(trace, mark) for what, mark in _MARKS.items()}


async def test_nothing_is_acknowledged_before_it_is_flushed(tmp_path: Path) -> None:
    """Of starts, model answers, submits and cancels, neither the caller nor the model is sent anything before the flush
    of the commit has returned.
    """
    seen = await _acknowledgements(tmp_path, PROGRAM)
    assert {what: len(windows) for what, windows in seen.items()} == {
        "a start by Step": 1,
        "the answer of the model": 1,
        "a start by Stream": 2,  # The submit names the run, too.
        "a submit": 1,
        "a tool return": 1,
        "a cancel": 2,  # It was started before.
    }
    assert all(windows and all(window and all(window) for window in windows) for windows in seen.values()), seen


async def test_a_server_that_does_not_flush_is_noticed(tmp_path: Path) -> None:
    """The same check finds that every acknowledgement of such a server came too early."""
    seen = await _acknowledgements(tmp_path, (sys.executable, unflushed_server.__file__))
    assert all(windows and all(window and not any(window) for window in windows) for windows in seen.values()), seen
