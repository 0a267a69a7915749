"""Two server processes behind a real Envoy with the configuration of deploy/: any of them takes any call."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import events_pb2, runs_pb2

from tests.envoy import MISSING, Fleet, fleet, program
from tests.process import environment, running
from tests.scripted_openai import Gate, Request, calls, says, silent
from tests.service import SECRET, Client, durable, event_kinds, refusal, returned, step

pytestmark = pytest.mark.anyio

COMPLETED = runs_pb2.RUN_STATUS_COMPLETED
CALL = calls(("get_secret_code", {"name": "Alice"}))
ROUNDS = 50
"""More than it takes, at two replicas, until each has had each kind of call."""

on_postgres = pytest.mark.parametrize("shared_store", ["postgres"], indirect=True)


def _asked(request: Request) -> Any:
    """A call for a question, and then an answer."""
    return says("The code is A-1.") if request.new_returns else CALL


@pytest.fixture(scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[Fleet]:
    """Replicas that tests do no harm to."""
    folder = tmp_path_factory.mktemp("fleet")
    settings = {"AGENT_SERVICE_HEARTBEAT_SECONDS": "0.1", "AGENT_SERVICE_STORE_BUSY_SECONDS": "1"}
    async with fleet(folder, str(folder / "runs.sqlite3"), _asked, **settings) as running:
        yield running


async def test_the_calls_of_one_connection_and_one_run_go_to_different_replicas(here: Fleet) -> None:
    """Runs are started at one replica, watched and resumed at another one, and read as a whole by all who look."""
    for number in range(ROUNDS):
        run_id = f"run-{number}"
        paused = (await here.client.ask("Code?", SECRET, run_id=run_id)).run
        watching = asyncio.ensure_future(here.client.watch(run_id))
        answers = pb.StreamToolReturnsRequest(
            submit=pb.SubmitToolReturnsRequest(
                run_id=run_id, tool_returns=[returned(paused.pending_tool_calls[0], "A-1")]
            )
        )
        resumed = [response.event async for response in here.client.agent.StreamToolReturns(answers)]
        assert resumed[-1].run_stopped.status == COMPLETED
        whole = await watching
        assert durable(whole)[-len(durable(resumed)) :] == durable(resumed)
        started, answered, watched = map(here.served, ("Step", "StreamToolReturns", "WatchRun"))
        both = set(here.replicas)
        moved = {run for run, target in answered.items() if target != started[run]}
        if {started[run] for run in moved} == both and set(watched.values()) == both:
            break
    else:
        raise AssertionError(f"not shared: {started} {answered} {watched}")
    assert await here.proxy.connections() == 1


async def test_nothing_cuts_a_silent_stream(here: Fleet) -> None:
    """Envoy has no time limits for calls and their silence, and passes heartbeats on as they come."""
    run = (await here.client.ask("Code?", SECRET)).run
    watch = here.client.watching(run.run_id)
    events = [(await watch.read()).event for _ in range(12)]
    watch.cancel()
    assert event_kinds(events)[-3:] == ["heartbeat"] * 3
    manager = _manager(await here.proxy.tells("/config_dump"))
    assert manager["stream_idle_timeout"] == "0s"
    routes = [route["route"] for route in manager["route_config"]["virtual_hosts"][0]["routes"]]
    assert [route["timeout"] for route in routes] == ["0s"] * len(routes)
    assert not {"idle_timeout", "max_stream_duration"} & {name for route in routes for name in route}
    assert "max_stream_duration" not in manager.get("common_http_protocol_options", {})


@on_postgres
async def test_a_killed_replica_is_taken_out_and_its_run_goes_on(tmp_path: Path, shared_store: str) -> None:
    """The stream that was open there ends with an error, and is attached to again. Every other call is answered, once
    it is repeated with the same id where it was cut, and carried out once. The replica is back as soon as it serves.
    """
    held: list[Any] = [silent("Half", after=1), says("Whole.")]

    def script(request: Request) -> Any:
        return held.pop(0) if "Hold on" in str(request.messages) else says("Hello.")

    async with fleet(tmp_path, shared_store, script, AGENT_SERVICE_LEASE_SECONDS="1") as here:
        stream = here.client.agent.Stream(pb.StreamRequest(step=step("Hold on", run_id="held")))
        await stream.initial_metadata()
        await here.upstream.wait_for_requests(1)
        killed = await here.that_works()
        (left,) = set(here.replicas) - {killed.target}
        await killed.kill()
        failures = 0
        for number in range(10):
            failures += await _repeated(here.client, f"run-{number}")
        assert failures <= 3
        assert (await refusal(stream)).code == "INTERNAL"
        events = await here.client.watch("held")
        assert events[-1].run_stopped.status == COMPLETED
        causes = [event.run_resumed.cause for event in events if event.HasField("run_resumed")]
        assert causes == [events_pb2.RUN_CAUSE_RECOVERY]
        assert here.upstream.request_count == 12
        await here.proxy.calls_go_to(left)
        port = killed.target.rpartition(":")[2]
        async with running(tmp_path, environment(here.upstream), "--store", shared_store, "--port", port):
            await here.proxy.calls_go_to(left, killed.target)


async def _repeated(client: Client, run_id: str) -> int:
    """Starts a run, with the same id until it is answered; how often that failed."""
    for failures in range(10):
        try:
            assert (await client.ask("Hi", run_id=run_id)).run.status == COMPLETED
            return failures
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error
    raise AssertionError(f"never answered: {run_id}")


@on_postgres
async def test_a_replica_that_is_told_to_stop_ends_its_streams_and_gets_no_more_calls(
    tmp_path: Path, shared_store: str
) -> None:
    """No call fails meanwhile, although nothing is repeated by the client and some have no id."""
    gate = Gate()

    def script(request: Request) -> Any:
        return says("Slowly.", gate=gate) if "Slowly" in str(request.messages) else says("Hello.")

    async with fleet(tmp_path, shared_store, script, AGENT_SERVICE_GRACE_SECONDS="60") as here:
        stream = here.client.agent.Stream(pb.StreamRequest(step=step("Slowly", run_id="slow")))
        await here.upstream.wait_for_requests(1)
        stopping = await here.that_works()
        (left,) = set(here.replicas) - {stopping.target}
        stopping.terminate()
        await stopping.logged("stopping")
        asked = await asyncio.gather(*(here.client.ask("Hi") for _ in range(10)))
        await here.proxy.calls_go_to(left)
        asked += await asyncio.gather(*(here.client.ask("Hi") for _ in range(10)))
        assert {answer.run.status for answer in asked} == {COMPLETED}
        assert here.upstream.request_count == 1 + len(asked)
        gate.open()
        events = [response.event async for response in stream]
        assert events[-1].run_stopped.status == COMPLETED
        assert await stopping.ended() == 0


async def test_a_change_that_may_have_been_made_is_left_to_the_client_to_repeat(here: Fleet) -> None:
    """Only the client knows whether it has an id with which that is safe."""
    with closing(sqlite3.connect(here.store, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        refused = await refusal(here.client.agent.Step(step("Hi")))
        other.execute("ROLLBACK")
    assert (refused.code, refused.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
    assert here.refused("STORE_UNAVAILABLE") == 1


def _manager(dump: Any) -> Any:
    """The part of Envoy's configuration that has to do with connections of clients."""
    (listeners,) = [part for part in dump["configs"] if "static_listeners" in part]
    (listener,) = listeners["static_listeners"]
    return listener["listener"]["filter_chains"][0]["filters"][0]["typed_config"]


@pytest.mark.parametrize("ci", [False, True])
def test_without_envoy_tests_say_what_to_install(monkeypatch: pytest.MonkeyPatch, ci: bool) -> None:
    """They are skipped; in continuous integration they fail."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CI", raising=False)
    if ci:
        monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception if ci else pytest.skip.Exception, match=re.escape(MISSING)):
        program()
