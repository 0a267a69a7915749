"""A server that is told to stop: what becomes of the runs, of the calls that are open, and of those in a hurry."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import events_pb2, inbox_service_pb2, runs_pb2, server_service_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.process import API_KEY, environment, running
from tests.scripted_openai import Request, ScriptedOpenAI, calls, says, silent
from tests.service import SECRET, Client, refusal, refusal_of, step

pytestmark = pytest.mark.anyio

COMPLETED = runs_pb2.RUN_STATUS_COMPLETED
FOR_EVER = {"AGENT_SERVICE_GRACE_SECONDS": "3600", "AGENT_SERVICE_LEASE_SECONDS": "3600"}
LOAD = 40


async def health_of(client: Client) -> Any:
    """A watch of the server's health, which is SERVING."""
    watch: Any = health_pb2_grpc.HealthStub(client.channel).Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    return watch


async def ask_again_and_again(client: Client) -> None:
    """Callers of GetServerInfo who do not stop asking."""
    with suppress(grpc.aio.AioRpcError):
        while True:
            await client.server.GetServerInfo(server_service_pb2.GetServerInfoRequest())


async def test_under_load_nothing_is_lost_and_every_call_ends_clearly(tmp_path: Path, shared_store: str) -> None:
    """With many runs at work, and health, a pause and the inbox being watched: the process ends soon after its grace
    time with 0. Each call ended with its answer or with UNAVAILABLE (SHUTTING_DOWN), and the next server completes
    every run.
    """
    stopped = False

    def answer(request: Request) -> Any:
        text = str(request.body["messages"][-1]["content"])
        if text == "Code?":
            return calls(("get_secret_code", {"name": "Alice"}))
        return says("Done.") if stopped or text.startswith("quick") else silent("Half", after=1)

    async with ScriptedOpenAI(answer, api_key=API_KEY) as upstream:
        env = environment(upstream, AGENT_SERVICE_GRACE_SECONDS="0.5", AGENT_SERVICE_LEASE_SECONDS="3600")
        async with running(tmp_path, env, "--store", shared_store) as (server, client):
            paused = await client.ask("Code?", SECRET)
            health = await health_of(client)
            watch = client.watching(paused.run.run_id)
            inbox = client.inbox.WatchPendingToolCalls(inbox_service_pb2.WatchPendingToolCallsRequest())
            await watch.read()
            await inbox.read()
            ids = [f"{kind}-{number}" for number in range(LOAD) for kind in ("quick", "slow")]
            steps = [asyncio.ensure_future(client.ask(run_id, run_id=run_id)) for run_id in ids[:LOAD]]
            streams = [client.agent.Stream(pb.StreamRequest(step=step(run_id, run_id=run_id))) for run_id in ids[LOAD:]]
            asking = asyncio.create_task(ask_again_and_again(client))
            await upstream.wait_for_requests(1 + LOAD)
            server.terminate()
            assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            ends = await asyncio.gather(*steps, *(_end(stream) for stream in streams), return_exceptions=True)
            ends += [await _end(watch), await _end(inbox)]
            assert await server.ended() == 0
            asking.cancel()
            for end in ends:
                if isinstance(end, grpc.aio.AioRpcError):
                    cut = refusal_of(end)
                    assert (cut.code, cut.reason) == ("UNAVAILABLE", "SHUTTING_DOWN"), cut
                    assert cut.retry_seconds is not None
                else:
                    assert not isinstance(end, BaseException), end
            assert {line["event"] for line in server.log if line["level"] == "error"} == set()
        stopped = True
        async with running(tmp_path, env, "--store", shared_store) as (_, client):
            for run_id in ids:
                assert (await client.ask(run_id, run_id=run_id)).run.status == COMPLETED
            assert (await client.run(paused.run.run_id)).status == runs_pb2.RUN_STATUS_PAUSED
            upstream.check_histories()


async def _end(stream: Any) -> grpc.aio.AioRpcError | None:
    """What a stream ended with."""
    try:
        while await stream.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error
    return None


async def test_another_server_goes_on_at_once_with_what_is_handed_over(tmp_path: Path, shared_store: str) -> None:
    """A run that does not end within the grace time is taken by a server that is there already, without waiting for
    the lease of an hour.
    """
    async with ScriptedOpenAI([silent("Half", after=1), says("Whole.")], api_key=API_KEY) as upstream:
        env = environment(upstream, AGENT_SERVICE_GRACE_SECONDS="0", AGENT_SERVICE_LEASE_SECONDS="3600")
        async with (
            running(tmp_path, env, "--store", shared_store) as (server, client),
            running(tmp_path, env, "--store", shared_store) as (_, other),
        ):
            await client.ask("Hi", run_id="run-1", background=True)
            await upstream.wait_for_requests(1)
            server.terminate()
            assert await server.ended() == 0
            events = await other.watch("run-1")
            (resumed,) = [event.run_resumed for event in events if event.HasField("run_resumed")]
            assert resumed.cause == events_pb2.RUN_CAUSE_RECOVERY
            assert events[-1].run_stopped.status == COMPLETED


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_the_grace_time(tmp_path: Path, second: signal.Signals) -> None:
    """A run would have an hour; the next signal hands it over at once, and its caller is told to attach again."""
    async with ScriptedOpenAI([silent("Half", after=1), says("Whole.")], api_key=API_KEY) as upstream:
        env = environment(upstream, **FOR_EVER)
        async with running(tmp_path, env) as (server, client):
            stream = client.agent.Stream(pb.StreamRequest(step=step("Hi", run_id="run-1")))
            await stream.initial_metadata()
            health = await health_of(client)
            server.terminate()
            assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert (await client.run("run-1")).status == runs_pb2.RUN_STATUS_RUNNING
            server.process.send_signal(second)
            cut = await refusal(stream)
            assert (cut.code, cut.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
            assert await server.ended() == 0
        async with running(tmp_path, env) as (_, client):
            assert (await client.ask("Hi", run_id="run-1")).run.status == COMPLETED


async def test_a_second_signal_hurries_all_workers(tmp_path: Path) -> None:
    """The process that keeps them passes it on. A signal that a worker gets twice in the first place, from a service
    manager and from its keeper, does not end its grace time.
    """
    async with ScriptedOpenAI([silent("Half", after=1)], api_key=API_KEY) as upstream:
        env = environment(upstream, **FOR_EVER)
        async with running(tmp_path, env, "--workers", "2") as (server, client):
            pids = {line["pid"] for line in await server.logged("serving")}
            await client.ask("Hi", run_id="run-1", background=True)
            await upstream.wait_for_requests(1)
            health = await health_of(client)
            server.process.send_signal(signal.SIGTERM)
            assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            for pid in pids:
                with suppress(ProcessLookupError):  # The worker without a run is gone.
                    os.kill(pid, signal.SIGTERM)
            assert (await client.run("run-1")).status == runs_pb2.RUN_STATUS_RUNNING
            assert server.process.returncode is None
            server.terminate()
            assert await server.ended() == 0
            assert [line["event"] for line in server.log].count("stopped") == 2


MODEL_THAT_LOADS = """
import asyncio, sys
from pathlib import Path
from agent_service import local_model

PIPE = asyncio.subprocess.PIPE

async def start():
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import sys; sys.stdin.read()", stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    print(child.pid, flush=True)
    return child

local_model.find_local_model = lambda: Path("model")
local_model._start = start
"""


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_is_heard_while_the_bundled_model_starts(
    tmp_path: Path, workers: str, told: signal.Signals
) -> None:
    """The process ends with 0, the model server with it, and nobody waits for a model that is still loading."""
    (tmp_path / "sitecustomize.py").write_text(MODEL_THAT_LOADS)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent_service", "serve", "--port", "0", "--workers", workers),
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(tmp_path)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        model = int(await asyncio.wait_for(process.stdout.readline(), 30))
        process.send_signal(told)
        assert await asyncio.wait_for(process.wait(), 10) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(model, 0)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
