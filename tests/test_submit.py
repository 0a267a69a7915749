"""Submits: returns are accepted exactly once, in any number of parts, from anyone, and however often they are sent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agentrpc.v1 import agent_service_pb2, run_service_pb2, runs_pb2, tools_pb2

from tests.modes import MODES, resume, start
from tests.scripted_openai import Gate, Reply, Request, calls, says
from tests.server_tools import executions, hold_gates
from tests.service import SECRET, Client, durable, event_kinds, kinds, refusal, returned, scripted, step, submit

pytestmark = pytest.mark.anyio

NAMES = ("Alice", "Bob", "Carol")


def asks_once(*names: str) -> Any:
    """A model that asks for these codes at once, and repeats what it was told."""

    def script(request: Request) -> Reply:
        if request.last["role"] == "tool":
            return says(" ".join(request.new_returns))
        return calls(*(("get_secret_code", {"name": name}) for name in names))

    return script


async def submit_stream(client: Client, request: agent_service_pb2.SubmitToolReturnsRequest) -> list[Any]:
    """The events of a StreamToolReturns."""
    stream = agent_service_pb2.StreamToolReturnsRequest(submit=request)
    return [response.event async for response in client.agent.StreamToolReturns(stream)]


@pytest.mark.parametrize("mode", MODES)
async def test_parallel_calls_may_be_answered_in_parts(store: str, mode: str) -> None:
    """After one of three returns two remain and the model is not called; after the others it is called once, and
    reads them in the order of its calls."""
    async with scripted(asks_once(*NAMES), store) as (client, upstream):
        paused = await start(client, mode, step("Codes?", SECRET))
        alice, bob, carol = paused.run.pending_tool_calls
        assert [call.index for call in (alice, bob, carol)] == [0, 1, 2]

        part = await resume(client, mode, paused.run, submit(paused.run.run_id, returned(carol, "THREE")))
        assert part.receipt is not None
        assert list(part.receipt.accepted_tool_call_ids) == [carol.tool_call_id]
        assert list(part.receipt.remaining) == [alice, bob] == list(part.run.pending_tool_calls)
        assert part.run.status == runs_pb2.RUN_STATUS_PAUSED
        assert part.run.stop_reason == runs_pb2.STOP_REASON_REQUIRES_APPROVAL
        assert kinds(part.messages) == ["tool_return"]
        assert upstream.request_count == 1

        rest = submit(paused.run.run_id, returned(bob, "TWO"), returned(alice, "ONE"))
        done = await resume(client, mode, part.run, rest)
        assert done.receipt is not None and not done.receipt.remaining
        assert [m.tool_return.text for m in done.messages[:2]] == ["TWO", "ONE"]
        assert done.messages[2].assistant.text == "ONE TWO THREE"
        assert done.run.stop_reason == runs_pb2.STOP_REASON_END_TURN
        assert upstream.request_count == 2
        stops = [e.run_stopped for e in await client.watch(paused.run.run_id) if e.HasField("run_stopped")]
        assert [(len(stop.remaining), stop.final) for stop in stops] == [(3, False), (2, False), (0, True)]


async def test_three_submits_at_one_instant_lead_to_one_model_call(store: str) -> None:
    """All are answered, whoever was the last; twenty times."""
    async with scripted(asks_once(*NAMES), store) as (client, upstream):
        for attempt in range(1, 21):
            run = (await client.ask("Codes?", SECRET)).run
            answers = await asyncio.gather(
                *(client.answer(run.run_id, returned(call, "X")) for call in run.pending_tool_calls)
            )
            assert sorted(len(answer.receipt.remaining) for answer in answers) == [0, 1, 2]
            (last,) = [answer for answer in answers if not answer.receipt.remaining]
            assert last.run.status == runs_pb2.RUN_STATUS_COMPLETED
            assert kinds(last.messages) == ["tool_return", "assistant"]
            assert upstream.request_count == 2 * attempt
        upstream.check_histories()


@pytest.mark.parametrize("request_ids", [("", ""), ("request-1", "request-1"), ("request-1", "request-2")])
async def test_racing_submits_of_the_same_outcome_are_one(store: str, request_ids: tuple[str, str]) -> None:
    """Each gets the same answer, and the model is called once; fifty times."""
    async with scripted(asks_once("Alice"), store) as (client, upstream):
        for attempt in range(1, 51):
            run = (await client.ask("Code?", SECRET)).run
            (call,) = run.pending_tool_calls
            one, other = await asyncio.gather(
                *(client.answer(run.run_id, returned(call, "X"), request_id=key) for key in request_ids)
            )
            assert list(one.messages) == list(other.messages)
            assert one.run == other.run
            assert upstream.request_count == 2 * attempt
            if request_ids[0] == request_ids[1]:
                assert one.receipt == other.receipt
                assert list(one.receipt.accepted_tool_call_ids) == [call.tool_call_id]
            else:
                accepted = sorted(len(answer.receipt.accepted_tool_call_ids) for answer in (one, other))
                settled = sorted(len(answer.receipt.already_settled_tool_call_ids) for answer in (one, other))
                assert (accepted, settled) == ([0, 1], [0, 1])


async def test_of_racing_submits_with_different_outcomes_one_wins(store: str) -> None:
    """The other learns so; the model is called once, with the winner's; fifty times."""
    async with scripted(asks_once("Alice"), store) as (client, upstream):
        for attempt in range(1, 51):
            run = (await client.ask("Code?", SECRET)).run
            (call,) = run.pending_tool_calls
            results = await asyncio.gather(
                *(client.answer(run.run_id, returned(call, text)) for text in ("ONE", "TWO")), return_exceptions=True
            )
            (won,) = [result for result in results if not isinstance(result, BaseException)]
            lost = "TWO" if won.messages[0].tool_return.text == "ONE" else "ONE"
            refused = await refusal(client.answer(run.run_id, returned(call, lost)))
            assert (refused.code, refused.reason) == ("ALREADY_EXISTS", "CALL_ALREADY_SETTLED")
            assert upstream.request_count == 2 * attempt
            assert upstream.requests[-1].new_returns == [won.messages[0].tool_return.text]


async def test_a_submit_at_the_instant_of_the_pause_is_accepted(store: str) -> None:
    """Sent as soon as the stream shows the pause, before the stream has ended: never refused; five hundred times."""
    async with scripted(asks_once("Alice"), store) as (client, upstream):
        for _attempt in range(500):
            stream = client.agent.Stream(agent_service_pb2.StreamRequest(step=step("Code?", SECRET)))
            async for response in stream:
                if response.event.HasField("run_stopped"):
                    (call,) = response.event.run_stopped.remaining
                    break
            done = await client.answer(response.event.run_id, returned(call, "X"))
            assert done.run.status == runs_pb2.RUN_STATUS_COMPLETED
        assert upstream.request_count == 1000


@pytest.mark.parametrize("mode", MODES)
async def test_a_repeated_request_id_is_answered_the_same(store: str, mode: str) -> None:
    """Same receipt, same window, no second model call; while the run is paused again, and after its end."""

    def script(request: Request) -> Reply:
        if len(request.returns) < 2:
            return calls(("get_secret_code", {"name": NAMES[len(request.returns)]}))
        return says("Thanks.")

    async with scripted(script, store) as (client, upstream):
        paused = await start(client, mode, step("Codes?", SECRET))
        run_id = paused.run.run_id
        request = submit(run_id, returned(paused.run.pending_tool_calls[0], "ONE"), request_id="request-1")
        first = await resume(client, mode, paused.run, request)
        again = await resume(client, mode, paused.run, request)
        assert (again.run, again.receipt, again.messages) == (first.run, first.receipt, first.messages)
        assert durable(again.events) == durable(first.events)
        assert kinds(first.messages) == ["tool_return", "tool_call"]
        assert first.receipt is not None and first.receipt.request_id == "request-1"

        await client.answer(run_id, returned(first.run.pending_tool_calls[0], "TWO"))
        ended = await resume(client, mode, paused.run, request)
        assert (ended.receipt, ended.messages) == (first.receipt, first.messages)
        assert durable(ended.events) == durable(first.events)
        assert ended.run.status == runs_pb2.RUN_STATUS_COMPLETED
        assert upstream.request_count == 3


async def test_a_request_id_with_other_outcomes_is_refused(store: str) -> None:
    """For another text, another call and a subset alike; the first receipt stands."""
    async with scripted(asks_once("Alice", "Bob"), store) as (client, _):
        run = (await client.ask("Codes?", SECRET)).run
        alice, bob = run.pending_tool_calls
        part = await client.answer(run.run_id, returned(alice, "ONE"), request_id="request-1")
        for returns in ([returned(alice, "two")], [returned(bob, "ONE")], [returned(alice, "ONE"), returned(bob, "B")]):
            refused = await refusal(client.answer(run.run_id, *returns, request_id="request-1"))
            assert (refused.code, refused.reason) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")
            assert refused.metadata == {"request_id": "request-1"}
            assert "request-1" in refused.message and run.run_id in refused.message
        assert (await client.answer(run.run_id, returned(alice, "ONE"), request_id="request-1")) == part


async def test_without_a_request_id_the_outcomes_are_the_key(store: str) -> None:
    """The same outcomes, in any order, get the same receipt, also after the end; another outcome is refused with
    what the call has."""
    async with scripted(asks_once("Alice", "Bob"), store) as (client, upstream):
        run = (await client.ask("Codes?", SECRET)).run
        alice, bob = run.pending_tool_calls
        first = await client.answer(run.run_id, returned(alice, "ONE"), returned(bob, "TWO"))
        again = await client.answer(run.run_id, returned(bob, "TWO"), returned(alice, "ONE"))
        assert again == first
        failed = returned(bob, "TWO", status=tools_pb2.TOOL_RETURN_STATUS_ERROR)
        for other in (returned(bob, "three"), failed, returned(bob, "TWO", stdout="x")):
            refused = await refusal(client.answer(run.run_id, other))
            assert (refused.code, refused.reason) == ("ALREADY_EXISTS", "CALL_ALREADY_SETTLED")
            assert refused.message.startswith(f"tool_returns[0].tool_call_id: {bob.tool_call_id}")
            assert refused.metadata["outcome"] == "RETURNED" and int(refused.metadata["time"]) > 0
        assert upstream.request_count == 2
        assert await client.run(run.run_id) == first.run


async def test_known_outcomes_under_a_new_request_id_change_nothing(store: str) -> None:
    """The receipt lists them as already settled; sent along with new ones, only the new ones are accepted."""
    async with scripted(asks_once("Alice", "Bob"), store) as (client, upstream):
        run = (await client.ask("Codes?", SECRET)).run
        alice, bob = run.pending_tool_calls
        part = await client.answer(run.run_id, returned(alice, "ONE"), request_id="request-1")
        again = await client.answer(run.run_id, returned(alice, "ONE"), request_id="request-2")
        assert list(again.receipt.already_settled_tool_call_ids) == [alice.tool_call_id]
        assert not again.receipt.accepted_tool_call_ids and list(again.receipt.remaining) == [bob]
        assert again.run == part.run and list(again.messages) == list(part.messages)

        both = [returned(alice, "ONE"), returned(bob, "TWO")]
        done = await client.answer(run.run_id, *both, request_id="request-3")
        assert list(done.receipt.accepted_tool_call_ids) == [bob.tool_call_id]
        assert list(done.receipt.already_settled_tool_call_ids) == [alice.tool_call_id]
        late = submit(run.run_id, *both, request_id="request-4")
        events = await submit_stream(client, late)
        assert len(events[0].tool_returns_accepted.already_settled_tool_call_ids) == 2
        assert event_kinds(events)[0] == "tool_returns_accepted" and event_kinds(events)[-1] == "run_stopped"
        assert (await submit_stream(client, late)) == events
        assert upstream.request_count == 2
        assert await client.run(run.run_id) == done.run


async def test_a_call_may_be_answered_while_the_server_works_on_its_sibling(store: str) -> None:
    """Acceptance depends on the call, not on the run's status. The last outcome, here the server's, resumes the run."""

    def script(request: Request) -> Reply:
        if request.last["role"] == "tool":
            return says(" ".join(request.new_returns))
        return calls(("get_secret_code", {"name": "Alice"}), ("hold", {}))

    async with scripted(script, store, tools="tests.server_tools:hold") as (client, upstream):
        gate = hold_gates["run-1"] = Gate()
        starting = asyncio.ensure_future(client.ask("Codes?", SECRET, run_id="run-1"))
        await gate.reached(1)
        run = await client.run("run-1")
        assert run.status == runs_pb2.RUN_STATUS_RUNNING
        (alice,) = run.pending_tool_calls
        answering = asyncio.ensure_future(submit_stream(client, submit("run-1", returned(alice, "ONE"))))
        await return_accepted(client, "run-1")
        gate.open()
        events = await answering
        assert event_kinds(events)[0] == "tool_returns_accepted"
        assert events[-1].run_stopped.final
        assert (await starting).messages[-1].assistant.text == "ONE held"
        assert upstream.request_count == 2


async def return_accepted(client: Client, run_id: str) -> None:
    """Returns when a return has been accepted."""
    stream = client.runs.WatchRun(run_service_pb2.WatchRunRequest(run_id=run_id))
    async for response in stream:
        if response.event.HasField("tool_returns_accepted"):
            stream.cancel()
            return


async def test_a_return_after_the_run_was_cancelled_is_refused_with_outcome_and_time(store: str) -> None:
    """The call was closed with the run; the message says so, and the next message of the conversation works."""
    script = [calls(("get_secret_code", {"name": "Alice"}), ("hold", {})), says("Hello.")]
    async with scripted(script, store, tools="tests.server_tools:hold") as (client, upstream):
        gate = hold_gates["run-2"] = Gate()
        dropped = client.agent.Step(
            step("Code?", SECRET, run_id="run-2", on_disconnect=agent_service_pb2.ON_DISCONNECT_CANCEL)
        )
        await gate.reached(1)
        (alice,) = (await client.run("run-2")).pending_tool_calls
        dropped.cancel()
        stopped = (await client.watch("run-2"))[-1].run_stopped
        assert (stopped.status, stopped.stop_reason) == (
            runs_pb2.RUN_STATUS_CANCELLED,
            runs_pb2.STOP_REASON_CANCELLED,
        )
        refused = await refusal(client.answer("run-2", returned(alice, "ONE")))
        assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "CALL_CANCELLED")
        assert refused.metadata["tool_call_id"] == alice.tool_call_id
        assert refused.metadata["outcome"] == "CANCELLED" and int(refused.metadata["time"]) > 0
        assert alice.tool_call_id in refused.message and "CANCELLED" in refused.message
        conversation_id = (await client.run("run-2")).conversation_id
        assert (await client.ask("Hello?", conversation_id=conversation_id)).messages[-1].assistant.text == "Hello."
        assert ["Cancelled" in text or "unknown" in text for text in upstream.requests[1].returns.values()] == [
            True
        ] * 2
        assert sum(executions[call_id] for call_id in upstream.requests[1].returns) == 1


async def test_background_submits_are_answered_at_once(store: str) -> None:
    """With the receipt, while the model is still working."""
    gate = Gate()
    async with scripted([calls(("get_secret_code", {"name": "A"})), says("Thanks.", gate=gate)], store) as (client, _):
        run = (await client.ask("Code?", SECRET)).run
        accepted = await client.answer(run.run_id, returned(run.pending_tool_calls[0], "ONE"), background=True)
        assert accepted.run.status == runs_pb2.RUN_STATUS_RUNNING
        assert kinds(accepted.messages) == ["tool_return"]
        assert len(accepted.receipt.accepted_tool_call_ids) == 1
        gate.open()
        assert (await client.watch(run.run_id))[-1].run_stopped.final
