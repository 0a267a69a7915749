"""The Python client at pauses: approvals, calls of others, and what happens meanwhile."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from agentrpc.v1 import agent_service_pb2, runs_pb2, tools_pb2
from agentrpc.v1 import inbox_service_pb2 as inbox

from agent_service.client import (
    Approve,
    Deny,
    InvalidRequestError,
    ToolCall,
    ToolProgress,
    client_tool,
)
from agent_service.tools import server_tool
from tests.scripted_openai import calls, says
from tests.service import Client, durable, event_kinds, returned
from tests.talking import ALICE, collected, get_secret_code, talking

pytestmark = pytest.mark.anyio

SERVER_TOOLS = "tests.test_client_pauses:delete_file"


@server_tool(requires_approval=True)
async def delete_file(path: str) -> str:
    """Deletes a file."""
    return f"deleted {path}"


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


async def test_a_return_that_is_refused_is_an_error_and_can_be_made_again(store: str) -> None:
    """The run stays paused; `resume` executes the call with a tool that is put right."""
    size = 5 << 20

    def get_secret_code(name: str) -> str:
        """Returns the secret code of a person."""
        return name * size

    async with talking([calls(("get_secret_code", {"name": "A"})), says("Done.")], store) as (client, _, upstream):
        with pytest.raises(InvalidRequestError) as caught:
            await client.run("Code?", tools=[get_secret_code], run_id="run_a")
        assert caught.value.reason == "TOO_LARGE"
        size = 3
        assert (await client.resume("run_a", tools=[get_secret_code])).text == "Done."
        assert list(upstream.requests[1].returns.values()) == ["AAA"]


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
