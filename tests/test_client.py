"""The Python client against a real service: whole conversations, with what its user sees."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from agentrpc.v1 import agent_service_pb2, messages_pb2, run_service_pb2, runs_pb2, tools_pb2

from agent_service.client import (
    Accepted,
    AgentClient,
    ConflictError,
    InvalidRequestError,
    MessageStored,
    NotFoundError,
    Restarted,
    Retry,
    RunFailedError,
    Stopped,
    TextDelta,
    WaitingCall,
)
from tests.scripted_openai import Gate, breaks_off, calls, fails, says, silent
from tests.service import kinds
from tests.talking import ALICE, collected, get_secret_code, talking

pytestmark = pytest.mark.anyio


async def test_a_run_with_a_tool_of_this_process(store: str) -> None:
    """Asked, called, executed, answered: one call of `run`, and the result holds it all."""
    async with talking([ALICE, says("It is AZURE-7731.")], store) as (client, direct, upstream):
        result = await client.run("What is the secret code of Alice?", tools=[get_secret_code])
        assert result.text == "It is AZURE-7731."
        assert (result.status, result.stop_reason, result.pending) == ("COMPLETED", "END_TURN", ())
        assert kinds(result.messages) == ["user", "tool_call", "tool_return", "assistant"]
        assert list(result.messages) == await direct.messages(result.conversation_id)
        run = await client.get_run(result.run_id)
        assert (run.conversation_id, run.usage, run.agent_id) == (result.conversation_id, result.usage, result.agent_id)
        (offered,) = upstream.requests[0].body["tools"]
        assert offered["function"]["description"] == "Returns the secret code of a person."
        assert list(upstream.requests[1].returns.values()) == ["AZURE-7731"]


async def test_a_run_goes_over_any_number_of_pauses() -> None:
    """Each call is answered, whatever the number of model answers that hold some."""
    script = [ALICE, calls(("get_secret_code", {"name": "Bob"})), ALICE, says("Enough.")]
    async with talking(script) as (client, _, upstream):
        result = await client.run("Codes?", tools=[get_secret_code])
        assert result.text == "Enough."
        assert list(upstream.requests[-1].returns.values()) == ["AZURE-7731", "CORAL-1102", "AZURE-7731"]


async def test_a_conversation_goes_on() -> None:
    """Its runs are in one conversation, with the options that it was made with."""
    async with talking([ALICE, says("AZURE-7731."), says("It was AZURE-7731.")]) as (client, _, upstream):
        conversation = client.conversation(tools=[get_secret_code], step=agent_service_pb2.StepRequest(max_steps=7))
        assert conversation.conversation_id == ""
        first = await conversation.run("What is the code of Alice?")
        second = await conversation.run("What was it?", tool_choice="none")
        assert first.conversation_id == second.conversation_id == conversation.conversation_id != ""
        assert second.text == "It was AZURE-7731."
        assert upstream.requests[2].body["tool_choice"] == "none"
        assert (await client.get_run(second.run_id)).max_steps == 7
        messages = await client.messages(conversation.conversation_id)
        assert messages == [*first.messages, *second.messages]


async def test_events_come_as_the_model_writes() -> None:
    """Typed, in order, with the event of the contract behind each."""
    gate = Gate()
    async with talking([says(["Good", " day"], gate=gate)]) as (client, _, _upstream):
        events = aiter(client.stream("Hi"))
        accepted = await anext(events)
        assert isinstance(accepted, Accepted)
        assert accepted.agent_id == "default"
        told = []
        for text in ("Good", " day"):
            gate.release()
            while not isinstance(event := await anext(events), TextDelta):
                told.append(event)
            assert event.text == text
            assert event.raw.text_delta.text == text
        gate.open()
        rest = [event async for event in events]
        assert [type(event) for event in rest] == [MessageStored, Stopped]
        assert rest[-1].raw.run_stopped.final
        assert [event.sequence for event in (accepted, *told, *rest)] == [1, 2, 3, 4, 5]


async def test_calls_of_one_pause_are_executed_at_the_same_time(store: str) -> None:
    """And each return is stored when it is there, not when the slowest is."""
    both = asyncio.Barrier(2)
    slow = asyncio.Event()

    async def wait(name: str) -> str:
        """Waits."""
        await both.wait()
        if name == "slow":
            await slow.wait()
        return name

    script = [calls(("wait", {"name": "slow"}), ("wait", {"name": "fast"})), says("Done.")]
    async with talking(script, store) as (client, direct, upstream):
        stream = client.stream("Go", tools=[wait])
        async for event in stream:
            if isinstance(event, MessageStored) and event.message.tool_return.text == "fast":
                (left,) = (await direct.run(stream.run_id)).pending_tool_calls
                assert json.loads(left.arguments_json) == {"name": "slow"}
                slow.set()
        assert stream.result.text == "Done."
        assert list(upstream.requests[1].returns.values()) == ["slow", "fast"]


async def test_returns_that_are_there_together_are_sent_together() -> None:
    """One submit for calls that are done at nearly the same time."""

    async def echo(text: str) -> str:
        """Repeats."""
        for _ in range("abc".index(text)):
            await asyncio.sleep(0)
        return text

    script = [calls(*(("echo", {"text": text}) for text in "abc")), says("Done.")]
    async with talking(script) as (client, direct, _):
        result = await client.run("Go", tools=[echo])
        events = await direct.watch(result.run_id)
        receipts = [event.tool_returns_accepted for event in events if event.HasField("tool_returns_accepted")]
        assert [len(receipt.accepted_tool_call_ids) for receipt in receipts] == [3]


async def test_what_a_tool_raises_is_told_to_the_model(caplog: pytest.LogCaptureFixture) -> None:
    """As an error return; here it is logged. The run goes on."""
    async with talking([calls(("get_secret_code", {"name": "Eve"})), says("Unknown.")]) as (client, _, _upstream):
        result = await client.run("Code of Eve?", tools=[get_secret_code])
    (back,) = (message.tool_return for message in result.messages if message.HasField("tool_return"))
    assert (back.status, back.text) == (tools_pb2.TOOL_RETURN_STATUS_ERROR, "Error: KeyError: 'Eve'")
    assert [record.levelname for record in caplog.records if record.name == "agent_service.client"] == ["WARNING"]


async def test_a_run_that_fails_is_an_error_with_its_result() -> None:
    """FAILED for good."""
    async with talking([fails(400, "bad request")]) as (client, _, _upstream):
        with pytest.raises(RunFailedError) as caught:
            await client.run("Hi")
        result = caught.value.result
        assert (result.status, result.stop_reason) == ("FAILED", "LLM_API_ERROR")
        assert result.error is not None
        assert result.run_id in str(caught.value)
        assert "400" in str(caught.value)


async def test_an_interrupted_run_goes_on_after_a_retry(store: str) -> None:
    """INTERRUPTED is an error, too; `retry` and `resume` go on, and all of the run is in the result."""
    async with talking([ALICE, fails(503, "overloaded"), says("AZURE-7731.")], store) as (client, _, _upstream):
        with pytest.raises(RunFailedError) as caught:
            await client.run("Code of Alice?", tools=[get_secret_code])
        assert caught.value.result.status == "INTERRUPTED"
        run_id = caught.value.result.run_id
        assert (await client.retry(run_id)).status == runs_pb2.RUN_STATUS_RUNNING
        result = await client.resume(run_id, tools=[get_secret_code])
        assert result.text == "AZURE-7731."
        assert kinds(result.messages) == ["user", "tool_call", "tool_return", "assistant"]


async def test_an_answer_that_breaks_off_is_dropped() -> None:
    """The event names the message whose deltas are void."""
    script = [breaks_off(says(["It is", " no"]), after=1), says("It is so.")]
    async with talking(script) as (client, _, _upstream):
        stream = client.stream("Hi")
        events = [event async for event in stream]
    (restarted,) = (event for event in events if isinstance(event, Restarted))
    first = next(event for event in events if isinstance(event, TextDelta))
    assert restarted.dropped == (first.message_id,)
    assert restarted.reason
    assert stream.result.text == "It is so."


@pytest.mark.parametrize(("choice", "status"), [("continue", "RUNNING"), ("cancel", "CANCELLED")])
async def test_leaving_ends_the_waiting_or_the_run(store: str, choice: Any, status: str) -> None:
    """As `on_disconnect` says."""
    async with talking([silent()], store) as (client, direct, _):
        async with client.stream("Hi", on_disconnect=choice) as stream:
            async for event in stream:
                if event.raw.HasField("run_started"):
                    break
        run = await direct.run(stream.run_id)
        assert runs_pb2.RunStatus.Name(run.status) == f"RUN_STATUS_{status}"
        await client.cancel(stream.run_id)


async def test_a_run_of_somebody_else_is_not_ended_by_a_refusal(store: str) -> None:
    """Its id was taken for another request, which is refused; "cancel" is about the own run only."""
    async with talking([silent()], store) as (client, direct, _):
        await direct.ask("Hello", run_id="run_theirs", background=True)
        with pytest.raises(ConflictError) as caught:
            await client.run("Something else", run_id="run_theirs", on_disconnect="cancel")
        assert caught.value.reason == "RUN_ID_REUSED"
        assert (await direct.run("run_theirs")).status == runs_pb2.RUN_STATUS_RUNNING
        await client.cancel("run_theirs")


async def test_leaving_while_a_tool_is_executed_cancels_both(store: str) -> None:
    """With "cancel" the run ends although no call of gRPC is open; the tool is cancelled in any case."""
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def get_secret_code(name: str) -> str:
        """Returns the secret code of a person."""
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return name

    async with talking([ALICE], store) as (client, direct, _):
        stream = client.stream("Code?", tools=[get_secret_code], on_disconnect="cancel")
        running = asyncio.create_task(collected(stream))
        await started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await stream.aclose()
        assert cancelled.is_set()
        assert (await direct.run(stream.run_id)).status == runs_pb2.RUN_STATUS_CANCELLED


async def test_refusals_are_typed() -> None:
    """Code, reason, fields and waiting calls are read from the details."""
    async with talking([ALICE]) as (client, direct, _):
        with pytest.raises(InvalidRequestError) as invalid:
            await client.run("Hi", step=agent_service_pb2.StepRequest(max_steps=-1))
        assert (invalid.value.code, invalid.value.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
        assert [violation.field for violation in invalid.value.violations] == ["step.max_steps"]
        assert "max_steps" in str(invalid.value)
        with pytest.raises(NotFoundError) as missing:
            await client.get_run("run_x")
        assert missing.value.reason == "RUN_NOT_FOUND"
        paused = (await direct.ask("Code?", get_secret_code.schema)).run
        with pytest.raises(ConflictError) as busy:
            await client.run("Hi", conversation_id=paused.conversation_id)
        (call,) = paused.pending_tool_calls
        assert busy.value.reason == "CONVERSATION_PAUSED"
        assert busy.value.run_id == paused.run_id
        assert busy.value.pending == (WaitingCall(call.tool_call_id, "get_secret_code", "CLIENT_EXECUTION"),)


async def test_any_call_can_be_made() -> None:
    """By the stubs of the connection."""
    async with talking([says("Hi.")]) as (client, _, _upstream):
        result = await client.run([messages_pb2.InputMessage(text="Hi")])
        request = run_service_pb2.ListRunsRequest()
        (run,) = (await client.call(client.connection.runs.ListRuns, request, timeout=5)).runs
        assert run.run_id == result.run_id
        with pytest.raises(NotFoundError):
            await client.call(client.connection.runs.GetRun, run_service_pb2.GetRunRequest(run_id="x"))


async def test_a_client_has_to_be_open() -> None:
    """Before and after the `async with` there is no channel."""
    client = AgentClient("localhost:1")
    with pytest.raises(RuntimeError, match="async with"):
        client.stream("Hi")
    async with client:
        with pytest.raises(TypeError, match="there is no option 'tool'; there are: agent_id"):
            client.stream("Hi", tool=[get_secret_code])  # type: ignore[call-arg]  # that is the test
        with pytest.raises(ValueError, match="two tools are named 'get_secret_code'"):
            client.stream("Hi", tools=[get_secret_code, get_secret_code])


async def test_failures_in_a_row_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """At WARNING, so that who waits sees why; the others at INFO."""
    caplog.set_level(logging.INFO, "agent_service.client")
    async with AgentClient("127.0.0.1:1", retry=Retry(attempts=3, first=0.001, most=0.001)) as client:
        with pytest.raises(Exception, match="UNAVAILABLE"):
            await client.get_run("run_1")
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
