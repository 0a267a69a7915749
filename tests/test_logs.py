"""What log lines look like."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from agentrpc.v1 import agent_service_pb2 as pb
from structlog.testing import capture_logs

from tests.process import API_KEY, environment, running
from tests.scripted_openai import ScriptedOpenAI, calls, says
from tests.service import SECRET, scripted, step

pytestmark = pytest.mark.anyio

SUPERSEDE: Any = pb.ON_BUSY_SUPERSEDE
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

FAILING = """
import structlog
from agent_service.logs import configure_logs
from agent_service.settings import LogFormat

configure_logs("info", LogFormat(%r))
try:
    password = "hunter" + "2"
    raise RuntimeError("no luck")
except RuntimeError:
    structlog.get_logger().exception("it.failed")
"""


@pytest.mark.parametrize("form", ["console", "json"])
def test_an_exception_is_logged_without_the_values_of_variables(form: str) -> None:
    """They may be keys or what people wrote; rich, where it is installed, would show them."""
    done = subprocess.run([sys.executable, "-c", FAILING % form], capture_output=True, text=True, check=True)
    assert "it.failed" in done.stderr
    assert "RuntimeError: no luck" in done.stderr
    assert "hunter2" not in done.stderr


async def test_each_call_and_each_end_of_a_run_is_one_line(store: str) -> None:
    """Whoever ended it: the model, a caller who cancels it, or one whose message takes its place."""
    call = calls(("get_secret_code", {"name": "Alice"}))
    async with scripted([says("Hello."), call, call, says("Instead.")], store) as (client, _):
        with capture_logs() as lines:
            await client.ask("Hi", run_id="done")
            await client.ask("Code?", SECRET, run_id="ended")
            await client.cancel("ended")
            replaced = (await client.ask("Code?", SECRET, run_id="replaced")).run
            superseding = step("Never mind", run_id="new", conversation_id=replaced.conversation_id, on_busy=SUPERSEDE)
            await client.agent.Step(superseding)
    stops = [(line["run_id"], line["status"], line["stop_reason"]) for line in lines if line["event"] == "run.stopped"]
    assert stops == [
        ("done", "completed", "end_turn"),
        ("ended", "paused", "requires_approval"),
        ("ended", "cancelled", "cancelled"),
        ("replaced", "paused", "requires_approval"),
        ("replaced", "cancelled", "superseded"),
        ("new", "completed", "end_turn"),
    ]
    assert [line["code"] for line in lines if line["event"] == "rpc"] == ["OK"] * 5


async def test_lines_are_joined_by_run_and_trace(tmp_path: Path) -> None:
    """What a process logs of a call and of its run has the same trace id, if there are traces; each line is JSON, and
    the key of the model endpoint is in none.
    """
    async with ScriptedOpenAI([says("Hello.")], api_key=API_KEY) as upstream:
        env = environment(upstream, AGENT_SERVICE_METRICS_ADDRESS=":0")
        async with running(tmp_path, env, "--log-format", "json") as (server, client):
            asked = client.agent.Step(step("Hi", run_id="run-1"), metadata=(("traceparent", CALLER),))
            await asked
            (stopped,) = await server.logged("run.stopped")
            (rpc,) = await server.logged("rpc")
    assert (stopped["run_id"], rpc["run_id"]) == ("run-1", "run-1")
    assert stopped["trace_id"] == rpc["trace_id"] == CALLER.split("-")[1]
    assert (rpc["rpc"], rpc["code"]) == ("Step", "OK")
