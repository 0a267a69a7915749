"""What a start does in a conversation that has a run already: it is refused, takes its place, or waits for its turn."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import events_pb2, runs_pb2
from structlog.testing import capture_logs

from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.engine import upkeep
from agent_service.stores.memory import MemoryStore
from tests.modes import MODES, start
from tests.scripted_openai import Gate, ScriptedOpenAI, calls, fails, says, silent
from tests.service import (
    SECRET,
    Client,
    durable,
    event_kinds,
    kinds,
    refusal,
    returned,
    scripted,
    serving,
    step,
)

pytestmark = pytest.mark.anyio

CALL = calls(("get_secret_code", {"name": "Alice"}))
QUEUED, PAUSED = runs_pb2.RUN_STATUS_QUEUED, runs_pb2.RUN_STATUS_PAUSED
COMPLETED, CANCELLED = runs_pb2.RUN_STATUS_COMPLETED, runs_pb2.RUN_STATUS_CANCELLED
SUPERSEDE: Any = pb.ON_BUSY_SUPERSEDE
ENQUEUE: Any = pb.ON_BUSY_ENQUEUE


async def queue(client: Client, conversation_id: str, *run_ids: str) -> list[runs_pb2.Run]:
    """Queues runs in the background, each with its id as its message."""
    return [
        (await client.ask(run_id, run_id=run_id, conversation_id=conversation_id, on_busy=ENQUEUE, background=True)).run
        for run_id in run_ids
    ]


async def ended(client: Client, run_id: str) -> runs_pb2.Run:
    """The run at its end."""
    await client.watch(run_id)
    return await client.run(run_id)


# Superseding


@pytest.mark.parametrize("mode", MODES)
async def test_a_new_message_takes_the_place_of_a_paused_run(store: str, mode: str) -> None:
    """The old run is CANCELLED, its call has an outcome that the model reads, and a late return is refused."""
    async with scripted([CALL, says("As you like.")], store) as (client, upstream):
        old = (await client.ask("Code?", SECRET)).run
        request = step("Never mind.", conversation_id=old.conversation_id, on_busy=SUPERSEDE)
        new = await start(client, mode, request)
        assert new.run.status == COMPLETED
        assert kinds(new.messages) == ["user", "assistant"]
        superseded = await client.run(old.run_id)
        assert (superseded.status, superseded.stop_reason) == (CANCELLED, runs_pb2.STOP_REASON_SUPERSEDED)
        (told,) = upstream.requests[-1].returns.values()
        assert told.startswith("Cancelled")
        late = await refusal(client.answer(old.run_id, returned(old.pending_tool_calls[0], "A-1")))
        assert late.reason == "CALL_CANCELLED"
        upstream.check_histories()


async def test_a_new_message_takes_the_place_of_a_running_run(store: str) -> None:
    """Its model request is dropped at once, not at the next heartbeat; its watchers see its end, and what it had said
    is not part of the conversation."""
    script = [silent("Let me", after=1), says("Hello.")]
    async with scripted(script, store, lease_seconds=3600) as (client, upstream):
        old = (await client.ask("Tell me all.", background=True)).run
        await upstream.wait_for_requests(1)
        watching = asyncio.create_task(client.watch(old.run_id))
        new = await client.ask("Stop.", conversation_id=old.conversation_id, on_busy=SUPERSEDE)
        assert new.messages[-1].assistant.text == "Hello."
        await upstream.disconnected.reach(1)
        assert (await watching)[-1].run_stopped.stop_reason == runs_pb2.STOP_REASON_SUPERSEDED
        messages = await client.messages(old.conversation_id)
        assert kinds(messages) == ["user", "user", "assistant"]
        upstream.check_histories()


async def test_a_start_that_superseded_may_be_repeated(store: str) -> None:
    """It joins its own run, and supersedes nothing again."""
    async with scripted([CALL, says("As you like.")], store) as (client, upstream):
        old = (await client.ask("Code?", SECRET)).run
        request = step("Never mind.", conversation_id=old.conversation_id, on_busy=SUPERSEDE, run_id="run-2")
        first = await client.agent.Step(request)
        assert await client.agent.Step(request) == first
        assert upstream.request_count == 2


async def test_in_an_idle_conversation_all_are_the_same(store: str) -> None:
    """There is nothing to supersede or to wait for."""
    async with scripted([says("One."), says("Two."), says("Three.")], store) as (client, _):
        first = (await client.ask("Hi", on_busy=SUPERSEDE)).run
        for text, on_busy in (("Two.", ENQUEUE), ("Three.", SUPERSEDE)):
            answer = await client.ask("And?", conversation_id=first.conversation_id, on_busy=on_busy)
            assert answer.messages[-1].assistant.text == text


# Waiting


@pytest.mark.parametrize("mode", MODES)
async def test_a_queued_run_begins_when_the_one_before_it_is_over(store: str, mode: str) -> None:
    """Its input is no message of the conversation before; then it runs as any other."""
    async with scripted([CALL, says("It is A-1."), says("You are welcome.")], store) as (client, upstream):
        paused = (await client.ask("Code?", SECRET)).run
        request = step("Thank you.", conversation_id=paused.conversation_id, run_id="run-2", on_busy=ENQUEUE)
        waiting = asyncio.create_task(start(client, mode, request))
        while not (found := await client.list_runs(statuses=[QUEUED])).runs:
            pass
        assert [run.run_id for run in found.runs] == ["run-2"]
        assert kinds(await client.messages(paused.conversation_id)) == ["user", "tool_call"]
        await client.answer(paused.run_id, returned(paused.pending_tool_calls[0], "A-1"))
        done = await waiting
        assert (done.run.status, kinds(done.messages)) == (COMPLETED, ["user", "assistant"])
        events = await client.watch("run-2")
        assert event_kinds(events)[:3] == ["run_accepted", "message_stored", "run_started"]
        assert not done.events or durable(done.events) == durable(events)
        assert [body["role"] for body in upstream.requests[-1].body["messages"]][-2:] == ["assistant", "user"]
        upstream.check_histories()


async def test_queued_runs_begin_one_after_the_other_in_their_order(store: str) -> None:
    """Whatever becomes of those before: completed, failed for now, or cancelled while it waits."""
    script = [CALL, says("A."), fails(503, "Busy."), says("C."), says("E.")]
    async with scripted(script, store) as (client, upstream):
        first = (await client.ask("Code?", SECRET)).run
        waiting = await queue(client, first.conversation_id, "run-b", "run-c", "run-d", "run-e")
        assert [run.status for run in waiting] == [QUEUED] * 4
        assert (await client.cancel("run-d")).status == CANCELLED
        await client.answer(first.run_id, returned(first.pending_tool_calls[0], "A-1"))
        assert (await ended(client, "run-e")).status == COMPLETED
        assert (await client.run("run-b")).status == runs_pb2.RUN_STATUS_FAILED
        said = [m.user.text for m in await client.messages(first.conversation_id) if m.HasField("user")]
        assert said == ["Code?", "run-b", "run-c", "run-e"]
        assert upstream.request_count == 5
        upstream.check_histories()


async def test_a_message_that_does_not_wait_is_refused_for_those_that_do(store: str) -> None:
    """Behind a paused run it hears of the pause; and a queued run cannot be deleted."""
    async with scripted([CALL], store) as (client, _):
        paused = (await client.ask("Code?", SECRET)).run
        await queue(client, paused.conversation_id, "run-2")
        refused = await refusal(client.ask("Now!", conversation_id=paused.conversation_id))
        assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "CONVERSATION_PAUSED")
        deleted = await refusal(client.delete("run-2"))
        assert deleted.reason == "RUN_ACTIVE"


async def test_queued_runs_stay_behind_one_that_supersedes(store: str) -> None:
    """It takes the place of the run before, not theirs."""
    gate = Gate()
    async with scripted([CALL, says("Now.", gate=gate), says("Then.")], store) as (client, _):
        paused = (await client.ask("Code?", SECRET)).run
        await queue(client, paused.conversation_id, "run-2")
        request = step("Now!", conversation_id=paused.conversation_id, on_busy=SUPERSEDE, run_id="run-3")
        now = asyncio.ensure_future(client.agent.Step(request))
        while (await client.run(paused.run_id)).status == PAUSED:
            pass
        assert (await client.run("run-2")).status == QUEUED
        gate.open()
        assert (await now).messages[-1].assistant.text == "Now."
        assert (await ended(client, "run-2")).status == COMPLETED


async def test_a_queue_outlives_the_server(shared_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its order; also where nobody in the new process knows of it but the store."""
    monkeypatch.setattr(upkeep, "SWEEP_SECONDS", 0.01)
    async with ScriptedOpenAI([CALL, says("A."), says("B."), says("C.")]) as upstream:
        async with serving(upstream, shared_store) as client:
            paused = (await client.ask("Code?", SECRET)).run
            await queue(client, paused.conversation_id, "run-2", "run-3")
        async with serving(upstream, shared_store) as client:
            assert [run.status for run in (await client.list_runs(statuses=[QUEUED])).runs] == [QUEUED] * 2
            await client.answer(paused.run_id, returned(paused.pending_tool_calls[0], "A-1"))
            for run_id, text in (("run-2", "B."), ("run-3", "C.")):
                await ended(client, run_id)
                (said,) = [
                    e.message_stored.message.assistant.text
                    for e in await client.watch(run_id)
                    if e.message_stored.message.HasField("assistant")
                ]
                assert said == text
            upstream.check_histories()


async def test_the_turn_of_a_queued_run_comes_again_after_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is away just when the run before it has ended: nothing crashes, and a later look begins it."""
    away = False

    async def queued_runs(self: MemoryStore, limit: int) -> tuple[tuple[str, str], ...]:
        if away:
            raise AgentServiceError(Reason.STORE_UNAVAILABLE, "the store is away")
        return await found(self, limit)

    found = MemoryStore.queued_runs
    monkeypatch.setattr(MemoryStore, "queued_runs", queued_runs)
    monkeypatch.setattr(upkeep, "SWEEP_SECONDS", 0.01)
    with capture_logs() as logs:
        async with scripted([CALL, says("A."), says("B.")], "memory") as (client, _):
            paused = (await client.ask("Code?", SECRET)).run
            await queue(client, paused.conversation_id, "run-2")
            away = True
            await client.answer(paused.run_id, returned(paused.pending_tool_calls[0], "A-1"))
            assert (await client.run("run-2")).status == QUEUED
            away = False
            assert (await ended(client, "run-2")).status == COMPLETED
    told = {line["event"] for line in logs}
    assert "runs.not_begun" in told
    assert "task.crashed" not in told


async def test_a_dry_run_says_that_the_run_would_wait(store: str) -> None:
    """Or shows what would be sent in the place of the other run; nothing is stored."""
    async with scripted([CALL], store) as (client, upstream):
        paused = (await client.ask("Code?", SECRET)).run
        request = step("And?", conversation_id=paused.conversation_id, on_busy=ENQUEUE)
        built = await client.agent.BuildRequest(pb.BuildRequestRequest(step=request))
        assert "wait" in built.not_buildable.message
        request = step("And?", conversation_id=paused.conversation_id, on_busy=SUPERSEDE)
        built = await client.agent.BuildRequest(pb.BuildRequestRequest(step=request))
        assert "Cancelled" in built.request_json
        assert await client.run(paused.run_id) == paused
        assert upstream.request_count == 1


async def test_an_unknown_way_is_refused() -> None:
    """INVALID_ARGUMENT naming on_busy."""
    unknown: Any = 9
    async with scripted([], "memory") as (client, _):
        refused = await refusal(client.ask("Hi", on_busy=unknown))
        assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", ("on_busy",))


async def test_many_messages_at_once_are_answered_one_after_the_other(store: str) -> None:
    """Two runs never run in one conversation."""
    async with scripted([says("First."), *[says("Next.")] * 12], store) as (client, upstream):
        first = (await client.ask("Hi")).run
        fields: Any = {"conversation_id": first.conversation_id, "on_busy": ENQUEUE}
        answers = await asyncio.gather(*(client.ask(f"{number}", **fields) for number in range(12)))
        assert [answer.run.status for answer in answers] == [COMPLETED] * 12
        assert kinds(await client.messages(first.conversation_id)) == ["user", "assistant"] * 13
        starts = [e for a in answers for e in await client.watch(a.run.run_id) if e.HasField("run_started")]
        assert {event.run_started.cause for event in starts} == {events_pb2.RUN_CAUSE_START}
        upstream.check_histories()
