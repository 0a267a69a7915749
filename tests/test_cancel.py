"""CancelRun and DeleteRun: ending a run for good, and forgetting one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from agentrpc.v1 import agent_registry_service_pb2 as registry_pb
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import run_service_pb2, runs_pb2, tools_pb2

from agent_service.tools import server_tool
from tests.scripted_openai import Happening, ScriptedOpenAI, calls, fails, says, silent
from tests.service import (
    SECRET,
    Client,
    Refusal,
    durable,
    event_kinds,
    kinds,
    refusal,
    returned,
    scripted,
    serving,
    step,
    submit,
)

pytestmark = pytest.mark.anyio

CALL = calls(("get_secret_code", {"name": "Alice"}))
CANCELLED = (runs_pb2.RUN_STATUS_CANCELLED, runs_pb2.STOP_REASON_CANCELLED)
executing = Happening("executions of wait_for_ever")
executed: Counter[str] = Counter()


async def wait_for_ever() -> str:
    """A server tool that never returns."""
    executing.add()
    await asyncio.Event().wait()
    return "never"


@server_tool(requires_approval=True)
async def delete_file(path: str) -> str:
    """Deletes a file."""
    executed[path] += 1
    return f"deleted {path}"


TOOLS = "tests.test_cancel:wait_for_ever,tests.test_cancel:delete_file"


def how(run: runs_pb2.Run) -> tuple[int, int]:
    """Status and stop reason."""
    return run.status, run.stop_reason


def watching(client: Client, run_id: str) -> asyncio.Task[list[Any]]:
    """A watch up to the end of the run."""
    return asyncio.create_task(client.watch(run_id))


async def test_a_paused_run_is_cancelled_and_the_conversation_goes_on(store: str) -> None:
    """Its pending calls get outcomes that the model can read, so that the next request is accepted."""
    both = calls(("get_secret_code", {"name": "Alice"}), ("delete_file", {"path": "/x"}))
    async with scripted([both, says("Let us go on.")], store, tools=TOOLS) as (client, upstream):
        paused = await client.ask("Code of Alice?", SECRET)
        conversation_id = paused.run.conversation_id
        run = await client.cancel(paused.run.run_id)
        assert how(run) == CANCELLED
        assert run.HasField("end_time")
        assert (len(run.pending_tool_calls), run.HasField("error")) == (0, False)
        assert run == await client.run(run.run_id)

        left = (await client.messages(conversation_id))[2:]
        outcomes = [(m.tool_return.name, m.tool_return.outcome, m.tool_return.status) for m in left]
        cancelled, error = tools_pb2.TOOL_CALL_OUTCOME_CANCELLED, tools_pb2.TOOL_RETURN_STATUS_ERROR
        assert outcomes == [("get_secret_code", cancelled, error), ("delete_file", cancelled, error)]

        answered = await client.ask("Never mind.", SECRET, conversation_id=conversation_id)
        assert answered.messages[-1].assistant.text == "Let us go on."
        roles = [message["role"] for message in upstream.requests[-1].messages if message["role"] != "system"]
        assert roles == ["user", "assistant", "tool", "tool", "user"]
        upstream.check_histories()


@pytest.mark.parametrize("after", [0, 1])
async def test_cancelling_drops_the_model_request_within_a_second(store: str, after: int) -> None:
    """Also one that has begun to answer; the partial text is not kept, and the caller who waits gets the run."""
    async with scripted([silent("Half an answer", after=after), says("Next.")], store) as (client, upstream):
        waiting = asyncio.create_task(client.ask("Hi", run_id="run-1"))
        await upstream.wait_for_requests(1)
        run = await client.cancel("run-1")
        assert how(run) == CANCELLED
        await upstream.disconnected.wait(timeout=1)
        assert (await waiting).run == run
        assert kinds(await client.messages(run.conversation_id)) == ["user"]
        assert how(await client.run("run-1")) == CANCELLED
        answered = await client.ask("Again", conversation_id=run.conversation_id)
        assert answered.messages[-1].assistant.text == "Next."


async def test_cancelling_during_a_server_tool_tells_its_outcome_as_unknown(store: str) -> None:
    """The tool is stopped; its call has FAILED, and calls that had not begun are CANCELLED."""
    before = executing.count
    both = calls(("wait_for_ever", {}), ("wait_for_ever", {}))
    async with scripted([both, says("Next.")], store, tools=TOOLS) as (client, upstream):
        waiting = asyncio.create_task(client.ask("Hi", run_id="run-1"))
        await executing.reach(before + 1)
        assert how(await client.cancel("run-1")) == CANCELLED
        run = (await waiting).run
        first, second = (await client.messages(run.conversation_id))[2:]
        assert first.tool_return.outcome == tools_pb2.TOOL_CALL_OUTCOME_FAILED
        assert "unknown" in first.tool_return.text
        assert second.tool_return.outcome == tools_pb2.TOOL_CALL_OUTCOME_CANCELLED
        assert executing.count == before + 1
        await client.ask("And now?", conversation_id=run.conversation_id)
        upstream.check_histories()


async def test_cancelling_twice_gives_the_same_answer(store: str) -> None:
    """The second changes nothing: no event, no time."""
    async with scripted([CALL], store) as (client, _):
        await client.ask("Hi", SECRET, run_id="run-1")
        first = await client.cancel("run-1")
        events = durable(await client.watch("run-1"))
        assert await client.cancel("run-1") == first
        assert durable(await client.watch("run-1")) == events


async def test_cancels_at_the_same_time_write_one_end(store: str) -> None:
    """All get the same answer, and the log has one final stop."""
    async with scripted([silent()], store) as (client, upstream):
        await client.agent.Step(step("Hi", run_id="run-1", background=True))
        await upstream.wait_for_requests(1)
        answers = await asyncio.gather(*[client.cancel("run-1") for _ in range(10)])
        assert all(answer == answers[0] for answer in answers)
        assert event_kinds(await client.watch("run-1")).count("run_stopped") == 1


@pytest.mark.parametrize("end", ["completed", "failed"])
async def test_a_run_that_is_over_stays_as_it_is(store: str, end: str) -> None:
    """It is returned, and its conversation and log do not change."""
    async with scripted([says("Done.") if end == "completed" else fails(400)], store) as (client, _):
        over = (await client.ask("Hi", run_id="run-1")).run
        events = durable(await client.watch("run-1"))
        assert await client.cancel("run-1") == over
        assert over.status == (runs_pb2.RUN_STATUS_COMPLETED if end == "completed" else runs_pb2.RUN_STATUS_FAILED)
        assert durable(await client.watch("run-1")) == events


async def test_an_interrupted_run_can_be_cancelled(store: str) -> None:
    """Then it is over and has no error any more."""
    async with scripted([fails(503), says("Next.")], store) as (client, _):
        lost = (await client.ask("Hi", run_id="run-1")).run
        assert lost.status == runs_pb2.RUN_STATUS_INTERRUPTED
        run = await client.cancel("run-1")
        assert (how(run), run.HasField("error")) == (CANCELLED, False)
        await client.ask("Again", conversation_id=run.conversation_id)
        assert await client.run("run-1") == run


async def test_watchers_see_the_end_and_their_streams_close(store: str) -> None:
    """Those of a pause, that attached before it, and the caller who streams: all end with the final RunStopped."""
    async with scripted([CALL, silent("Half", after=1)], store) as (client, upstream):
        await client.ask("Hi", SECRET, run_id="paused")
        stream = client.agent.Stream(pb.StreamRequest(step=step("Hi", run_id="works"), stream_tokens=True))
        streaming = asyncio.create_task(_collect(stream))
        await upstream.wait_for_requests(2)
        watchers = [watching(client, run_id) for run_id in ("paused", "works")]
        for run_id in ("paused", "works"):
            await client.cancel(run_id)
        for events in [*[await watcher for watcher in watchers], await streaming]:
            stopped = events[-1].run_stopped
            assert (stopped.status, stopped.stop_reason, stopped.final) == (*CANCELLED, True)
            assert len(stopped.remaining) == 0


async def _collect(stream: Any) -> list[Any]:
    return [response.event async for response in stream]


async def test_a_return_after_the_cancel_is_refused(store: str) -> None:
    """FAILED_PRECONDITION CALL_CANCELLED names the call, its outcome and when; nothing is stored or executed."""
    async with scripted([calls(("delete_file", {"path": "/late"})), CALL], store, tools=TOOLS) as (client, _):
        approval = await client.ask("Hi", run_id="run-1")
        execution = await client.ask("Hi", SECRET, run_id="run-2")
        late = submit("run-2", returned(execution.run.pending_tool_calls[0], "A-1"))
        decision = submit("run-1")
        decision.approvals.add(tool_call_id=approval.run.pending_tool_calls[0].tool_call_id).approve.SetInParent()
        for request in (late, decision):
            run = await client.cancel(request.run_id)
            refused = await refusal(client.agent.SubmitToolReturns(request))
            assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "CALL_CANCELLED")
            assert refused.metadata["outcome"] == "CANCELLED"
            assert refused.metadata["time"] == str(run.end_time.ToNanoseconds())
            assert (await client.run(request.run_id)) == run
        assert executed["/late"] == 0


async def test_a_return_that_was_taken_before_the_cancel_is_still_acknowledged(store: str) -> None:
    """A retry of it gets its receipt, although the run is cancelled."""
    async with scripted([CALL, silent()], store) as (client, upstream):
        paused = await client.ask("Hi", SECRET, run_id="run-1")
        call = paused.run.pending_tool_calls[0]
        accepted = await client.answer("run-1", returned(call, "A-1"), request_id="req-1", background=True)
        await upstream.wait_for_requests(2)
        await client.cancel("run-1")
        again = await client.answer("run-1", returned(call, "A-1"), request_id="req-1")
        assert again.receipt == accepted.receipt
        assert how(again.run) == CANCELLED


async def test_a_cancel_whose_caller_leaves_still_drops_the_model_request(store: str) -> None:
    """What was stored is carried out to its end."""
    async with scripted([silent()], store) as (client, upstream):
        await client.agent.Step(step("Hi", run_id="run-1", background=True))
        await upstream.wait_for_requests(1)
        for _ in range(50):
            call = client.runs.CancelRun(run_service_pb2.CancelRunRequest(run_id="run-1"))
            await asyncio.sleep(0)
            call.cancel()
            if (await client.run("run-1")).status == runs_pb2.RUN_STATUS_CANCELLED:
                break
        else:
            await client.cancel("run-1")
        await upstream.disconnected.wait(timeout=1)


OF_A_RUN: dict[str, Callable[[Client], Any]] = {
    "GetRun": lambda c: c.runs.GetRun(run_service_pb2.GetRunRequest(run_id="run-1")),
    "WatchRun": lambda c: c.runs.WatchRun(run_service_pb2.WatchRunRequest(run_id="run-1")),
    "CancelRun": lambda c: c.runs.CancelRun(run_service_pb2.CancelRunRequest(run_id="run-1")),
    "DeleteRun": lambda c: c.runs.DeleteRun(run_service_pb2.DeleteRunRequest(run_id="run-1")),
    "ListMessages": lambda c: c.registry.ListMessages(registry_pb.ListMessagesRequest(run_id="run-1")),
    "SubmitToolReturns": lambda c: c.agent.SubmitToolReturns(submit("run-1", returned("call", "x"))),
    "StreamToolReturns": lambda c: c.agent.StreamToolReturns(
        pb.StreamToolReturnsRequest(submit=submit("run-1", returned("call", "x")))
    ),
    "BuildRequest": lambda c: c.agent.BuildRequest(pb.BuildRequestRequest(submit=submit("run-1", returned("c", "x")))),
}


async def refusals(client: Client) -> dict[str, Refusal]:
    """What each RPC that names run-1 says."""
    return {name: await refusal(call(client)) for name, call in OF_A_RUN.items()}


async def test_every_rpc_that_names_an_unknown_run_says_so() -> None:
    """NOT_FOUND RUN_NOT_FOUND."""
    async with scripted([], "memory") as (client, _):
        for name, refused in (await refusals(client)).items():
            assert (refused.code, refused.reason) == ("NOT_FOUND", "RUN_NOT_FOUND"), name


async def test_a_deleted_run_is_unknown_to_every_rpc_and_its_messages_stay(store: str) -> None:
    """Also to a repeat of the delete. The conversation goes on after it."""
    async with scripted([says("Done."), says("Again.")], store) as (client, upstream):
        run = (await client.ask("Hi", run_id="run-1")).run
        await client.delete("run-1")
        for name, refused in (await refusals(client)).items():
            assert (refused.code, refused.reason) == ("NOT_FOUND", "RUN_NOT_FOUND"), name
        assert len((await client.list_runs()).runs) == 0
        assert kinds(await client.messages(run.conversation_id)) == ["user", "assistant"]
        await client.ask("Again", conversation_id=run.conversation_id)
        assert [message["role"] for message in upstream.requests[-1].messages[1:]] == ["user", "assistant", "user"]


async def test_the_id_of_a_deleted_run_is_refused_to_a_start(store: str) -> None:
    """ALREADY_EXISTS RUN_ID_REUSED, also for the equal start, and for a dry run of it."""
    async with scripted([says("Done.")], store) as (client, upstream):
        await client.ask("Hi", run_id="run-1")
        await client.delete("run-1")
        start = step("Hi", run_id="run-1")
        for call in (client.agent.Step(start), client.agent.BuildRequest(pb.BuildRequestRequest(step=start))):
            refused = await refusal(call)
            assert (refused.code, refused.reason) == ("ALREADY_EXISTS", "RUN_ID_REUSED")
            assert "deleted" in refused.message
        assert upstream.request_count == 1


@pytest.mark.parametrize("paused", [False, True])
async def test_an_active_run_is_not_deleted(store: str, paused: bool) -> None:
    """FAILED_PRECONDITION RUN_ACTIVE says to cancel it first, and after that it can be deleted."""
    async with scripted([CALL if paused else silent()], store) as (client, upstream):
        await client.agent.Step(step("Hi", SECRET, run_id="run-1", background=not paused))
        await upstream.wait_for_requests(1)
        refused = await refusal(OF_A_RUN["DeleteRun"](client))
        assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "RUN_ACTIVE")
        assert refused.metadata == {"run_id": "run-1"}
        assert refused.message == f"run_id: run-1 is {'PAUSED' if paused else 'RUNNING'}; cancel it first"
        await client.cancel("run-1")
        await client.delete("run-1")
        assert (await refusal(OF_A_RUN["GetRun"](client))).code == "NOT_FOUND"


async def test_a_watcher_of_an_interrupted_run_that_is_deleted_is_told(store: str) -> None:
    """It does not wait for ever: it sees the run end, or that there is no such run."""
    async with scripted([fails(503)], store) as (client, _):
        await client.ask("Hi", run_id="run-1")
        stream = client.runs.WatchRun(run_service_pb2.WatchRunRequest(run_id="run-1"))
        async for response in stream:
            if response.event.HasField("live"):
                break
        await client.delete("run-1")
        rest = [response.event async for response in stream]
        assert (rest[-1].run_stopped.status, rest[-1].run_stopped.final) == (runs_pb2.RUN_STATUS_FAILED, True)


async def test_a_conversation_stays_usable_after_its_interrupted_run_is_deleted(shared_store: str) -> None:
    """The model fails after a tool was used: what the deleted run leaves can be sent to the model."""
    script = [calls(("get_secret_code", {"name": "Alice"})), fails(503, "Busy."), says("Let us go on.")]
    async with ScriptedOpenAI(script) as upstream:
        async with serving(upstream, shared_store, tools=TOOLS) as client:
            run = (await client.ask("Hi", SECRET, run_id="run-1")).run
            answered = await client.answer("run-1", returned(run.pending_tool_calls[0], "A-1"))
            assert answered.run.status == runs_pb2.RUN_STATUS_INTERRUPTED
        async with serving(upstream, shared_store, tools=TOOLS) as client:
            await client.delete("run-1")
            assert len((await client.waiting()).calls) == 0
            answered = await client.ask("Still there?", conversation_id=run.conversation_id)
            assert answered.run.status == runs_pb2.RUN_STATUS_COMPLETED
            upstream.check_histories()


@pytest.mark.parametrize("rpc", ["GetRun", "CancelRun", "DeleteRun"])
@pytest.mark.parametrize("run_id", ["", "not an id"])
async def test_an_id_that_cannot_be_one_is_refused(rpc: str, run_id: str) -> None:
    """INVALID_ARGUMENT naming run_id."""
    async with scripted([], "memory") as (client, _):
        request = getattr(run_service_pb2, f"{rpc}Request")(run_id=run_id)
        refused = await refusal(getattr(client.runs, rpc)(request))
        assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", ("run_id",))
