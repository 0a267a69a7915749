"""Stream and StreamToolReturns: what they show, when they end, and what their end means."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import events_pb2, runs_pb2

from tests.scripted_openai import Reply, breaks_off, calls, cut_by_length, error_in_stream, fails, garbage, says, silent
from tests.service import SECRET, Client, durable, event_kinds, returned, scripted, step, submit

pytestmark = pytest.mark.anyio

CALL = calls(("get_secret_code", {"name": "Alice"}))
CALLS = calls(*(("get_secret_code", {"name": name}) for name in ("Alice", "Bob")))
NO_RESTART = {"max_step_restarts": 0}
DELTAS = {"text_delta", "reasoning_delta", "tool_call_arguments_delta"}


async def started(client: Client, *, tokens: bool = False, **fields: Any) -> list[events_pb2.RunEvent]:
    """The events of a Stream with the client tool on offer; its status must be OK."""
    request = pb.StreamRequest(step=step("Code of Alice?", SECRET, **fields), stream_tokens=tokens)
    return await ended_well(client.agent.Stream(request))


async def submitted(client: Client, *args: Any, tokens: bool = False, **fields: Any) -> list[events_pb2.RunEvent]:
    """The events of a StreamToolReturns; its status must be OK."""
    request = pb.StreamToolReturnsRequest(submit=submit(*args, **fields), stream_tokens=tokens)
    return await ended_well(client.agent.StreamToolReturns(request))


async def ended_well(call: Any) -> list[events_pb2.RunEvent]:
    """The events of a stream, of which the last and only the last is a RunStopped."""
    async with asyncio.timeout(20):
        events = [response.event async for response in call]
    assert await call.code() is grpc.StatusCode.OK
    kinds = event_kinds(events)
    assert kinds[-1] == "run_stopped"
    assert kinds.count("run_stopped") == 1
    return events


def stop_of(events: list[events_pb2.RunEvent]) -> tuple[str, str, bool]:
    """Status, stop reason and `final` of the last event."""
    stopped = events[-1].run_stopped
    return (
        runs_pb2.RunStatus.Name(stopped.status).removeprefix("RUN_STATUS_"),
        runs_pb2.StopReason.Name(stopped.stop_reason).removeprefix("STOP_REASON_"),
        stopped.final,
    )


@pytest.mark.parametrize("tokens", [False, True], ids=["whole", "tokens"])
@pytest.mark.parametrize(
    ("reply", "stop"),
    [
        pytest.param(says("Hello."), ("COMPLETED", "END_TURN", True), id="end"),
        pytest.param(CALL, ("PAUSED", "REQUIRES_APPROVAL", False), id="pause"),
        pytest.param(cut_by_length("A long answer."), ("COMPLETED", "MAX_TOKENS_EXCEEDED", True), id="cut by length"),
        pytest.param(fails(503), ("INTERRUPTED", "LLM_API_ERROR", False), id="endpoint down"),
        pytest.param(fails(400), ("FAILED", "LLM_API_ERROR", True), id="request refused"),
        pytest.param(garbage(), ("FAILED", "INVALID_LLM_RESPONSE", True), id="not an answer"),
        pytest.param(breaks_off(after=2), ("INTERRUPTED", "LLM_API_ERROR", False), id="broken in mid-stream"),
        pytest.param(error_in_stream(after=2), ("INTERRUPTED", "LLM_API_ERROR", False), id="error in mid-stream"),
    ],
)
async def test_a_stream_ends_ok_with_its_one_run_stopped(
    store: str, reply: Reply, stop: tuple[str, str, bool], tokens: bool
) -> None:
    """However the run stops, the stream's status is OK and its last event says how; Run and WatchRun agree."""
    async with scripted([reply], store, limits=NO_RESTART) as (client, _):
        events = await started(client, tokens=tokens)
        assert stop_of(events) == stop
        run = await client.run(events[0].run_id)
        assert (run.status, run.stop_reason) == (events[-1].run_stopped.status, events[-1].run_stopped.stop_reason)
        assert run.last_sequence == events[-1].sequence
        assert run.error == events[-1].run_stopped.error
        watched = await client.watch(run.run_id, stop_at="STOP_AT_NEXT_STOP")
        assert durable(watched) == durable(events)
        assert [event.sequence for event in events if event.WhichOneof("payload") not in DELTAS] == list(
            range(1, run.last_sequence + 1)
        )


@pytest.mark.parametrize("tokens", [False, True], ids=["whole", "tokens"])
async def test_a_stream_of_returns_begins_with_the_receipt_and_ends_with_one_stop(store: str, tokens: bool) -> None:
    """A partial submit, the resume and the end each close their stream; the watch shows every stop, one of them final.

    The receipt names what was taken and what remains.
    """
    async with scripted([CALLS, says("Both known.")], store) as (client, upstream):
        paused = await started(client, tokens=tokens)
        run_id = paused[0].run_id
        alice, bob = paused[-1].run_stopped.remaining

        partial = await submitted(client, run_id, returned(alice, "A-1"), tokens=tokens)
        assert event_kinds(partial) == ["tool_returns_accepted", "message_stored", "run_stopped"]
        receipt = partial[0].tool_returns_accepted
        assert list(receipt.accepted_tool_call_ids) == [alice.tool_call_id]
        assert [call.tool_call_id for call in receipt.remaining] == [bob.tool_call_id]
        assert stop_of(partial) == ("PAUSED", "REQUIRES_APPROVAL", False)
        assert upstream.request_count == 1

        rest = await submitted(client, run_id, returned(bob, "B-2"), tokens=tokens)
        shown = [kind for kind in event_kinds(rest) if kind not in DELTAS]
        assert shown == ["tool_returns_accepted", "message_stored", "run_resumed", "message_stored", "run_stopped"]
        assert stop_of(rest) == ("COMPLETED", "END_TURN", True)

        watched = await client.watch(run_id)
        assert durable(watched) == durable([*paused, *partial, *rest])
        stops = [event.run_stopped for event in watched if event.HasField("run_stopped")]
        assert [stop.final for stop in stops] == [False, False, True]
        assert [len(stop.remaining) for stop in stops] == [2, 1, 0]


async def test_a_stream_of_returns_ends_ok_at_max_steps(store: str) -> None:
    """When no step is left the returns are stored and the run ends without another model request."""
    async with scripted([CALL], store) as (client, upstream):
        paused = await started(client, max_steps=1)
        (call,) = paused[-1].run_stopped.remaining
        events = await submitted(client, paused[0].run_id, returned(call, "A-1"))
        assert stop_of(events) == ("COMPLETED", "MAX_STEPS", True)
        assert upstream.request_count == 1


async def test_a_stream_of_returns_ends_ok_when_the_model_fails_after_them(store: str) -> None:
    """The receipt comes first and stays good, and the stop says that the run is interrupted."""
    async with scripted([CALL, fails(503)], store) as (client, _):
        paused = await started(client)
        (call,) = paused[-1].run_stopped.remaining
        events = await submitted(client, paused[0].run_id, returned(call, "A-1"))
        assert event_kinds(events)[:2] == ["tool_returns_accepted", "message_stored"]
        assert stop_of(events) == ("INTERRUPTED", "LLM_API_ERROR", False)
        assert events[-1].run_stopped.error.retryable


async def test_a_cancelled_run_ends_its_streams_ok(store: str) -> None:
    """Whoever streams a run that another caller's disconnect cancels sees its RunStopped and status OK."""
    async with scripted([silent("Half", after=1)], store) as (client, upstream):
        fields = {"run_id": "run-1"}
        leaving = step("Hi", SECRET, on_disconnect=pb.ON_DISCONNECT_CANCEL, **fields)
        first = client.agent.Stream(pb.StreamRequest(step=leaving))
        await first.initial_metadata()
        joined = client.agent.Stream(pb.StreamRequest(step=step("Hi", SECRET, **fields), stream_tokens=True))
        await joined.initial_metadata()
        await upstream.wait_for_requests(1)
        first.cancel()
        events = await ended_well(joined)
        assert stop_of(events) == ("CANCELLED", "CANCELLED", True)
        await upstream.disconnected.wait()


@pytest.mark.parametrize("tokens", [False, True], ids=["whole", "tokens"])
async def test_deltas_are_shown_only_where_asked_for(store: str, tokens: bool) -> None:
    """With stream_tokens the model's text, reasoning and arguments come in pieces, without it only whole."""
    script = [
        calls(("get_secret_code", {"name": "Alice"}), text="Let me look."),
        says("It is A-1.", reasoning="The tool said so."),
    ]
    async with scripted(script, store) as (client, _):
        paused = await started(client, tokens=tokens)
        (call,) = paused[-1].run_stopped.remaining
        ended = await submitted(client, paused[0].run_id, returned(call, "A-1"), tokens=tokens)
        assert set(event_kinds([*paused, *ended])) & DELTAS == (DELTAS if tokens else set())


async def test_a_repeated_stream_shows_the_same_window(store: str) -> None:
    """The same start again, after the run went on and ended, gives the events up to the first stop, byte for byte."""
    async with scripted([CALL, says("A-1.")], store) as (client, upstream):
        first = await started(client, run_id="run-1")
        (call,) = first[-1].run_stopped.remaining
        resumed = await submitted(client, "run-1", returned(call, "A-1"), request_id="req-1")
        assert durable(await started(client, run_id="run-1", tokens=True)) == durable(first)
        again = await submitted(client, "run-1", returned(call, "A-1"), request_id="req-1", tokens=True)
        assert durable(again) == durable(resumed)
        assert upstream.request_count == 2


@pytest.mark.parametrize("rpc", ["Step", "Stream", "SubmitToolReturns", "StreamToolReturns"])
async def test_the_run_id_is_sent_while_the_model_is_silent(store: str, rpc: str) -> None:
    """The initial metadata names the run as soon as it is stored, before the model says anything."""
    starts = rpc in ("Step", "Stream")
    script = [silent(before_headers=True)] if starts else [CALL, silent(before_headers=True)]
    async with scripted(script, store) as (client, upstream):
        request: Any = step("Hi", SECRET, run_id="run-1")
        if not starts:
            paused = await client.agent.Step(request)
            request = submit("run-1", returned(paused.run.pending_tool_calls[0], "A-1"))
        if rpc == "Stream":
            request = pb.StreamRequest(step=request)
        elif rpc == "StreamToolReturns":
            request = pb.StreamToolReturnsRequest(submit=request)
        # Called as a stream of one answer: Python's unary calls tell the metadata only together with the answer.
        method: Any = client.channel.unary_stream(
            f"/agentrpc.v1.AgentService/{rpc}", request_serializer=type(request).SerializeToString
        )
        call = method(request, timeout=10)
        metadata = dict(await call.initial_metadata())
        assert metadata["agentrpc-run-id"] == "run-1"
        assert (await client.run("run-1")).status == runs_pb2.RUN_STATUS_RUNNING
        await upstream.wait_for_requests(len(script))
        assert not call.done()
        call.cancel()


async def test_the_metadata_names_a_run_id_that_the_server_issued(store: str) -> None:
    """Without a run_id of the caller's own, the metadata is the first place that tells it."""
    async with scripted([says("Hello.")], store) as (client, _):
        call = client.agent.Step(step("Hi"))
        metadata = dict(await call.initial_metadata())
        assert metadata["agentrpc-run-id"] == (await call).run.run_id


async def test_a_refused_stream_has_no_events_and_stores_nothing(store: str) -> None:
    """What is refused at admission is a gRPC error before any event, and the run does not exist."""
    async with scripted([], store) as (client, _):
        call = client.agent.Stream(pb.StreamRequest(step=step("Hi", run_id="run-1", max_steps=0)))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            [response async for response in call]
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await client.run("run-1")
        assert missing.value.code() is grpc.StatusCode.NOT_FOUND
