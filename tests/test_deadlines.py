"""Timeouts of client tools and pauses, as callers see them. The clock is the real one; the server looks often."""

from __future__ import annotations

from typing import Any

import pytest
from agentrpc.v1 import events_pb2, runs_pb2, tools_pb2
from google.protobuf.duration_pb2 import Duration

from agent_service.engine import upkeep
from tests.modes import MODES, start
from tests.scripted_openai import calls, says
from tests.service import refusal, returned, scripted, step
from tests.store_contract import Clock

pytestmark = pytest.mark.anyio

CALL = calls(("ask_boss", {}))
BRIEF = Duration(nanos=30_000_000)


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that tests need not wait for a second."""
    monkeypatch.setattr(upkeep, "SWEEP_SECONDS", 0.01)


def boss(on_timeout: str = "UNSPECIFIED", timeout: Duration | None = BRIEF) -> tools_pb2.ClientToolSchema:
    """A client tool whose caller has little time."""
    value: Any = tools_pb2.OnTimeout.Value(f"ON_TIMEOUT_{on_timeout}")
    return tools_pb2.ClientToolSchema(name="ask_boss", timeout=timeout, on_timeout=value)


def unknown() -> tools_pb2.ClientToolSchema:
    """A client tool with an action that the contract does not know."""
    value: Any = 9
    return tools_pb2.ClientToolSchema(name="ask_boss", timeout=BRIEF, on_timeout=value)


@pytest.mark.parametrize("mode", MODES)
async def test_a_run_goes_on_when_nobody_answers(store: str, mode: str) -> None:
    """The pause shows the deadline; the model is told that the outcome is unknown; a late answer is refused with the
    reason and the time."""
    async with scripted([CALL, says("The boss is out.")], store) as (client, upstream):
        paused = await start(client, mode, step("Ask the boss.", boss()))
        (call,) = paused.run.pending_tool_calls
        assert call.deadline.ToNanoseconds() == paused.run.update_time.ToNanoseconds() + BRIEF.ToNanoseconds()
        events = await client.watch(paused.run.run_id)
        resumed = [event.run_resumed.cause for event in events if event.HasField("run_resumed")]
        assert resumed == [events_pb2.RUN_CAUSE_DEADLINE]
        assert events[-1].run_stopped.status == runs_pb2.RUN_STATUS_COMPLETED
        (told,) = upstream.requests[-1].returns.values()
        assert "may have been executed" in told
        late = await refusal(client.answer(paused.run.run_id, returned(call, "Yes.")))
        assert (late.code, late.reason) == ("FAILED_PRECONDITION", "CALL_EXPIRED")
        assert late.metadata["outcome"] == "EXPIRED"
        upstream.check_histories()


async def test_an_answer_after_the_deadline_is_refused_before_anybody_has_looked(
    store: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The submit itself finds that the time is over; the run goes on all the same."""
    monkeypatch.setattr(upkeep, "SWEEP_SECONDS", 3600)
    async with scripted([CALL, says("The boss is out.")], store) as (client, _):
        paused = (await client.ask("Ask the boss.", boss(timeout=Duration(seconds=60)))).run
        clock.now += 60 * 10**9
        late = await refusal(client.answer(paused.run_id, returned(paused.pending_tool_calls[0], "Yes.")))
        assert late.reason == "CALL_EXPIRED"
        assert (await client.watch(paused.run_id))[-1].run_stopped.status == runs_pb2.RUN_STATUS_COMPLETED


async def test_a_tool_may_end_the_run(store: str) -> None:
    """FAILED with STOP_REASON_EXPIRED; the conversation goes on with the next message."""
    async with scripted([CALL, says("Hello.")], store) as (client, upstream):
        run = (await client.ask("Ask the boss.", boss("FAIL_RUN"))).run
        stopped = (await client.watch(run.run_id))[-1].run_stopped
        assert (stopped.status, stopped.stop_reason) == (runs_pb2.RUN_STATUS_FAILED, runs_pb2.STOP_REASON_EXPIRED)
        await client.ask("Hello?", conversation_id=run.conversation_id)
        upstream.check_histories()


async def test_a_pause_ends_after_its_time(store: str) -> None:
    """EXPIRED, for good."""
    async with scripted([CALL], store) as (client, _):
        run = (await client.ask("Ask the boss.", boss("KEEP_WAITING"), pause_ttl=BRIEF)).run
        assert run.pause_expire_time.ToNanoseconds() == run.update_time.ToNanoseconds() + BRIEF.ToNanoseconds()
        stopped = (await client.watch(run.run_id))[-1].run_stopped
        assert (stopped.status, stopped.stop_reason) == (runs_pb2.RUN_STATUS_EXPIRED, runs_pb2.STOP_REASON_EXPIRED)
        assert not (await client.run(run.run_id)).HasField("pause_expire_time")


@pytest.mark.parametrize(
    ("tool", "fields", "path"),
    [
        (boss(timeout=Duration(nanos=999_999)), {}, "client_tools[0].timeout"),
        (boss(timeout=Duration(seconds=-1)), {}, "client_tools[0].timeout"),
        (boss("FAIL_RUN", None), {}, "client_tools[0].on_timeout"),
        (unknown(), {}, "client_tools[0].on_timeout"),
        (boss(), {"pause_ttl": Duration()}, "pause_ttl"),
    ],
)
async def test_a_timeout_that_means_nothing_is_refused(tool: Any, fields: dict[str, Any], path: str) -> None:
    """INVALID_ARGUMENT with the path."""
    async with scripted([], "memory") as (client, _):
        refused = await refusal(client.ask("Ask the boss.", tool, **fields))
        assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", (path,))


async def test_a_timeout_of_ten_thousand_years_is_as_good_as_none(store: str) -> None:
    """Times are 64-bit nanoseconds: it counts as a hundred years."""
    longest = Duration(seconds=315_576_000_000)
    async with scripted([CALL, says("Yes.")], store) as (client, _):
        run = (await client.ask("Ask the boss.", boss(timeout=longest), pause_ttl=longest)).run
        done = await client.answer(run.run_id, returned(run.pending_tool_calls[0], "Yes."))
        assert done.run.status == runs_pb2.RUN_STATUS_COMPLETED
