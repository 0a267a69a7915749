"""Traces of calls, runs, model requests and server tools, as an exporter gets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import runs_pb2
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from tests.blocks import appends, make, remembering, value
from tests.mcp_desk import Journal, running
from tests.scripted_openai import Usage, calls, fails, says, silent
from tests.seen import Seen, context, ids, is_child, linked, traceparent
from tests.service import SECRET, refusal, returned, scripted, step, submit
from tests.sleepers import answers, make_agents, memory_runs

pytestmark = pytest.mark.anyio

ENQUEUE: Any = pb.ON_BUSY_ENQUEUE
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE = int("4bf92f3577b34da6a3ce929d0e0e4736", 16)
RUN = "invoke_agent default"
STEP = "agentrpc.v1.AgentService/Step"
SUBMIT = "agentrpc.v1.AgentService/SubmitToolReturns"


async def test_a_run_is_one_trace_from_its_caller_to_its_model(store: str) -> None:
    """The caller's trace goes on in the call, which holds the run, which holds its model requests and its tools; the
    model endpoint is told the span of its request. What people and models write is not told to anybody.
    """
    seen = Seen()
    script = [calls(("add", {"a": 1, "b": 987654321})), says("Forty-two.", usage=Usage(7, 3))]
    async with scripted(script, store, telemetry=seen.telemetry, tools="tests.server_tools") as (client, upstream):
        done = await client.agent.Step(step("How much is it?"), metadata=(("traceparent", CALLER),))
        assert done.run.status == runs_pb2.RUN_STATUS_COMPLETED
    call, run, tool = seen.the(STEP), seen.the(RUN), seen.the("execute_tool add")
    models = seen.named("chat scripted-model")
    assert {context(span).trace_id for span in (call, run, tool, *models)} == {TRACE}
    assert call.parent is not None
    assert call.parent.span_id == int("00f067aa0ba902b7", 16)
    assert is_child(run, call)
    assert all(is_child(span, run) for span in (tool, *models))
    assert [request.headers["traceparent"] for request in upstream.requests] == [
        traceparent(context(span)) for span in models
    ]
    assert (call.kind, run.kind, models[0].kind) == (SpanKind.SERVER, SpanKind.INTERNAL, SpanKind.CLIENT)
    assert run.links == ()
    assert dict(run.attributes or {}) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "openai",
        "gen_ai.agent.id": "default",
        "gen_ai.conversation.id": done.run.conversation_id,
        "gen_ai.request.model": "scripted-model",
        "agent_service.run.id": done.run.run_id,
        "agent_service.run.epoch": 1,
        "agent_service.run.status": "completed",
        "agent_service.run.stop_reason": "end_turn",
    }
    asked = dict(models[1].attributes or {})
    assert asked["gen_ai.operation.name"] == "chat"
    assert asked["gen_ai.request.model"] == "scripted-model"
    assert asked["gen_ai.response.finish_reasons"] == ("stop",)
    assert (asked["gen_ai.usage.input_tokens"], asked["gen_ai.usage.output_tokens"]) == (7, 3)
    assert dict(tool.attributes or {})["gen_ai.tool.name"] == "add"
    told = json.dumps([span.to_json() for span in seen.spans])
    assert not any(text in told for text in ("How much", "Forty-two", "987654321", "helpful"))


async def test_a_resume_is_linked_to_the_work_before_the_pause(store: str) -> None:
    """Each stretch belongs to the trace of who asked for it; by the links one finds from the last one to the first."""
    seen = Seen()
    script = [calls(("get_secret_code", {"name": "Alice"})), calls(("get_secret_code", {"name": "Bob"})), says("Ok.")]
    async with scripted(script, store, telemetry=seen.telemetry) as (client, _):
        paused = (await client.ask("Codes?", SECRET)).run
        for text in ("A-1", "B-2"):
            answer = submit(paused.run_id, returned(paused.pending_tool_calls[0], text))
            paused = (await client.agent.SubmitToolReturns(answer, metadata=(("traceparent", CALLER),))).run
        assert paused.status == runs_pb2.RUN_STATUS_COMPLETED
    first, second, third = seen.named(RUN)
    assert first.links == ()
    assert linked(second) == [ids(first)]
    assert linked(third) == [ids(second)]
    assert context(first).trace_id != context(second).trace_id == context(third).trace_id == TRACE
    assert [dict(span.attributes or {})["agent_service.run.stop_reason"] for span in (first, second, third)] == [
        "requires_approval",
        "requires_approval",
        "end_turn",
    ]
    assert [is_child(span, call) for span, call in zip((second, third), seen.named(SUBMIT), strict=True)] == [True] * 2


async def test_a_run_that_was_queued_is_linked_to_its_start(store: str) -> None:
    """It begins when the run before it ends, and is no part of whatever ended that."""
    seen = Seen()
    script = [calls(("get_secret_code", {"name": "Alice"})), says("One."), says("Two.")]
    async with scripted(script, store, telemetry=seen.telemetry) as (client, _):
        paused = (await client.ask("Code?", SECRET)).run
        asked = step("Next", conversation_id=paused.conversation_id, run_id="run-2", on_busy=ENQUEUE, background=True)
        await client.agent.Step(asked, metadata=(("traceparent", CALLER),))
        await client.answer(paused.run_id, returned(paused.pending_tool_calls[0], "A-1"))
        await client.watch("run-2")
    queued = next(span for span in seen.named(RUN) if dict(span.attributes or {})["agent_service.run.id"] == "run-2")
    start = next(span for span in seen.named(STEP) if context(span).trace_id == TRACE)
    assert queued.parent is None
    assert linked(queued) == [ids(start)]


async def test_what_failed_is_told_by_its_reason(store: str) -> None:
    """A model that refuses, a tool that fails, a call that is wrong: an error type each, and no text of anybody."""
    seen = Seen()
    script = [calls(("broken", {})), fails(400, "no such luck")]
    async with scripted(script, store, telemetry=seen.telemetry, tools="tests.server_tools") as (client, _):
        assert (await client.ask("Hi")).run.status == runs_pb2.RUN_STATUS_FAILED
        await refusal(client.run("run-9"))
    tool, run, call = seen.the("execute_tool broken"), seen.the(RUN), seen.the("agentrpc.v1.RunService/GetRun")
    good, bad = seen.named("chat scripted-model")
    assert [_error(span) for span in (tool, good, bad, run)] == ["tool_error", "", "LLM_REFUSED", "LLM_REFUSED"]
    assert all(span.status.status_code is StatusCode.ERROR for span in (tool, bad, run))
    assert dict(bad.attributes or {})["http.response.status_code"] == 400
    assert (_error(call), dict(call.attributes or {})["rpc.response.status_code"]) == ("RUN_NOT_FOUND", "NOT_FOUND")
    assert call.status.status_code is StatusCode.UNSET
    told = json.dumps([span.to_json() for span in seen.spans])
    assert "no such luck" not in told
    assert "it is broken" not in told


def _error(span: ReadableSpan) -> Any:
    return dict(span.attributes or {}).get("error.type", "")


async def test_a_run_that_is_cancelled_ends_its_spans(store: str) -> None:
    """Those of the model request, too, although nobody got an answer."""
    seen = Seen()
    async with scripted([silent("Half", after=1)], store, telemetry=seen.telemetry) as (client, upstream):
        await client.ask("Hi", run_id="run-1", background=True)
        await upstream.wait_for_requests(1)
        await client.cancel("run-1")
        await upstream.disconnected.reach(1)
    assert _error(seen.the("chat scripted-model")) == "cancelled"
    assert dict(seen.the(RUN).attributes or {})["agent_service.run.stop_reason"] == "cancelled"


async def test_a_trace_that_makes_no_sense_is_not_gone_on_with(store: str) -> None:
    """The call is answered all the same, in a trace of its own."""
    seen = Seen()
    async with scripted([says("Hello.")], store, telemetry=seen.telemetry) as (client, _):
        asked = client.agent.Step(step("Hi"), metadata=(("traceparent", "00-zz-1-01"), ("tracestate", "=,=")))
        assert (await asked).run.status == runs_pb2.RUN_STATUS_COMPLETED
    assert seen.the(STEP).parent is None


async def test_tools_of_mcp_servers_are_told_the_trace(store: str, tmp_path: Path) -> None:
    """An endpoint gets the span of the call in a header."""
    seen = Seen()
    path = tmp_path / "agents.toml"
    async with running(Journal(tmp_path / "journal")) as endpoint:
        path.write_text(
            f'[agents.default]\nserver_tools = ["desk_headers"]\n[mcp_servers.desk]\nurl = "{endpoint.url}"\n'
        )
        script = [calls(("desk_headers", {})), says("Done.")]
        async with scripted(script, store, telemetry=seen.telemetry, agents_file=path) as (client, _):
            done = await client.ask("Which headers?")
    told = [message.tool_return.text for message in done.messages if message.HasField("tool_return")]
    assert traceparent(context(seen.the("execute_tool desk_headers"))) in told[0]


async def test_where_it_is_off_nothing_is_sent_or_kept(store: str) -> None:
    """No header goes to the model, and the caller's one changes nothing."""
    async with scripted([says("Hello.")], store) as (client, upstream):
        await client.agent.Step(step("Hi"), metadata=(("traceparent", CALLER),))
        assert "traceparent" not in upstream.requests[0].headers


async def test_memory_is_edited_as_where_nobody_looks_on(store: str) -> None:
    """An edit is stored with the run; the work on it goes on in the same span."""
    seen = Seen()
    async with scripted([appends("human", "Likes tea."), says("Noted.")], store, telemetry=seen.telemetry) as (
        client,
        _,
    ):
        await make(client, "human", "Name: Ada.")
        await remembering(client, "human")
        assert (await client.ask("I like tea.", agent_id="keeper")).run.status == runs_pb2.RUN_STATUS_COMPLETED
        assert await value(client, "human") == "Name: Ada.\nLikes tea."
    assert all(is_child(span, seen.the("invoke_agent keeper")) for span in seen.named("chat scripted-model"))


async def test_a_memory_run_is_no_part_of_the_run_that_it_reads_about(store: str) -> None:
    """Nobody waits for it: it has a trace of its own, and `parent_run_id` leads to what was its cause."""
    seen = Seen()
    async with scripted(answers, store, telemetry=seen.telemetry) as (client, _):
        await make_agents(client)
        asked = step("Hi", agent_id="desk")
        await client.agent.Step(asked, metadata=(("traceparent", CALLER),))
        await memory_runs(client, 1)
    read = seen.the("invoke_agent keeper")
    assert read.parent is None
    assert context(read).trace_id != context(seen.the("invoke_agent desk")).trace_id == TRACE
