"""The Python client against a real service: whole conversations, with what its user sees."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from agentrpc.v1 import agent_service_pb2, messages_pb2, run_service_pb2, runs_pb2, tools_pb2
from agentrpc.v1 import inbox_service_pb2 as inbox

from agent_service.client import (
    Accepted,
    AgentClient,
    Approve,
    ConflictError,
    Deny,
    InvalidRequestError,
    MessageStored,
    NotFoundError,
    Restarted,
    Retry,
    RunFailedError,
    RunResult,
    Stopped,
    TextDelta,
    ToolCall,
    ToolProgress,
    WaitingCall,
    client_tool,
)
from agent_service.tools import server_tool
from tests.scripted_openai import Gate, ScriptedOpenAI, breaks_off, calls, fails, says, silent
from tests.service import Client, durable, event_kinds, kinds, returned, scripted

pytestmark = pytest.mark.anyio

ALICE = calls(("get_secret_code", {"name": "Alice"}))
SERVER_TOOLS = "tests.test_client:delete_file"


@client_tool
def get_secret_code(name: str) -> str:
    """Returns the secret code of a person."""
    return {"Alice": "AZURE-7731", "Bob": "CORAL-1102"}[name]


@server_tool(requires_approval=True)
async def delete_file(path: str) -> str:
    """Deletes a file."""
    return f"deleted {path}"


@asynccontextmanager
async def talking(
    script: Any, store: str = "memory", **settings: Any
) -> AsyncIterator[tuple[AgentClient, Client, ScriptedOpenAI]]:
    """A client, stubs for what it does not do, and the model."""
    async with (
        scripted(script, store, **settings) as (direct, upstream),
        AgentClient(direct.target, retry=Retry(attempts=20, first=0.01, most=0.1)) as client,
    ):
        yield client, direct, upstream


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


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_approvals_are_asked_for(store: str, asynchronous: bool) -> None:
    """Of a server tool: approved, approved with other arguments, denied; in a coroutine or in a thread."""
    asked: list[ToolCall] = []
    decisions: dict[str, Any] = {
        "/a": True,
        "/b": Approve(edited_arguments_json='{"path": "/tmp/b"}'),
        "/c": Deny(reason="keep it"),
        "/d": False,
    }

    def decide(call: ToolCall) -> Any:
        assert (threading.current_thread() is threading.main_thread()) == asynchronous
        asked.append(call)
        return decisions[call.arguments["path"]]

    async def decide_later(call: ToolCall) -> Any:
        return decide(call)

    script = [calls(*(("delete_file", {"path": path}) for path in decisions)), says("Done.")]
    async with talking(script, store, tools=SERVER_TOOLS) as (client, _, upstream):
        step = agent_service_pb2.StepRequest()
        result = await client.run("Clean up", on_approval=decide_later if asynchronous else decide, step=step)
        assert result.text == "Done."
        returns = list(upstream.requests[1].returns.values())
    assert returns[:2] == ["deleted /a", "deleted /tmp/b"]
    assert "keep it" in returns[2]
    assert {call.kind for call in asked} == {"APPROVAL"}
    assert len(asked) == 4


async def test_a_tool_of_this_process_may_need_approval() -> None:
    """Asked before each call; what is denied is not executed."""
    executed = []

    @client_tool(requires_approval=True)
    def pay(euros: int) -> str:
        """Pays."""
        executed.append(euros)
        return "paid"

    script = [calls(("pay", {"euros": 5}), ("pay", {"euros": 5000})), says("Done.")]
    async with talking(script) as (client, _, upstream):
        await client.run("Pay", tools=[pay], on_approval=lambda call: call.arguments["euros"] < 100)
        paid, denied = upstream.requests[1].returns.values()
        assert (paid, executed) == ("paid", [5])
        assert denied != "paid"
        with pytest.raises(ValueError, match="'pay' requires approval; give on_approval"):
            client.stream("Pay", tools=[pay])


async def test_what_on_approval_raises_comes_out() -> None:
    """It is the caller's own error; the run stays paused."""

    def decide(call: ToolCall) -> bool:
        raise LookupError(call.name)

    async with talking([calls(("delete_file", {"path": "/"}))], tools=SERVER_TOOLS) as (client, direct, _):
        with pytest.raises(LookupError, match="delete_file"):
            await client.run("Clean up", on_approval=decide, run_id="run_a")
        assert (await direct.run("run_a")).status == runs_pb2.RUN_STATUS_PAUSED


async def test_a_run_that_waits_for_others_is_returned_paused(store: str) -> None:
    """What this client can answer is answered; the rest is in `pending`, and `resume` goes on with it later."""
    other = tools_pb2.ClientToolSchema(name="other")
    step = agent_service_pb2.StepRequest(client_tools=[other])
    script = [calls(("other", {}), ("get_secret_code", {"name": "Alice"})), says("Done.")]
    async with talking(script, store) as (client, _, _upstream):
        paused = await client.run("Go", tools=[get_secret_code], step=step)
        assert (paused.status, paused.text) == ("PAUSED", "")
        (waiting,) = paused.pending
        assert (waiting.name, waiting.run_id) == ("other", paused.run_id)

        @client_tool(name="other")
        def other_tool() -> None:
            """Does something else."""

        result = await client.resume(paused.run_id, tools=[other_tool])
        assert result.text == "Done."
        assert result.messages[: len(paused.messages)] == paused.messages
        assert result == await client.resume(paused.run_id)


async def test_the_same_run_id_joins_the_run_and_executes_nothing_again(store: str) -> None:
    """As after a crash of this process: the calls that have their returns are not executed again."""
    executed: list[str] = []

    def get_secret_code(name: str) -> str:
        """Returns the secret code of a person."""
        executed.append(name)
        return "AZURE-7731"

    async with talking([ALICE, says("AZURE-7731.")], store) as (client, _, upstream):
        first, second = [
            await client.run("Code of Alice?", tools=[get_secret_code], run_id="order-4711") for _ in range(2)
        ]
        assert first == second
        assert executed == ["Alice"]
        assert len(upstream.requests) == 2


async def test_a_call_that_somebody_else_answers_is_given_up(store: str) -> None:
    """The tool is cancelled when the run goes on without it."""
    cancelled = asyncio.Event()
    started = asyncio.Event()

    async def get_secret_code(name: str) -> str:
        """Returns the secret code of a person."""
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return name

    async with talking([ALICE, says("Done.")], store) as (client, direct, _):
        stream = client.stream("Code?", tools=[get_secret_code])
        running = asyncio.create_task(collected(stream))
        await started.wait()
        (call,) = (await direct.run(stream.run_id)).pending_tool_calls
        await direct.answer(stream.run_id, returned(call, "from elsewhere"))
        result = await running
        assert cancelled.is_set()
        assert result.text == "Done."


async def test_a_return_that_comes_too_late_is_dropped(store: str) -> None:
    """Somebody else was faster by a moment: what is refused is left out, and the run is followed to its end."""
    lock: list[Any] = []

    async def get_secret_code(name: str, call: ToolCall) -> str:
        """Returns the secret code of a person."""
        await lock[0].answer(call.run_id, returned(call.tool_call_id, "from elsewhere"), background=True)
        return "mine"

    async with talking([ALICE, says("Done.")], store) as (client, direct, upstream):
        lock.append(direct)
        result = await client.run("Code?", tools=[get_secret_code])
        assert result.text == "Done."
        assert list(upstream.requests[1].returns.values()) == ["from elsewhere"]


async def collected(stream: Any) -> RunResult:
    """The result of a stream."""
    async with asyncio.timeout(20):
        async for _ in stream:
            pass
    result: RunResult = stream.result
    return result


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


async def test_what_others_answer_meanwhile_is_seen(store: str) -> None:
    """Their receipts and returns are events as well, although the stream of the own submit leaves them out."""
    reach: list[Client] = []

    async def get_secret_code(name: str, call: ToolCall) -> str:
        """Returns the secret code of a person."""
        (client,) = reach
        theirs = (await client.run(call.run_id)).pending_tool_calls[0]
        await client.answer(call.run_id, returned(theirs, "from elsewhere"))
        return "mine"

    step = agent_service_pb2.StepRequest(client_tools=[tools_pb2.ClientToolSchema(name="other")])
    script = [calls(("other", {}), ("get_secret_code", {"name": "Alice"})), says("Done.")]
    async with talking(script, store) as (client, direct, _):
        reach.append(direct)
        stream = client.stream("Go", tools=[get_secret_code], step=step)
        events = [event.raw async for event in stream]
        assert durable(events) == durable(await direct.watch(stream.run_id))
        assert event_kinds(events).count("tool_returns_accepted") == 2


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


async def test_a_run_that_is_cancelled_elsewhere_ends_the_tool(store: str) -> None:
    """The result says CANCELLED."""
    started = asyncio.Event()

    async def get_secret_code(name: str) -> str:
        """Returns the secret code of a person."""
        started.set()
        await asyncio.Event().wait()
        return name

    async with talking([ALICE], store) as (client, _, _upstream):
        stream = client.stream("Code?", tools=[get_secret_code])
        running = asyncio.create_task(collected(stream))
        await started.wait()
        await client.cancel(stream.run_id)
        assert (await running).status == "CANCELLED"


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


async def test_progress_of_a_worker_is_an_event() -> None:
    """What a worker tells of a call that this client does not answer, while it still has another one."""
    go_on = asyncio.Event()

    async def get_secret_code(name: str) -> str:
        """Returns the secret code of a person."""
        await go_on.wait()
        return name

    step = agent_service_pb2.StepRequest(client_tools=[tools_pb2.ClientToolSchema(name="other")])
    script = [calls(("other", {}), ("get_secret_code", {"name": "Alice"}))]
    async with talking(script) as (client, direct, _):
        stream = client.stream("Go", tools=[get_secret_code], step=step)
        events = []

        async def read() -> None:
            async for event in stream:
                events.append(event)
                if isinstance(event, ToolProgress):
                    go_on.set()

        reading = asyncio.create_task(read())
        wanted = inbox.PendingToolCallFilter(tool_name="other")
        claimed: list[Any] = []
        while not claimed:
            answer = await direct.inbox.ClaimToolCalls(inbox.ClaimToolCallsRequest(filter=wanted, worker_id="w"))
            claimed.extend(answer.calls)
        while not go_on.is_set():
            extend = inbox.ExtendToolCallRequest(
                run_id=stream.run_id,
                tool_call_id=claimed[0].call.call.tool_call_id,
                claim_token=claimed[0].claim_token,
                progress="half way",
            )
            await direct.inbox.ExtendToolCall(extend)
        await reading
        assert next(e.text for e in events if isinstance(e, ToolProgress)) == "half way"
        assert stream.result.status == "PAUSED"


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
