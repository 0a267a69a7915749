"""Starts whose server tools wait for the caller's part of an answer: `server_tools_wait`."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import runs_pb2
from google.protobuf.duration_pb2 import Duration

from agent_service.domain.message import ToolReturnContent
from agent_service.domain.moves import CANCELLED_BEFORE, Execute, cancel, next_of
from agent_service.domain.run import RunStatus
from agent_service.domain.tool import OnTimeout, Outcome
from agent_service.engine.loop import moved
from tests.modes import MODES, resume, start
from tests.ruled import outcomes
from tests.scripted_openai import calls, says
from tests.service import SECRET, kinds, returned, scripted, step, submit
from tests.store_contract import TENANT, Kept, approval, approves, client, denies, opened, returns, server, timed
from tests.test_batches import BOUND, CODE, ORDER, ORDERS, PAY, SAID, executions, searches, stops
from tests.test_server_tools import approve, deny
from tests.tool_desk import Desk

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", ORDERS)
async def test_server_tools_wait_for_the_caller(store: str, desk: Desk, order: str, mode: str) -> None:
    """The run pauses at once; when the last call is answered, the server executes its own and the approved ones in the
    model's order, and each once."""
    batch = ORDERS[order]
    async with scripted([calls(*batch), says("Done.")], store) as (client, upstream):
        starting = start(client, mode, step("All.", SECRET, run_id="run-1", server_tools_wait=True))
        paused = await asyncio.wait_for(starting, BOUND)
        assert kinds(paused.messages) == ["user", "tool_call"]
        assert paused.run.status == runs_pb2.RUN_STATUS_PAUSED
        waiting = {call.name: call for call in paused.run.pending_tool_calls}
        assert set(waiting) == {"get_secret_code", "order"}
        approved = submit("run-1", approvals=[approve(waiting["order"])])
        part = await resume(client, mode, paused.run, approved)
        assert [call.name for call in part.run.pending_tool_calls] == ["get_secret_code"]
        assert desk.count == 0

        last = submit("run-1", returned(waiting["get_secret_code"], "SECRET-42"))
        resuming = asyncio.ensure_future(resume(client, mode, part.run, last))
        for name in (name for name, _ in batch if name in ("pay", "order")):
            execution = await desk.execution()
            assert execution.name == name
            execution.answer(SAID[name])
        done = await resuming
        assert done.run.stop_reason == runs_pb2.STOP_REASON_END_TURN
        assert upstream.requests[1].new_returns == [SAID[name] for name, _ in batch]
        assert (desk.count, upstream.request_count) == (2, 2)


async def test_an_answer_without_calls_for_the_caller_waits_for_nothing(store: str, desk: Desk) -> None:
    """Server tools alone are executed as ever, together where they may be."""
    async with scripted([calls(*searches(2)), says("Done.")], store) as (client, upstream):
        starting = asyncio.ensure_future(client.ask("Find.", run_id="run-1", server_tools_wait=True))
        for name, execution in (await executions(desk, 2)).items():
            execution.answer(f"found {name}")
        assert (await starting).run.status == runs_pb2.RUN_STATUS_COMPLETED
        assert upstream.requests[1].new_returns == ["found 0", "found 1"]


async def test_a_denial_is_an_answer_too(store: str, desk: Desk) -> None:
    """After it the server's own calls are executed, and the denied one is not."""
    async with scripted([calls(PAY, ORDER), says("Done.")], store) as (client, upstream):
        paused = (await asyncio.wait_for(client.ask("Both.", run_id="run-1", server_tools_wait=True), BOUND)).run
        denied = client.answer("run-1", approvals=[deny(paused.pending_tool_calls[0], "too dear")])
        resuming = asyncio.ensure_future(denied)
        (await executions(desk, 1))["pay"].answer("paid")
        await resuming
        assert upstream.requests[1].new_returns == ["paid", "Denied: too dear"]
        assert desk.count == 1


async def test_server_tools_start_when_the_last_call_has_expired(store: str, desk: Desk) -> None:
    """A deadline settles the call as an answer does."""
    quick: Any = type(SECRET)()
    quick.CopyFrom(SECRET)
    quick.timeout.CopyFrom(Duration(nanos=10_000_000))
    async with scripted([calls(PAY, CODE), says("Done.")], store) as (client, upstream):
        await asyncio.wait_for(client.ask("Both.", quick, run_id="run-1", server_tools_wait=True), BOUND)
        (await executions(desk, 1))["pay"].answer("paid")
        events = await asyncio.wait_for(client.watch("run-1"), BOUND)
        assert stops(events) == [runs_pb2.RUN_STATUS_PAUSED, runs_pb2.RUN_STATUS_COMPLETED]
        assert [text.partition(".")[0] for text in upstream.requests[1].new_returns] == [
            "paid",
            "No answer came in time",
        ]


async def test_a_dry_run_of_the_last_answer_names_what_is_executed_first(store: str, desk: Desk) -> None:
    """No request can be built before the server tools have their outcomes."""
    async with scripted([calls(PAY, CODE)], store) as (client, _):
        paused = (
            await asyncio.wait_for(client.ask("Both.", SECRET, run_id="run-1", server_tools_wait=True), BOUND)
        ).run
        answers = submit("run-1", returned(paused.pending_tool_calls[0], "SECRET-42"))
        built = await client.agent.BuildRequest(pb.BuildRequestRequest(submit=answers))
        assert [call.name for call in built.not_buildable.server_tool_calls] == ["pay"]
        assert desk.count == 0


async def test_a_cancelled_pause_executes_nothing(store: str, desk: Desk) -> None:
    """The server's own calls are told to the model as not executed."""
    async with scripted([calls(PAY, CODE)], store) as (client, _):
        paused = (
            await asyncio.wait_for(client.ask("Both.", SECRET, run_id="run-1", server_tools_wait=True), BOUND)
        ).run
        await client.cancel("run-1")
        told = outcomes(await client.messages(paused.conversation_id))
        assert told[0] == ("pay", CANCELLED_BEFORE)
        assert desk.count == 0


async def states(kept: Kept) -> list[str]:
    """The states of the calls, in the model's order."""
    return [call.state.value for call in (await kept.store.get_run(TENANT, "run_1")).calls]


async def runnable(kept: Kept) -> list[str]:
    """The calls that the server executes next."""
    snapshot = await kept.store.get_run(TENANT, "run_1")
    coming = next_of(snapshot.run, snapshot.calls)
    return [call.tool_call_id for call in coming.calls] if isinstance(coming, Execute) else []


async def test_every_way_to_the_last_answer_goes_on_to_the_server_tools(store: str) -> None:
    """A return, an approval, a denial or a passed deadline; before it, nothing may start."""
    async with opened(store) as kept:
        paused = await kept.paused(
            server("own"),
            client("a"),
            approval("b"),
            approval("c"),
            timed("d"),
            server_tools_wait=True,
        )
        assert paused.run.status is RunStatus.PAUSED
        await kept.submit(returns("a"), request_id="1")
        await kept.submit(approves("b"), request_id="2")
        await kept.submit(denies("c"), request_id="3")
        assert await states(kept) == ["proposed", "returned", "approved", "denied", "pending"]
        assert await runnable(kept) == []
        kept.clock.now = max(call.deadline for call in (await kept.store.get_run(TENANT, "run_1")).calls)
        assert await kept.expire()
        assert await runnable(kept) == ["own", "b"]


@pytest.mark.parametrize("end", ["cancel", "deadline", "pause"])
async def test_calls_that_waited_are_closed_with_their_run(store: str, end: str) -> None:
    """By a cancel, by a deadline that ends the run, or by the end of the pause: they were not executed."""
    async with opened(store) as kept:
        on_timeout = OnTimeout.FAIL_RUN if end == "deadline" else OnTimeout.KEEP_WAITING
        paused = await kept.paused(server("own"), replace(timed("a"), on_timeout=on_timeout), server_tools_wait=True)
        if end == "cancel":
            await kept.store.move(TENANT, "run_1", moved(cancel))
        else:
            kept.clock.now = paused.calls[1].deadline if end == "deadline" else paused.run.pause_expire_time
            assert not await kept.expire()
        told = {
            m.content.tool_call_id: m.content for m in await kept.messages() if isinstance(m.content, ToolReturnContent)
        }
        assert (told["own"].outcome, told["own"].text) == (Outcome.CANCELLED, CANCELLED_BEFORE)
