"""What happens to a run when its caller leaves, does not wait, or waits for a limited time."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import run_service_pb2, runs_pb2
from google.protobuf.duration_pb2 import Duration

from agent_service.transport.agent_servicer import AgentServicer
from tests.scripted_openai import Gate, Happening, Reply, ScriptedOpenAI, calls, says, silent
from tests.service import SECRET, Client, event_kinds, kinds, refusal, returned, scripted, step, submit

pytestmark = pytest.mark.anyio

CALL = calls(("get_secret_code", {"name": "Alice"}))
SOON = Duration(nanos=30_000_000)
RPCS = ["Step", "Stream", "SubmitToolReturns", "StreamToolReturns"]
CONTINUES, CANCELS = pb.ON_DISCONNECT_CONTINUE, pb.ON_DISCONNECT_CANCEL

every_rpc = pytest.mark.parametrize("rpc", RPCS)
either_way = pytest.mark.parametrize("way", ["cancel", "deadline"])

executing = Happening("executions of wait_for_ever")


async def wait_for_ever() -> str:
    """A server tool that never returns."""
    executing.add()
    await asyncio.Event().wait()
    return "never"


def script(rpc: str, reply: Reply) -> list[Reply]:
    """The reply for the request that this RPC leads to."""
    return [reply] if rpc in ("Step", "Stream") else [CALL, reply]


async def begin(client: Client, rpc: str, timeout: float | None = None, **fields: Any) -> Any:  # noqa: ASYNC109 - the deadline of the call, in seconds
    """A call of this RPC for run-1, paused before for a submit. It is not waited for."""
    if rpc in ("Step", "Stream"):
        start = step("Hi", SECRET, run_id="run-1", **fields)
        if rpc == "Step":
            return client.agent.Step(start, timeout=timeout)
        return client.agent.Stream(pb.StreamRequest(step=start, stream_tokens=True), timeout=timeout)
    paused = await client.ask("Hi", SECRET, run_id="run-1")
    answers = submit("run-1", returned(paused.run.pending_tool_calls[0], "A-1"), **fields)
    if rpc == "SubmitToolReturns":
        return client.agent.SubmitToolReturns(answers, timeout=timeout)
    return client.agent.StreamToolReturns(
        pb.StreamToolReturnsRequest(submit=answers, stream_tokens=True), timeout=timeout
    )


async def leave(client: Client, upstream: ScriptedOpenAI, rpc: str, way: str, **fields: Any) -> None:
    """Begins a call and leaves it while the model is asked, by cancelling it or by its deadline."""
    call = await begin(client, rpc, timeout=0.5 if way == "deadline" else None, **fields)
    reading = asyncio.ensure_future(refusal(call))
    await upstream.wait_for_requests(len(script(rpc, says(""))))
    if way == "cancel":
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    else:
        assert (await reading).code == "DEADLINE_EXCEEDED"


async def to_the_end(client: Client) -> list[Any]:
    """The events of run-1, once it has ended."""
    return await asyncio.wait_for(client.watch("run-1"), 20)


@every_rpc
@either_way
async def test_a_run_goes_on_without_its_caller(store: str, rpc: str, way: str) -> None:
    """By default a dropped call or a passed deadline ends only the waiting: the run ends as it would have."""
    gate = Gate()
    async with scripted(script(rpc, says("Done.", gate=gate)), store) as (client, upstream):
        await leave(client, upstream, rpc, way)
        assert (await client.run("run-1")).status == runs_pb2.RUN_STATUS_RUNNING
        gate.open()
        events = await to_the_end(client)
        assert events[-1].run_stopped.status == runs_pb2.RUN_STATUS_COMPLETED
        assert not upstream.disconnected.is_set()


@every_rpc
@either_way
async def test_a_run_ends_with_its_caller_where_that_is_asked_for(store: str, rpc: str, way: str) -> None:
    """With CANCEL the run is cancelled, the connection to the model closes, and the conversation can go on."""
    replies = [*script(rpc, silent("Half an answer", after=1)), says("Next.")]
    async with scripted(replies, store) as (client, upstream):
        await leave(client, upstream, rpc, way, on_disconnect=CANCELS)
        events = await to_the_end(client)
        assert events[-1].run_stopped.status == runs_pb2.RUN_STATUS_CANCELLED
        assert events[-1].run_stopped.final
        await upstream.disconnected.wait()
        run = await client.run("run-1")
        assert (run.status, run.stop_reason) == (runs_pb2.RUN_STATUS_CANCELLED, runs_pb2.STOP_REASON_CANCELLED)
        after = await client.ask("And now?", conversation_id=run.conversation_id)
        assert after.messages[-1].assistant.text == "Next."
        assert "Half" not in str(await client.messages(run.conversation_id))
        upstream.check_histories()


async def test_a_caller_that_leaves_during_a_server_tool_ends_the_run(store: str) -> None:
    """The tool is stopped, its call is closed as of unknown outcome, and the model can read that afterwards."""
    before = executing.count
    replies = [calls(("wait_for_ever", {})), says("Next.")]
    async with scripted(replies, store, tools="tests.test_disconnect:wait_for_ever") as (client, upstream):
        call = client.agent.Stream(pb.StreamRequest(step=step("Hi", run_id="run-1", on_disconnect=CANCELS)))
        reading = asyncio.ensure_future(refusal(call))
        await executing.reach(before + 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        events = await to_the_end(client)
        assert events[-1].run_stopped.stop_reason == runs_pb2.STOP_REASON_CANCELLED
        run = await client.run("run-1")
        history = await client.messages(run.conversation_id)
        assert kinds(history) == ["user", "tool_call", "tool_return"]
        assert "unknown" in history[-1].tool_return.text
        await client.ask("And now?", conversation_id=run.conversation_id)
        assert "unknown" in upstream.requests[-1].messages[-2]["content"]
        upstream.check_histories()


@pytest.mark.parametrize("joined", ["WatchRun", "Step"])
async def test_others_that_leave_do_not_matter(store: str, joined: str) -> None:
    """Watchers, and callers that joined the run with CONTINUE, may leave a run whose starter said CANCEL."""
    gate = Gate()
    async with scripted([says("Done.", gate=gate)], store) as (client, upstream):
        starter = await begin(client, "Stream", on_disconnect=CANCELS)
        await starter.initial_metadata()
        await upstream.wait_for_requests(1)
        other: Any
        if joined == "WatchRun":
            other = client.runs.WatchRun(run_service_pb2.WatchRunRequest(run_id="run-1"))
            assert (await other.read()).event.HasField("run_accepted")
        else:
            other = client.agent.Step(step("Hi", SECRET, run_id="run-1"))
        other.cancel()
        assert (await client.run("run-1")).status == runs_pb2.RUN_STATUS_RUNNING
        gate.open()
        events = [response.event async for response in starter]
        assert events[-1].run_stopped.status == runs_pb2.RUN_STATUS_COMPLETED


async def test_leaving_after_the_stop_does_not_cancel_a_paused_run(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CANCEL is about the time up to the stop: a stream that is dropped while its last event is sent ends nothing."""
    servicers: list[AgentServicer] = []

    class Kept(AgentServicer):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            servicers.append(self)

    monkeypatch.setattr("agent_service.transport.server.AgentServicer", Kept)
    async with scripted([CALL], store) as (client, _):
        request = pb.StreamRequest(step=step("Hi", SECRET, run_id="run-1", on_disconnect=CANCELS))
        # The server's side of the call, so that it is in the middle of sending the stop for certain.
        stream = servicers[0].Stream(request, _NoContext())  # type: ignore[arg-type]  # it is used for nothing here
        async for response in stream:
            if response.event.HasField("run_stopped"):
                break
        await stream.aclose()
        assert (await client.run("run-1")).status == runs_pb2.RUN_STATUS_PAUSED


class _NoContext:
    """Takes the initial metadata."""

    async def send_initial_metadata(self, metadata: object) -> None: ...


@every_rpc
async def test_leaving_before_anything_is_stored_is_no_error_of_the_server(store: str, rpc: str) -> None:
    """A call that is cancelled as soon as it is sent leaves no run, or one that its on_disconnect ended."""
    async with scripted([CALL, CALL], store) as (client, _):
        (await begin(client, rpc, on_disconnect=CANCELS)).cancel()
        try:
            run = await client.run("run-1")
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.NOT_FOUND
        else:
            assert run.status != runs_pb2.RUN_STATUS_FAILED


@pytest.mark.parametrize("rpc", ["Step", "SubmitToolReturns"])
async def test_a_call_waits_no_longer_than_max_wait(store: str, rpc: str) -> None:
    """When max_wait is over the answer is OK with the run as it is and the messages so far; the run goes on."""
    gate = Gate()
    async with scripted(script(rpc, says("Done.", gate=gate)), store) as (client, _):
        answer = await (await begin(client, rpc, timeout=20, max_wait=SOON, on_disconnect=CANCELS))
        assert answer.run.status == runs_pb2.RUN_STATUS_RUNNING
        assert not answer.run.HasField("stop_reason")
        assert kinds(answer.messages) == (["user"] if rpc == "Step" else ["tool_return"])
        gate.open()
        events = await to_the_end(client)
        assert events[-1].run_stopped.status == runs_pb2.RUN_STATUS_COMPLETED


@pytest.mark.parametrize("rpc", ["Step", "SubmitToolReturns"])
async def test_max_wait_does_not_delay_a_stop_that_comes_before(store: str, rpc: str) -> None:
    """A run that stops in time is answered as without max_wait."""
    async with scripted(script(rpc, says("Done.")), store) as (client, _):
        answer = await (await begin(client, rpc, max_wait=Duration(seconds=3600)))
        assert answer.run.status == runs_pb2.RUN_STATUS_COMPLETED
        assert answer.messages[-1].assistant.text == "Done."


@pytest.mark.parametrize("rpc", ["Step", "SubmitToolReturns"])
async def test_a_background_call_returns_at_once(store: str, rpc: str) -> None:
    """The answer has the stored run (and the receipt) while the model is silent, and nobody needs to stay for it."""
    gate = Gate()
    async with scripted(script(rpc, says("Done.", gate=gate)), store) as (client, _):
        answer = await (await begin(client, rpc, timeout=20, background=True, on_disconnect=CANCELS))
        assert (answer.run.run_id, answer.run.status) == ("run-1", runs_pb2.RUN_STATUS_RUNNING)
        if rpc == "SubmitToolReturns":
            assert len(answer.receipt.accepted_tool_call_ids) == 1
        gate.open()
        events = await to_the_end(client)
        assert event_kinds(events)[-2:] == ["message_stored", "run_stopped"]
        assert events[-1].run_stopped.status == runs_pb2.RUN_STATUS_COMPLETED


@pytest.mark.parametrize("rpc", ["Stream", "StreamToolReturns"])
@pytest.mark.parametrize("fields", [{"background": True}, {"max_wait": SOON}], ids=["background", "max_wait"])
async def test_a_stream_is_not_in_the_background(store: str, rpc: str, fields: dict[str, Any]) -> None:
    """INVALID_ARGUMENT that names the field and, for background, the way to do it; nothing is stored."""
    async with scripted([CALL], store) as (client, upstream):
        refused = await refusal(await begin(client, rpc, **fields))
        path = "step." if rpc == "Stream" else "submit."
        assert refused.code == "INVALID_ARGUMENT"
        assert refused.fields == tuple(path + name for name in fields)
        assert "background" not in fields or "WatchRun" in refused.message
        if rpc == "Stream":
            assert (
                await refusal(client.runs.GetRun(run_service_pb2.GetRunRequest(run_id="run-1")))
            ).code == "NOT_FOUND"
        else:
            assert (await client.run("run-1")).last_sequence == 5
        assert upstream.request_count == len(script(rpc, CALL)) - 1
