"""The main job: ask, pause for a client tool, answer, go on, remember."""

from __future__ import annotations

import pytest
from agentrpc.v1 import agent_service_pb2, run_service_pb2, runs_pb2, tools_pb2

from tests.modes import MODES, messages_of, resume, start, story
from tests.scripted_openai import Reply, Request, calls, says
from tests.server_tools import executions
from tests.service import SECRET, durable, kinds, returned, scripted, step, submit

pytestmark = pytest.mark.anyio


async def test_a_client_tool_pauses_the_run_and_its_return_resumes_it(store: str) -> None:
    """Ask -> pause -> return -> answer -> recall, and the conversation lists all of it in order."""
    script = [
        calls(("get_secret_code", {"name": "Alice"})),
        says("The code of Alice is SECRET-42."),
        says("It was SECRET-42."),
    ]
    async with scripted(script, store) as (client, upstream):
        paused = await client.ask("Code of Alice?", SECRET)
        assert paused.run.status == runs_pb2.RUN_STATUS_PAUSED
        assert paused.run.stop_reason == runs_pb2.STOP_REASON_REQUIRES_APPROVAL
        assert kinds(paused.messages) == ["user", "tool_call"]
        (pending,) = paused.run.pending_tool_calls
        assert pending.name == "get_secret_code"
        assert pending.arguments_json == '{"name": "Alice"}'
        assert pending.kind == tools_pb2.PENDING_KIND_CLIENT_EXECUTION
        assert paused.messages[-1].tool_call.tool_calls[0].tool_call_id == pending.tool_call_id
        assert paused.run.last_sequence == 5

        resumed = await client.answer(paused.run.run_id, returned(pending, "SECRET-42"))
        assert kinds(resumed.messages) == ["tool_return", "assistant"]
        assert resumed.messages[0].tool_return.status == tools_pb2.TOOL_RETURN_STATUS_SUCCESS
        assert resumed.messages[0].tool_return.text == "SECRET-42"
        assert resumed.run.status == runs_pb2.RUN_STATUS_COMPLETED
        assert resumed.run.stop_reason == runs_pb2.STOP_REASON_END_TURN

        conversation_id = paused.run.conversation_id
        recalled = await client.ask("What was the code?", conversation_id=conversation_id)
        assert "SECRET-42" in recalled.messages[-1].assistant.text
        history = await client.messages(conversation_id)
        assert kinds(history) == ["user", "tool_call", "tool_return", "assistant", "user", "assistant"]
        assert [message.position for message in history] == [1, 2, 3, 4, 5, 6]
        upstream.check_histories()
        assert upstream.request_count == 3


def secret_script(request: Request) -> Reply:
    """A model that asks for the code once, tells it, and remembers it."""
    if request.last["role"] == "tool":
        return says(f"The code is: {request.new_returns[0]}.", reasoning="It has returned.")
    if "What was" in str(request.last["content"]):
        return says(f"It was {next(iter(request.returns.values()))}.")
    return calls(("get_secret_code", {"name": "Alice"}), text="Let me see.")


async def test_every_mode_leads_to_the_same_durable_events(store: str) -> None:
    """Blocking, by steps, by tokens and in the background: equal events, equal messages, and what a stream showed is
    byte for byte what is stored."""
    stories, shown = {}, {}
    async with scripted(secret_script, store) as (client, upstream):
        for mode in MODES:
            paused = await start(client, mode, step("Code of Alice?", SECRET))
            (pending,) = paused.run.pending_tool_calls
            request = submit(paused.run.run_id, returned(pending, "SECRET-42"), request_id="request-1")
            resumed = await resume(client, mode, paused.run, request)
            assert resumed.run.status == runs_pb2.RUN_STATUS_COMPLETED
            recalled = await start(client, mode, step("What was the code?", conversation_id=paused.run.conversation_id))
            log = await client.watch(paused.run.run_id)
            if mode != "blocking":
                assert durable([*paused.events, *resumed.events]) == durable(log)
            stories[mode] = story([*log, *await client.watch(recalled.run.run_id)])
            shown[mode] = [kinds(window.messages) for window in (paused, resumed, recalled)]
            assert messages_of(log) == [*paused.messages, *resumed.messages]
            assert await client.messages(paused.run.conversation_id) == [*messages_of(log), *recalled.messages]
        assert upstream.request_count == 3 * len(MODES)
        upstream.check_histories()
    assert shown["blocking"] == [
        ["user", "assistant", "tool_call"],
        ["tool_return", "reasoning", "assistant"],
        ["user", "assistant"],
    ]
    for mode in MODES[1:]:
        assert shown[mode] == shown["blocking"], mode
        assert stories[mode] == stories["blocking"], mode


async def test_the_tokens_of_a_stream_make_up_its_messages(store: str) -> None:
    """Deltas folded by message and offset are the whole messages that follow; `stream_tokens` false shows none."""
    async with scripted(secret_script, store) as (client, _):
        paused = await start(client, "tokens", step("Code of Alice?", SECRET))
        whole = {m.message_id: m.assistant.text for m in paused.messages if m.HasField("assistant")}
        calls_message = paused.messages[-1]
        texts: dict[str, str] = {}
        for event in paused.events:
            if event.HasField("text_delta"):
                delta = event.text_delta
                assert delta.offset == len(texts.get(delta.message_id, ""))
                texts[delta.message_id] = texts.get(delta.message_id, "") + delta.text
            elif event.HasField("tool_call_arguments_delta"):
                piece = event.tool_call_arguments_delta
                assert (piece.message_id, piece.name) == (calls_message.message_id, "get_secret_code")
                texts["arguments"] = texts.get("arguments", "") + piece.text
        assert texts.pop("arguments") == calls_message.tool_call.tool_calls[0].arguments_json
        assert texts == whole
        by_steps = await start(client, "steps", step("Code of Alice?", SECRET))
        assert durable(by_steps.events) == [e.SerializeToString(deterministic=True) for e in by_steps.events]


@pytest.mark.parametrize("mode", MODES)
async def test_an_error_return_reaches_the_model_as_an_error_and_the_run_goes_on(store: str, mode: str) -> None:
    """The failure of a client's tool is a return like any other: echoed as an error, read by the model."""
    script = [calls(("get_secret_code", {"name": "Alice"})), says("I could not find it.")]
    async with scripted(script, store) as (client, upstream):
        paused = await start(client, mode, step("Code of Alice?", SECRET))
        (pending,) = paused.run.pending_tool_calls
        failed = returned(pending, "no such person", status=tools_pb2.TOOL_RETURN_STATUS_ERROR, stderr="trace")
        resumed = await resume(client, mode, paused.run, submit(paused.run.run_id, failed))
        assert kinds(resumed.messages) == ["tool_return", "assistant"]
        told = resumed.messages[0].tool_return
        assert (told.tool_call_id, told.name) == (pending.tool_call_id, "get_secret_code")
        assert told.status == tools_pb2.TOOL_RETURN_STATUS_ERROR
        assert told.outcome == tools_pb2.TOOL_CALL_OUTCOME_FAILED
        assert (told.text, told.stderr) == ("no such person", "trace")
        assert resumed.run.stop_reason == runs_pb2.STOP_REASON_END_TURN
        assert upstream.requests[-1].new_returns == ["no such person"]


@pytest.mark.parametrize("mode", MODES)
async def test_a_client_tool_with_the_name_of_a_server_tool_takes_its_place(store: str, mode: str) -> None:
    """The run pauses, the override is reported everywhere, and the server's tool is not executed."""
    settings = {"tools": "tests.server_tools:get_secret_code"}
    async with scripted(secret_script, store, **settings) as (client, upstream):
        request = step("Code of Alice?", SECRET)
        built = await client.agent.BuildRequest(agent_service_pb2.BuildRequestRequest(step=request))
        assert list(built.overridden_tools) == ["get_secret_code"]
        paused = await start(client, mode, request)
        assert paused.run.status == runs_pb2.RUN_STATUS_PAUSED
        assert list(paused.run.overridden_tools) == ["get_secret_code"]
        accepted = (await client.watch(paused.run.run_id, stop_at=run_service_pb2.STOP_AT_NEXT_STOP))[0].run_accepted
        assert list(accepted.overridden_tools) == ["get_secret_code"]
        (pending,) = paused.run.pending_tool_calls
        assert pending.kind == tools_pb2.PENDING_KIND_CLIENT_EXECUTION
        resumed = await resume(client, mode, paused.run, submit(paused.run.run_id, returned(pending, "MINE")))
        assert resumed.messages[-1].assistant.text == "The code is: MINE."
        assert executions[pending.tool_call_id] == 0
        assert [tool["function"]["description"] for tool in upstream.requests[0].body["tools"]] == [SECRET.description]


@pytest.mark.parametrize("mode", MODES)
async def test_without_client_tools_the_server_tool_runs_and_nothing_pauses(store: str, mode: str) -> None:
    """One window from the question to the answer."""
    settings = {"tools": "tests.server_tools:get_secret_code"}
    async with scripted(secret_script, store, **settings) as (client, _):
        done = await start(client, mode, step("Code of Alice?"))
        assert done.run.status == runs_pb2.RUN_STATUS_COMPLETED
        assert kinds(done.messages) == ["user", "assistant", "tool_call", "tool_return", "reasoning", "assistant"]
        assert done.messages[3].tool_return.text == "SERVER-CODE of Alice"
        assert not done.run.overridden_tools
        assert executions[done.messages[3].tool_return.tool_call_id] == 1
