"""A server process that works on runs is killed, or stopped for longer than its lease: what becomes of them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import errors_pb2, events_pb2, runs_pb2, tools_pb2

from tests.host_clocks import REPLICAS
from tests.process import API_KEY, ServerProcess, environment, lease, running
from tests.scripted_openai import Gate, Reply, Request, ScriptedOpenAI, Usage, calls, says, silent
from tests.service import SECRET, Client, durable, kinds, returned, step, submit
from tests.stored import in_use
from tests.tool_desk import Desk, Execution

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("clocks"), REPLICAS]

CALL = ("get_secret_code", {"name": "Alice"})
COMPLETED = runs_pb2.RUN_STATUS_COMPLETED
CRASHES = {"run.crashed", "rpc.crashed", "task.crashed", "upkeep.crashed"}


@asynccontextmanager
async def world(script: Any, **more: str) -> AsyncIterator[tuple[ScriptedOpenAI, Desk, dict[str, str]]]:
    """A model endpoint, a desk for server tools, and the environment of servers that use both."""
    async with ScriptedOpenAI(script, api_key=API_KEY) as upstream, Desk() as desk:
        yield upstream, desk, environment(upstream, **desk.environment, **more)


def by_input(**replies: list[Reply]) -> Callable[[Request], Reply]:
    """A script that answers each conversation from its own list, found by the first message."""
    return lambda request: replies[request.history[0]["content"]].pop(0)


async def background(client: Client, *inputs: str) -> None:
    """Starts runs that are named like their inputs."""
    for text in inputs:
        await client.ask(text, run_id=text, background=True)


async def ended(client: Client, run_id: str) -> list[events_pb2.RunEvent]:
    """All events of a run, once it is over. Their numbers have no gap."""
    events = await asyncio.wait_for(client.watch(run_id), 20)
    assert events[-1].run_stopped.final
    stored = [events_pb2.RunEvent.FromString(data) for data in durable(events)]
    assert [event.sequence for event in stored] == list(range(1, len(stored) + 1))
    return stored


async def read_until(events: AsyncIterator[events_pb2.RunEvent], kind: str) -> list[events_pb2.RunEvent]:
    """The next events, up to the first of this kind."""
    seen = [await anext(events)]
    while not seen[-1].HasField(kind):  # type: ignore[arg-type]  # a name of an arm
        seen.append(await anext(events))
    return seen


async def stop_between_writes(server: ServerProcess, store: str) -> None:
    """Stops a process (SIGSTOP) at a moment at which it does not hold the store."""
    for _ in range(100):
        server.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, server.process.pid, os.WSTOPPED)  # noqa: ASYNC222 - it stops at once
        if not await in_use(store):
            return
        server.process.send_signal(signal.SIGCONT)
    raise AssertionError("it always holds the store")


def crashes(*servers: ServerProcess) -> list[dict[str, Any]]:
    """What should never be in a log."""
    return [line for server in servers for line in server.log if line["event"] in CRASHES]


async def test_an_owner_that_was_stopped_for_longer_than_its_lease_writes_nothing(
    tmp_path: Path, shared_store: str
) -> None:
    """Another process takes its runs over. When it goes on, the answer of its model call, an answer that had already
    arrived, and the outcomes of its tools are all refused, whether the other process has ended the run or still works
    on it; its callers get the events of the other process.
    """
    gate, working = Gate(), Gate()
    script = by_input(
        midway=[silent("Half", after=1), says("Whole.")],
        late=[says("Too late.", chunks=1, gate=gate), says("In time.", gate=working)],
        look_up=[calls(("look_up", {"name": "Alice"})), says("Found.")],
        pay=[calls(("pay", {"amount": 7})), says("Unsure.")],
    )
    runs = {"midway", "late", "look_up", "pay"}
    async with (
        world(script, AGENT_SERVICE_LEASE_SECONDS="1") as (upstream, desk, env),
        running(tmp_path, env, "--store", shared_store) as (a, at_a),
        running(tmp_path, env, "--store", shared_store) as (b, at_b),
    ):
        request = pb.StreamRequest(step=step("midway", run_id="midway"), stream_tokens=True)
        stream: Any = at_a.agent.Stream(request)
        events = (response.event async for response in stream)
        seen = await read_until(events, "text_delta")
        await background(at_a, *(runs - {"midway"}))
        stale = [await desk.execution() for _ in range(2)]
        await upstream.wait_for_requests(4)

        await stop_between_writes(a, shared_store)
        gate.open()
        await gate.reached(2)
        for execution in stale:
            execution.answer("stale")
        again = await desk.execution()
        assert (again.name, again.attempt, again.pid) == ("look_up", 2, b.process.pid)
        again.answer("fresh")
        await upstream.wait_for_requests(8)
        before = {run_id: await ended(at_b, run_id) for run_id in runs - {"late"}}
        a.process.send_signal(signal.SIGCONT)

        await a.logged("run.taken_away", *runs)
        await upstream.disconnected.wait()
        assert (await at_a.run("late")).status == runs_pb2.RUN_STATUS_RUNNING
        working.open()
        before["late"] = await ended(at_b, "late")
        shown = {run_id: await at_b.run(run_id) for run_id in runs}
        async with asyncio.timeout(10):
            seen += [event async for event in events]
        assert await stream.code() is grpc.StatusCode.OK
        assert durable(seen) == durable(before["midway"])
        for client in (at_a, at_b):
            assert {run_id: await ended(client, run_id) for run_id in runs} == before
            assert {run_id: await client.run(run_id) for run_id in runs} == shown
        assert (upstream.request_count, desk.count) == (8, 3)
        returns = {request.history[0]["content"]: request.new_returns for request in upstream.requests[4:]}
        assert returns["look_up"] == ["fresh"]
        assert returns["pay"][0].startswith("Outcome unknown")
        assert {run.steps_taken for run in shown.values()} == {1, 2}
        assert [shown[run_id].model_attempts for run_id in ("midway", "late", "look_up", "pay")] == [2, 2, 2, 2]
        said = [m.assistant.text for m in await at_a.messages(shown["late"].conversation_id)][1:]
        assert said == ["In time."]
        assert crashes(a, b) == []


async def test_a_run_that_kills_its_process_each_time_is_set_aside(tmp_path: Path, shared_store: str) -> None:
    """After the third process in a row it is INTERRUPTED and can be retried; other runs go on all the while."""
    script = by_input(
        poison=[calls(("look_up", {"name": "Alice"})), says("Survived.")],
        other=[calls(CALL), says("Fine.")],
        quick=[says("Quick.")] * 3,
    )
    async with world(script, **lease(shared_store)) as (upstream, desk, env):
        ids = set()
        for losses in range(3):
            async with running(tmp_path, env, "--store", shared_store) as (server, client):
                if losses == 0:
                    paused = await client.ask("other", SECRET)
                    await background(client, "poison")
                execution = await desk.execution()
                assert execution.attempt == losses + 1
                ids.add(execution.tool_call_id)
                assert (await client.ask("quick")).run.status == COMPLETED
                execution.die()
                assert await server.ended() == -signal.SIGKILL
        async with running(tmp_path, env, "--store", shared_store) as (server, client):
            await client.watch("poison", stop_at="STOP_AT_NEXT_STOP")
            run = await client.run("poison")
            assert run.status == runs_pb2.RUN_STATUS_INTERRUPTED
            assert run.stop_reason == runs_pb2.STOP_REASON_ERROR
            assert run.error.reason == errors_pb2.ERROR_REASON_RUN_LOST_REPEATEDLY
            assert run.error.retryable
            resumed = await client.answer(paused.run.run_id, returned(paused.run.pending_tool_calls[0], "A-1"))
            assert resumed.run.status == COMPLETED
            retried = await client.retry("poison", "retry-1")
            assert retried.status == runs_pb2.RUN_STATUS_RUNNING
            execution = await desk.execution()
            assert (execution.attempt, {execution.tool_call_id}) == (4, ids)
            execution.answer("A-1")
            events = await ended(client, "poison")
            causes = [event.run_resumed.cause for event in events if event.HasField("run_resumed")]
            assert causes == [events_pb2.RUN_CAUSE_RECOVERY] * 2 + [events_pb2.RUN_CAUSE_RETRY]
            assert (await client.run("poison")).status == COMPLETED
            upstream.check_histories()


async def test_only_calls_without_outcome_run_again_and_only_if_they_may(tmp_path: Path, shared_store: str) -> None:
    """After kill -9 a finished call stays finished. A started one of an idempotent tool is executed again under its id,
    as the next attempt; of another tool the model reads that its outcome is unknown. What had not started, starts.
    """
    names = ("first", "second", "third")
    script = by_input(
        batch=[calls(*(("look_up", {"name": name}) for name in names)), says("Done.")],
        pay=[calls(("pay", {"amount": 7}), ("pay", {"amount": 8})), says("Unsure.")],
    )
    async with world(script, **lease(shared_store)) as (upstream, desk, env):
        async with running(tmp_path, env, "--store", shared_store) as (server, client):
            await background(client, "batch")
            first = await desk.execution()
            first.answer("1")
            second = await desk.execution()
            await background(client, "pay")
            paid = await desk.execution()
            assert [e.arguments["name"] for e in (first, second)] == ["first", "second"]
            await server.kill()
        async with running(tmp_path, env, "--store", shared_store) as (server, client):
            begun = {}
            for _ in range(3):
                execution = await desk.execution()
                begun[execution.run_id, execution.arguments.get("name")] = execution
                execution.answer(f"{execution.attempt}. attempt")
            assert set(begun) == {("batch", "second"), ("batch", "third"), ("pay", None)}
            again = begun["batch", "second"]
            assert (again.tool_call_id, again.attempt) == (second.tool_call_id, 2)
            assert begun["batch", "third"].attempt == 1
            other = begun["pay", None]
            assert (other.arguments, other.attempt) == ({"amount": 8}, 1)
            assert other.tool_call_id != paid.tool_call_id
            for run_id in ("batch", "pay"):
                await ended(client, run_id)
            returns = {request.history[0]["content"]: request.new_returns for request in upstream.requests}
            assert returns["batch"] == ["1", "2. attempt", "1. attempt"]
            unknown, known = returns["pay"]
            assert unknown.startswith("Outcome unknown")
            assert known == "1. attempt"
            assert (upstream.request_count, desk.count) == (4, 6)
            upstream.check_histories()


async def test_approvals_with_edited_arguments_outlive_the_process(tmp_path: Path, shared_store: str) -> None:
    """Calls that were approved and had not started are executed by the next process, with the arguments as edited; so
    is one of an idempotent tool that had started, under its id.
    """
    replies = [calls(("wipe", {"path": "a"}), ("order", {"article": "b"})), says("Done.")]
    async with world(replies, **lease(shared_store)) as (upstream, desk, env):
        async with running(tmp_path, env, "--store", shared_store) as (server, client):
            paused = await client.ask("Hi", run_id="run-1")
            wipe, order = paused.run.pending_tool_calls
            approvals = [_approve(wipe, '{"path": "edited-a"}'), _approve(order, '{"article": "edited-b"}')]
            await client.agent.SubmitToolReturns(submit("run-1", approvals=approvals, background=True))
            wiping = await desk.execution()
            assert wiping.arguments == {"path": "edited-a"}
            await server.kill()
        async with running(tmp_path, env, "--store", shared_store) as (server, client):
            again = await desk.execution()
            assert _told(again) == ("wipe", {"path": "edited-a"}, wipe.tool_call_id, 2)
            again.answer("wiped")
            ordering = await desk.execution()
            assert _told(ordering) == ("order", {"article": "edited-b"}, order.tool_call_id, 1)
            ordering.answer("ordered")
            await ended(client, "run-1")
            assert upstream.requests[-1].new_returns == ["wiped", "ordered"]
            assert (upstream.request_count, desk.count) == (2, 3)


def _approve(call: tools_pb2.PendingToolCall, edited: str) -> tools_pb2.ApprovalDecision:
    approve = tools_pb2.Approve(edited_arguments_json=edited)
    return tools_pb2.ApprovalDecision(tool_call_id=call.tool_call_id, approve=approve)


def _told(execution: Execution) -> tuple[str, dict[str, Any], str, int]:
    return execution.name, execution.arguments, execution.tool_call_id, execution.attempt


async def test_what_is_counted_over_a_run_is_right_over_pauses_and_a_crash(tmp_path: Path, shared_store: str) -> None:
    """Usage and steps are those of the stored answers, attempts include the one that was lost, labels stay, and the
    run ends at its `max_steps`.
    """
    replies = [
        calls(CALL, usage=Usage(10, 1)),
        silent("Lost", after=1, usage=Usage(1000, 1000)),
        calls(CALL, usage=Usage(20, 2)),
        calls(CALL, usage=Usage(30, 3)),
    ]
    async with world(replies, **lease(shared_store)) as (upstream, _, env):
        async with running(tmp_path, env, "--store", shared_store) as (server, client):
            run = (await client.ask("Hi", SECRET, run_id="run-1", max_steps=3, labels={"team": "red"})).run
            await client.answer("run-1", returned(run.pending_tool_calls[0], "1"), background=True)
            await upstream.wait_for_requests(2)
            await server.kill()
        async with running(tmp_path, env, "--store", shared_store) as (server, client):
            await client.watch("run-1", run.last_sequence + 1, stop_at="STOP_AT_NEXT_STOP")
            for text in ("2", "3"):
                run = await client.run("run-1")
                assert run.status == runs_pb2.RUN_STATUS_PAUSED
                answered = await client.answer("run-1", returned(run.pending_tool_calls[0], text))
            run = answered.run
            assert (run.status, run.stop_reason) == (COMPLETED, runs_pb2.STOP_REASON_MAX_STEPS)
            assert (run.steps_taken, run.model_attempts, run.max_steps) == (3, 4, 3)
            usage = run.usage
            assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (60, 6, 66)
            assert dict(run.labels) == {"team": "red"}
            assert (await ended(client, "run-1"))[-1].run_stopped.usage == usage
            messages = await client.messages(run.conversation_id)
            assert kinds(messages) == ["user", *(["tool_call", "tool_return"] * 3)]
            assert upstream.request_count == 4
            upstream.check_histories()
