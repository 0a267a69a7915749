"""Several calls in one answer of the model: who executes what when, and what the model reads. See desk_tools."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from agentrpc.v1 import events_pb2, runs_pb2, server_service_pb2
from google.protobuf.duration_pb2 import Duration

from tests.modes import MODES, resume, start
from tests.ruled import most, outcomes, rule
from tests.scripted_openai import ScriptedOpenAI, calls, says
from tests.service import SECRET, Client, kinds, returned, scripted, serving, step, submit
from tests.test_server_tools import approve
from tests.tool_desk import Desk, Execution

pytestmark = pytest.mark.anyio

BOUND = 15.0
Wanted = tuple[str, dict[str, Any]]
"""A call that the model makes."""
PAY: Wanted = ("pay", {"amount": 7})
CODE: Wanted = ("get_secret_code", {"name": "Alice"})
ORDER: Wanted = ("order", {"article": "A-1"})
SAID = {"pay": "paid", "get_secret_code": "SECRET-42", "order": "ordered"}
ORDERS = {"server first": (PAY, CODE, ORDER), "client first": (CODE, ORDER, PAY), "approval first": (ORDER, PAY, CODE)}


def searches(count: int) -> list[Wanted]:
    """Calls of a parallel-safe tool, numbered from 0."""
    return [("search", {"query": str(number)}) for number in range(count)]


async def executions(desk: Desk, count: int) -> dict[str, Execution]:
    """The next executions that have begun, by what is searched for or by their tool."""
    begun = [await desk.execution() for _ in range(count)]
    return {execution.arguments.get("query", execution.name): execution for execution in begun}


async def until_told(client: Client, run_id: str, *texts: str) -> None:
    """Returns once the run has returns with these texts, whatever else it has."""
    wanted = set(texts)
    async with asyncio.timeout(BOUND):
        async for response in client.watching(run_id):
            wanted.discard(response.event.message_stored.message.tool_return.text)
            if not wanted:
                return
    raise AssertionError(f"not told: {wanted}")


def stops(events: Sequence[events_pb2.RunEvent]) -> list[runs_pb2.RunStatus.ValueType]:
    """The statuses of the stops among events."""
    return [event.run_stopped.status for event in events if event.HasField("run_stopped")]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", ORDERS)
async def test_a_mixed_answer_executes_each_call_once(store: str, desk: Desk, order: str, mode: str) -> None:
    """The server's own call at once, then the pause for the others, then what was approved; whoever comes first in the
    model's answer, it reads the outcomes in its own order."""
    async with scripted([calls(*ORDERS[order]), says("Done.")], store) as (client, upstream):
        starting = asyncio.ensure_future(start(client, mode, step("All.", SECRET, run_id="run-1")))
        (await executions(desk, 1))["pay"].answer("paid")
        paused = await starting
        assert kinds(paused.messages) == ["user", "tool_call", "tool_return"]
        assert paused.run.status == runs_pb2.RUN_STATUS_PAUSED
        waiting = {call.name: call for call in paused.run.pending_tool_calls}
        assert set(waiting) == {"get_secret_code", "order"}
        answers = submit(
            "run-1", returned(waiting["get_secret_code"], "SECRET-42"), approvals=[approve(waiting["order"])]
        )
        resuming = asyncio.ensure_future(resume(client, mode, paused.run, answers))
        (await executions(desk, 1))["order"].answer("ordered")
        done = await resuming
        assert outcomes(done.messages) == [("get_secret_code", "SECRET-42"), ("order", "ordered")]
        assert done.run.stop_reason == runs_pb2.STOP_REASON_END_TURN
        assert upstream.requests[1].new_returns == [SAID[name] for name, _ in ORDERS[order]]
        assert (desk.count, upstream.request_count) == (2, 2)
        upstream.check_histories()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("first", ["server", "client"])
async def test_the_caller_answers_while_the_server_works(store: str, desk: Desk, first: str, mode: str) -> None:
    """The call is listed and its return taken while a server tool of the same answer is executed; the run does not
    pause, and the model is asked once, with both outcomes in its own order."""
    batch = (PAY, CODE) if first == "server" else (CODE, PAY)
    async with scripted([calls(*batch), says("Done.")], store) as (client, upstream):
        starting = asyncio.ensure_future(start(client, mode, step("Both.", SECRET, run_id="run-1")))
        working = (await executions(desk, 1))["pay"]
        run = await client.run("run-1")
        assert run.status == runs_pb2.RUN_STATUS_RUNNING
        (code,) = run.pending_tool_calls
        answered = await client.answer("run-1", returned(code, "SECRET-42"), background=True)
        assert (answered.run.status, list(answered.receipt.remaining)) == (runs_pb2.RUN_STATUS_RUNNING, [])
        assert upstream.request_count == 1
        working.answer("paid")
        done = await starting
        assert outcomes(done.messages) == [("get_secret_code", "SECRET-42"), ("pay", "paid")]
        assert done.run.status == runs_pb2.RUN_STATUS_COMPLETED
        assert upstream.requests[1].new_returns == [SAID[name] for name, _ in batch]
        assert stops(await client.watch("run-1")) == [runs_pb2.RUN_STATUS_COMPLETED]
        assert (desk.count, upstream.request_count) == (1, 2)


@pytest.mark.parametrize("mode", MODES)
async def test_parallel_safe_tools_are_executed_together_up_to_a_bound(store: str, desk: Desk, mode: str) -> None:
    """As many as the limit says, and the next one starts when one has ended; outcomes are stored as they come, and the
    model reads them in its own order."""
    script = [calls(*searches(5)), says("Done.")]
    async with scripted(script, store, limits={"max_parallel_tool_calls": 3}) as (client, upstream):
        starting = asyncio.ensure_future(start(client, mode, step("Find.", run_id="run-1")))
        working = await executions(desk, 3)
        assert set(working) == {"0", "1", "2"}
        for place, ending in enumerate(("1", "2")):
            await client.run("run-1")
            assert desk.count == 3 + place
            working[ending].answer(f"found {ending}")
            working |= await executions(desk, 1)
            assert working[str(3 + place)]
        for ending in ("4", "3", "0"):
            working[ending].answer(f"found {ending}")
            await until_told(client, "run-1", f"found {ending}")
        done = await starting
        assert [text for _, text in outcomes(done.messages)] == [f"found {name}" for name in "12430"]
        assert upstream.requests[1].new_returns == [f"found {name}" for name in "01234"]
        assert (desk.count, upstream.request_count) == (5, 2)
        upstream.check_histories()


async def test_the_bound_is_told(store: str) -> None:
    """GetServerInfo says how many calls may be executed at the same time."""
    async with scripted([], store, limits={"max_parallel_tool_calls": 3}) as (client, _):
        info = await client.server.GetServerInfo(server_service_pb2.GetServerInfoRequest())
        assert info.limits.max_parallel_tool_calls == 3


@pytest.mark.parametrize(
    ("batch", "groups"),
    [
        ("search search pay search pay", ["search search search", "pay", "pay"]),
        ("pay search pay search", ["pay", "search search", "pay"]),
        ("pay look_up pay", ["pay", "look_up", "pay"]),
        ("fetch search", ["fetch search"]),
    ],
)
async def test_other_tools_are_executed_by_themselves(
    store: str, desk: Desk, batch: str, groups: Sequence[str]
) -> None:
    """In the model's order, one after the other, and never beside a parallel-safe one."""
    arguments: dict[str, Any] = {
        "search": {"query": "x"},
        "fetch": {"url": "x"},
        "pay": {"amount": 7},
        "look_up": {"name": "x"},
    }
    script = [calls(*((name, arguments[name]) for name in batch.split())), says("Done.")]
    async with scripted(script, store) as (client, upstream):
        starting = asyncio.ensure_future(client.ask("All.", run_id="run-1"))
        begun = 0
        for group in groups:
            working = [await desk.execution() for _ in group.split()]
            begun += len(working)
            assert sorted(execution.name for execution in working) == sorted(group.split())
            await client.run("run-1")
            assert desk.count == begun
            for number, execution in enumerate(working):
                assert desk.count == begun
                execution.answer(f"{begun} {number}")
                await until_told(client, "run-1", f"{begun} {number}")
        await starting
        assert (desk.count, upstream.request_count) == (len(batch.split()), 2)


async def test_a_failure_of_one_call_leaves_the_others_alone(store: str, desk: Desk) -> None:
    """One raises and one does not end in time, while another works on; the model reads each outcome."""
    tools = "tests.server_tools:broken,tests.server_tools:endless,tests.desk_tools:search"
    script = [calls(*searches(1), ("broken", {}), ("endless", {})), says("Done.")]
    async with scripted(script, store, tools=tools) as (client, upstream):
        starting = asyncio.ensure_future(client.ask("All.", run_id="run-1"))
        working = (await executions(desk, 1))["0"]
        late = "Error: timed out after 0.05 s; its outcome is unknown, it may have been executed"
        await until_told(client, "run-1", "Error: ValueError: it is broken", late)
        working.answer("found")
        await starting
        assert upstream.requests[1].new_returns == ["found", "Error: ValueError: it is broken", late]


@pytest.mark.parametrize("end", ["cancelled", "timed out"])
async def test_the_end_of_a_run_ends_all_that_is_executed(store: str, desk: Desk, end: str) -> None:
    """What had begun has an unknown outcome, what had not is cancelled, and nothing begins any more."""
    timeout = Duration(nanos=300_000_000) if end == "timed out" else None
    script = [calls(*searches(3), PAY, CODE)]
    async with scripted(script, store, limits={"max_parallel_tool_calls": 2}) as (client, upstream):
        await client.ask("All.", SECRET, run_id="run-1", background=True, run_timeout=timeout)
        working = await executions(desk, 2)
        if end == "cancelled":
            await client.cancel("run-1")
        for execution in working.values():
            await execution.ended()
        events = await asyncio.wait_for(client.watch("run-1"), BOUND)
        told = [event.message_stored.message for event in events if event.HasField("message_stored")]
        texts = [text.partition(":")[0] for _, text in outcomes(told)]
        assert texts == ["Outcome unknown", "Outcome unknown", "Cancelled", "Cancelled", "Cancelled"]
        wanted = runs_pb2.RUN_STATUS_CANCELLED if end == "cancelled" else runs_pb2.RUN_STATUS_FAILED
        assert stops(events) == [wanted]
        assert (desk.count, upstream.request_count) == (2, 1)


async def test_an_owner_that_lost_its_run_ends_all_that_it_executes(shared_store: str, desk: Desk) -> None:
    """Another process cancelled the run: the outcome of one call is refused, and the other calls are not executed to
    their end."""
    async with (
        ScriptedOpenAI([calls(*searches(3))]) as upstream,
        serving(upstream, shared_store, lease_seconds=600.0) as here,
        serving(upstream, shared_store, lease_seconds=600.0) as there,
    ):
        await here.ask("Find.", run_id="run-1", background=True)
        working = await executions(desk, 3)
        ended = await there.cancel("run-1")
        working["1"].answer("found")
        for execution in working.values():
            await execution.ended()
        assert await here.run("run-1") == ended
        texts = [text for _, text in outcomes(await here.messages(ended.conversation_id))]
        assert len(texts) == 3 and all(text.startswith("Outcome unknown") for text in texts)


async def test_tool_rules_hold_for_calls_that_are_executed_together(store: str, desk: Desk) -> None:
    """A call above a maximum is refused before anything starts, and a terminal tool ends the run only when its
    siblings have their outcomes, too."""
    rules = [most("search", 2), rule(terminal="fetch")]
    script = [calls(("fetch", {"url": "x"}), *searches(3))]
    async with scripted(script, store) as (client, upstream):
        await client.create_agent("strict", server_tools=["search", "fetch"], tool_rules=rules)
        starting = asyncio.ensure_future(client.ask("All.", agent_id="strict", run_id="run-1"))
        working = await executions(desk, 3)
        assert set(working) == {"fetch", "0", "1"}
        working["fetch"].answer("fetched")
        await until_told(client, "run-1", "fetched")
        assert (await client.run("run-1")).status == runs_pb2.RUN_STATUS_RUNNING
        working["1"].answer("found 1")
        working["0"].answer("found 0")
        done = await starting
        assert done.run.stop_reason == runs_pb2.STOP_REASON_TOOL_RULE
        assert "'search' was called 2 times, which is the most in a run" in outcomes(done.messages)[0][1]
        assert (desk.count, upstream.request_count) == (3, 1)


async def test_the_output_of_the_last_call_decides_whichever_ends_first(store: str, desk: Desk) -> None:
    """A conditional rule reads the output of the call that the model made last, not of the one that ended last."""
    rules = [rule(conditional={"tool_name": "search", "tools_by_output": {"yes": "fetch"}, "default_tool": "pay"})]
    script = [calls(("fetch", {"url": "x"}), *searches(1)), says("Never.", unruly=True)]
    async with scripted(script, store) as (client, upstream):
        await client.create_agent("strict", server_tools=["search", "fetch", "pay"], tool_rules=rules)
        starting = asyncio.ensure_future(client.ask("All.", agent_id="strict", run_id="run-1", max_steps=2))
        working = await executions(desk, 2)
        working["0"].answer("yes")
        await until_told(client, "run-1", "yes")
        working["fetch"].answer("no")
        await starting
        assert upstream.requests[1].tool_names == ["fetch"]
