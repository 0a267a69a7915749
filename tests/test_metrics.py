"""Metrics: what is counted when runs start, pause, resume, fail and are watched."""

from __future__ import annotations

import json

import pytest
from agentrpc.v1 import runs_pb2
from opentelemetry.sdk.metrics.export import HistogramDataPoint

from tests.scripted_openai import Gate, Usage, calls, fails, says
from tests.seen import Seen
from tests.service import SECRET, refusal, returned, scripted

pytestmark = pytest.mark.anyio

CHAT = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "scripted-model",
}
STEP, GET = "agentrpc.v1.AgentService/Step", "agentrpc.v1.RunService/GetRun"


def stop(status: str, reason: str) -> dict[str, str]:
    """Labels of a stop."""
    return {"agent_service.run.status": status, "agent_service.run.stop_reason": reason}


async def test_what_happens_is_counted(store: str) -> None:
    """Calls with their code, stops with their reason, requests with their tokens, tools, pauses and writes."""
    seen = Seen()
    script = [
        calls(("add", {"a": 1, "b": 2}), usage=Usage(100, 20)),
        calls(("get_secret_code", {"name": "Alice"}), usage=Usage(200, 10)),
        says("Done.", usage=Usage(300, 5)),
        fails(400, "no"),
    ]
    async with scripted(script, store, telemetry=seen.telemetry, tools="tests.server_tools:add") as (client, _):
        paused = (await client.ask("Hi", SECRET)).run
        await client.answer(paused.run_id, returned(paused.pending_tool_calls[0], "A-1"))
        await client.ask("And?")
        await refusal(client.run("run-9"))
        assert seen.value("agent_service.run.stops", stop("paused", "requires_approval")) == 1
        assert seen.value("agent_service.run.stops", stop("completed", "end_turn")) == 1
        assert seen.value("agent_service.run.stops", stop("failed", "llm_api_error")) == 1
        assert seen.value("gen_ai.client.operation.duration", CHAT) == 3
        assert seen.value("gen_ai.client.operation.duration", {**CHAT, "error.type": "LLM_REFUSED"}) == 1
        assert seen.value("gen_ai.client.operation.time_to_first_chunk", CHAT) == 3
        assert seen.value("agent_service.run.time_to_first_token") == 2
        assert seen.value("agent_service.tool.duration", {"gen_ai.tool.name": "add"}) == 1
        assert seen.value("agent_service.pause.duration") == 1
        assert seen.value("rpc.server.call.duration", {"rpc.method": STEP, "rpc.response.status_code": "OK"}) == 2
        wrong = {"rpc.method": GET, "rpc.response.status_code": "NOT_FOUND", "error.type": "RUN_NOT_FOUND"}
        assert seen.value("rpc.server.call.duration", wrong) == 1
        assert seen.value("agent_service.store.write.duration", {"agent_service.store.operation": "start"}) == 2
        tokens = seen.metrics["gen_ai.client.token.usage"]
        assert {dict(p.attributes or {})["gen_ai.token.type"]: _sum(p) for p in tokens} == {"input": 600, "output": 35}


def _sum(point: object) -> float:
    assert isinstance(point, HistogramDataPoint)
    return point.sum


async def test_a_partial_submit_is_no_second_stop(store: str) -> None:
    """Answers to some of the calls leave the run as paused as it was; that is one stop."""
    seen = Seen()
    both = calls(("get_secret_code", {"name": "Alice"}), ("get_secret_code", {"name": "Bob"}))
    async with scripted([both, says("Done.")], store, telemetry=seen.telemetry) as (client, _):
        paused = (await client.ask("Codes?", SECRET)).run
        first, second = paused.pending_tool_calls
        await client.answer(paused.run_id, returned(first, "A-1"))
        assert seen.value("agent_service.run.stops", stop("paused", "requires_approval")) == 1
        await client.answer(paused.run_id, returned(second, "B-2"))
        assert seen.value("agent_service.run.stops", stop("paused", "requires_approval")) == 1
        assert seen.value("agent_service.pause.duration") == 1


async def test_what_goes_on_now_can_be_looked_at(store: str) -> None:
    """Runs at work, watchers and the calls that wait, all of them gone when they are."""
    seen, gate = Seen(), Gate()
    script = [calls(("get_secret_code", {"name": "Alice"})), says("Slowly.", gate=gate)]
    async with scripted(script, store, telemetry=seen.telemetry) as (client, upstream):
        paused = (await client.ask("Code?", SECRET)).run
        await client.ask("Hi", run_id="run-1", background=True)
        await upstream.wait_for_requests(2)
        watch = client.watching("run-1")
        await watch.read()
        assert seen.value("agent_service.run.active") == 1
        assert seen.value("agent_service.watcher.open") == 1
        assert seen.value("agent_service.store.queue") == 0
        gate.open()
        await client.watch("run-1")
        watch.cancel()
        assert paused.status == runs_pb2.RUN_STATUS_PAUSED
        assert seen.value("agent_service.run.active") == 0


async def test_a_watcher_that_does_not_keep_up_is_seen(store: str) -> None:
    """Its events wait until they are too many, are dropped then, and come from the store when it reads again."""
    seen, gate = Seen(), Gate()
    script = [says(["a token of some text "] * 20_000, gate=gate)]
    limits = json.dumps({"watcher_queue_events": 8})
    async with scripted(script, store, telemetry=seen.telemetry, limits=limits) as (client, _):
        await client.ask("Hi", run_id="run-1", background=True)
        watch = client.watching("run-1", stream_tokens=True)
        while not (await watch.read()).event.HasField("live"):
            pass
        assert seen.value("agent_service.watcher.overruns") == 0
        gate.open()
        await client.watch("run-1")
        assert seen.value("agent_service.watcher.overruns") > 0
        watch.cancel()


async def test_models_that_callers_invent_are_one_label(store: str) -> None:
    """A metric cannot grow without end because of what is in requests."""
    seen = Seen()
    script = [says("Hello.")] * 3
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("agent_service.telemetry.observed.MAX_NAMES", 1)
        async with scripted(script, store, telemetry=seen.telemetry) as (client, _):
            for model in ("scripted-model", "other-1", "other-2"):
                await client.ask("Hi", model=model)
    assert seen.value("gen_ai.client.operation.duration", CHAT) == 1
    assert seen.value("gen_ai.client.operation.duration", {**CHAT, "gen_ai.request.model": "other"}) == 2
