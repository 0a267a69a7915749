"""The dry run: exactly what would be sent to the model endpoint, or why nothing would be, and no trace of it."""

from __future__ import annotations

from typing import Any

import pytest
from agentrpc.v1 import agent_service_pb2, messages_pb2, run_service_pb2, runs_pb2, tools_pb2

from tests.scripted_openai import Gate, calls, fails, says
from tests.server_tools import executions
from tests.service import SECRET, Client, refusal, returned, scripted, step, submit

pytestmark = pytest.mark.anyio

BUILD = agent_service_pb2.BuildRequestRequest
ASKS = calls(("get_secret_code", {"name": "Alice"}))
NOTE = tools_pb2.ClientToolSchema(name="take_note", description="Notes.")


async def build(client: Client, **arm: Any) -> agent_service_pb2.BuildRequestResponse:
    """A BuildRequest."""
    return await client.agent.BuildRequest(BUILD(**arm))


async def test_it_is_byte_for_byte_what_the_endpoint_receives(store: str) -> None:
    """For the first start of a conversation, the resume after a submit, and a later start; nothing comes from it."""
    async with scripted([ASKS, says("It is SECRET-42 €."), says("Yes.")], store) as (client, upstream):
        first = step(
            "Code of Ålice? \U0001f600 \u2028 </s>",
            SECRET,
            NOTE,
            run_id="run-1",
            system_prompt='Be "brief".\n',
            tool_choice=tools_pb2.ToolChoice(mode=tools_pb2.TOOL_CHOICE_MODE_REQUIRED),
            parallel_tool_calls=False,
            labels={"a": "b"},
        )
        first.input_messages.add(role=messages_pb2.ROLE_SYSTEM, text="Answer at once.")
        first.input_messages.add(name="Bob", parts=[{"text": "Well"}, {"text": "?"}])
        built = await build(client, step=first)
        assert (await refusal(client.run("run-1"))).code == "NOT_FOUND"
        paused = await client.agent.Step(first)
        assert built.request_json.encode() == upstream.requests[0].raw
        assert not built.HasField("not_buildable")

        returns = submit("run-1", returned(paused.run.pending_tool_calls[0], "SECRET-42 €"), request_id="request-1")
        built = await build(client, submit=returns)
        assert await client.run("run-1") == paused.run
        assert await client.messages(paused.run.conversation_id) == list(paused.messages)
        resumed = await client.agent.SubmitToolReturns(returns)
        assert built.request_json.encode() == upstream.requests[1].raw

        later = step("Sure?", conversation_id=paused.run.conversation_id)
        before = await client.messages(paused.run.conversation_id)
        built = await build(client, step=later)
        assert await client.messages(paused.run.conversation_id) == before
        assert await client.run("run-1") == resumed.run
        await client.agent.Step(later)
        assert built.request_json.encode() == upstream.requests[2].raw
        assert upstream.request_count == 3


async def test_it_shows_error_returns_and_denials_as_the_model_gets_them(store: str) -> None:
    """Also when the last of several submits is the one asked about."""
    both = calls(("get_secret_code", {"name": "Alice"}), ("get_secret_code", {"name": "Bob"}))
    async with scripted([both, says("Pity.")], store) as (client, upstream):
        run = (await client.ask("Codes?", SECRET)).run
        alice, bob = run.pending_tool_calls
        await client.answer(run.run_id, returned(bob, "not known", status=tools_pb2.TOOL_RETURN_STATUS_ERROR))
        deny = tools_pb2.ApprovalDecision(tool_call_id=alice.tool_call_id, deny=tools_pb2.Deny(reason="private"))
        last = submit(run.run_id, approvals=[deny])
        built = await build(client, submit=last)
        await client.agent.SubmitToolReturns(last)
        assert built.request_json.encode() == upstream.requests[1].raw
        assert upstream.requests[1].new_returns == ["Denied: private", "not known"]


async def test_it_follows_an_interrupted_run_as_a_start_would(store: str) -> None:
    """The interrupted run stays as it is; its return is part of what would be sent."""
    async with scripted([ASKS, fails(503), says("Hello.")], store) as (client, upstream):
        run = (await client.ask("Code?", SECRET)).run
        failed = await client.answer(run.run_id, returned(run.pending_tool_calls[0], "SECRET-42"))
        assert failed.run.status == runs_pb2.RUN_STATUS_INTERRUPTED
        request = step("Hello?", conversation_id=run.conversation_id)
        built = await build(client, step=request)
        assert await client.run(run.run_id) == failed.run
        await client.agent.Step(request)
        assert built.request_json.encode() == upstream.requests[2].raw


async def test_a_busy_conversation_is_the_same_error_as_for_step(store: str) -> None:
    """While the run is running, and while it is paused."""
    gate = Gate()
    async with scripted([calls(("get_secret_code", {"name": "A"}), gate=gate)], store) as (client, _):
        run = (await client.ask("Code?", SECRET, background=True)).run
        request = step("Hello?", conversation_id=run.conversation_id)
        running = await refusal(client.agent.Step(request))
        assert running.reason == "CONVERSATION_BUSY"
        assert await refusal(build(client, step=request)) == running
        gate.open()
        await client.watch(run.run_id, stop_at=run_service_pb2.STOP_AT_NEXT_STOP)
        paused = await refusal(client.agent.Step(request))
        assert paused.reason == "CONVERSATION_PAUSED"
        assert await refusal(build(client, step=request)) == paused


async def test_a_partial_submit_is_not_buildable(store: str) -> None:
    """The answer says which calls would still be pending."""
    both = calls(("get_secret_code", {"name": "Alice"}), ("get_secret_code", {"name": "Bob"}))
    async with scripted([both], store) as (client, _):
        run = (await client.ask("Codes?", SECRET)).run
        alice, bob = run.pending_tool_calls
        built = await build(client, submit=submit(run.run_id, returned(alice, "ONE")))
        assert built.request_json == ""
        assert list(built.not_buildable.remaining) == [bob]
        assert "pending" in built.not_buildable.message
        assert await client.run(run.run_id) == run


async def test_server_tools_that_would_run_first_make_it_not_buildable(store: str) -> None:
    """Their results are part of the request; the answer names their calls, and none is executed."""
    script = [calls(("delete_file", {"path": "/a"}))]
    async with scripted(script, store, tools="tests.server_tools:delete_file") as (client, _):
        run = (await client.ask("Delete /a.")).run
        (pending,) = run.pending_tool_calls
        approve = tools_pb2.ApprovalDecision(tool_call_id=pending.tool_call_id, approve=tools_pb2.Approve())
        built = await build(client, submit=submit(run.run_id, approvals=[approve]))
        assert built.request_json == ""
        assert [call.tool_call_id for call in built.not_buildable.server_tool_calls] == [pending.tool_call_id]
        assert not built.not_buildable.remaining
        assert executions[pending.tool_call_id] == 0
        assert await client.run(run.run_id) == run


async def test_repeats_are_not_buildable(store: str) -> None:
    """A repeated start or submit asks the model nothing; the answer says so."""
    async with scripted([ASKS, says("Thanks.")], store) as (client, _):
        request = step("Code?", SECRET, run_id="run-1")
        run = (await client.agent.Step(request)).run
        built = await build(client, step=request)
        assert (built.request_json, built.HasField("not_buildable")) == ("", True)
        assert "run-1 was started before" in built.not_buildable.message
        returns = submit("run-1", returned(run.pending_tool_calls[0], "SECRET-42"), request_id="request-1")
        await client.agent.SubmitToolReturns(returns)
        built = await build(client, submit=returns)
        assert (built.request_json, built.HasField("not_buildable")) == ("", True)
        assert "accepted before" in built.not_buildable.message


async def test_a_submit_that_would_end_the_run_is_not_buildable(store: str) -> None:
    """With no step left no request follows the returns."""
    async with scripted([ASKS], store) as (client, _):
        run = (await client.ask("Code?", SECRET, max_steps=1)).run
        built = await build(client, submit=submit(run.run_id, returned(run.pending_tool_calls[0], "SECRET-42")))
        assert "max_steps" in built.not_buildable.message
        assert (await client.run(run.run_id)).status == runs_pb2.RUN_STATUS_PAUSED


async def test_everything_is_checked_as_in_the_real_call(store: str) -> None:
    """Same reasons; the fields are named inside their arm. Without an arm it says what to send."""
    async with scripted([], store) as (client, _):
        refused = await refusal(build(client, step=step("", max_steps=0)))
        assert refused.fields == ("step.input_messages[0].text", "step.max_steps")
        refused = await refusal(build(client, submit=submit("run-1")))
        assert refused.fields == ("submit.tool_returns",)
        refused = await refusal(build(client, submit=submit("run-1", returned("call_1", "x"))))
        assert (refused.code, refused.reason) == ("NOT_FOUND", "RUN_NOT_FOUND")
        refused = await refusal(build(client))
        assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", ("request",))


async def test_a_request_too_large_for_an_answer_is_refused_with_its_size(store: str) -> None:
    """A model request may be larger than what one answer may hold; the conversation itself goes on."""
    megabyte = "a" * 1024 * 1024
    async with scripted(lambda _: says("Read."), store) as (client, upstream):
        conversation_id = ""
        for _part in range(3):
            conversation_id = (await client.ask(megabyte, conversation_id=conversation_id)).run.conversation_id
        request = step("And?", conversation_id=conversation_id)
        refused = await refusal(build(client, step=request))
        assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "TOO_LARGE")
        await client.agent.Step(request)
        assert str(len(upstream.requests[-1].raw)) in refused.message
