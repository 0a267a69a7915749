"""Starts: a run_id chosen by the caller makes a start repeatable, and a conversation has one active run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agentrpc.v1 import agent_service_pb2, content_pb2, messages_pb2, run_service_pb2, runs_pb2, tools_pb2

from tests.modes import MODES, start
from tests.scripted_openai import Gate, Reply, Request, calls, says
from tests.service import SECRET, Client, durable, kinds, refusal, returned, scripted, step

pytestmark = pytest.mark.anyio


def asks_once(request: Request) -> Reply:
    """A model that asks for the code and then tells it."""
    if request.last["role"] == "tool":
        return says(request.new_returns[0])
    return calls(("get_secret_code", {"name": "Alice"}))


@pytest.mark.parametrize("mode", MODES)
async def test_a_repeated_start_gets_the_same_window(store: str, mode: str) -> None:
    """While the run is paused and after its end: the same messages up to the first stop, and no second model call."""
    async with scripted(asks_once, store) as (client, upstream):
        request = step("Code?", SECRET, run_id="run-1")
        first = await start(client, mode, request)
        assert first.run.run_id == "run-1"
        again = await start(client, mode, request)
        assert (again.run, again.messages) == (first.run, first.messages)
        assert durable(again.events) == durable(first.events)
        assert upstream.request_count == 1

        await client.answer("run-1", returned(first.run.pending_tool_calls[0], "SECRET-42"))
        ended = await start(client, mode, request)
        assert ended.messages == first.messages
        assert durable(ended.events) == durable(first.events)
        assert ended.run == await client.run("run-1")
        assert ended.run.status == runs_pb2.RUN_STATUS_COMPLETED
        assert upstream.request_count == 2


@pytest.mark.parametrize("mode", MODES)
async def test_a_start_repeated_while_the_run_is_running_joins_it(store: str, mode: str) -> None:
    """Both wait for the same stop and get the same answer."""
    gate = Gate()
    async with scripted([says("Hello.", gate=gate)], store) as (client, upstream):
        request = step("Hello?", run_id="run-1")
        first = asyncio.ensure_future(start(client, mode, request))
        await upstream.wait_for_requests(1)
        again = asyncio.ensure_future(start(client, mode, request))
        watcher = client.runs.WatchRun(run_service_pb2.WatchRunRequest(run_id="run-1"))
        async for response in watcher:
            if response.event.HasField("live"):
                break
        gate.open()
        one, other = await first, await again
        assert (one.run, one.messages) == (other.run, other.messages)
        assert durable(one.events) == durable(other.events)
        assert one.messages[-1].assistant.text == "Hello."
        assert upstream.request_count == 1


@pytest.mark.parametrize("mode", MODES)
async def test_equal_starts_at_one_instant_are_one_run(store: str, mode: str) -> None:
    """Twenty times: one run, one model call, equal answers."""
    async with scripted(lambda _: says("Hello."), store) as (client, upstream):
        for attempt in range(1, 21):
            request = step("Hello?", run_id=f"run-{attempt}")
            windows = await asyncio.gather(*(start(client, mode, request) for _ in range(3)))
            assert len({window.run.SerializeToString(deterministic=True) for window in windows}) == 1
            assert windows[0].messages == windows[1].messages == windows[2].messages
            assert upstream.request_count == attempt
            assert len(await client.messages(windows[0].run.conversation_id)) == 2


CHANGES: dict[str, Any] = {
    "text": {"input_messages": [messages_pb2.InputMessage(text="Bye?")]},
    "name": {"input_messages": [messages_pb2.InputMessage(text="Hello?", name="Bob")]},
    "role": {"input_messages": [messages_pb2.InputMessage(text="Hello?", role=messages_pb2.ROLE_SYSTEM)]},
    "agent": {"agent_id": "responder"},
    "conversation": {"conversation_id": "conv-9"},
    "tools": {"client_tools": [SECRET]},
    "max_steps": {"max_steps": 3},
    "tool_choice": {"tool_choice": tools_pb2.ToolChoice(mode=tools_pb2.TOOL_CHOICE_MODE_NONE)},
    "parallel": {"parallel_tool_calls": False},
    "model": {"model": "other"},
    "system prompt": {"system_prompt": "Be brief."},
    "labels": {"labels": {"a": "b"}},
    "server tools wait": {"server_tools_wait": True},
}


def changed(**fields: Any) -> agent_service_pb2.StepRequest:
    """The start of the test below, with other fields."""
    return agent_service_pb2.StepRequest(
        **{"input_messages": [messages_pb2.InputMessage(text="Hello?")], "run_id": "run-1", **fields}
    )


@pytest.mark.parametrize("change", CHANGES)
async def test_another_request_under_the_same_run_id_is_refused(store: str, change: str) -> None:
    """In every mode and in a dry run, whatever differs; the run stays as it is."""
    async with scripted([says("Hello.")], store) as (client, _):
        run = (await client.agent.Step(changed())).run
        request = changed(**CHANGES[change])
        for mode in MODES:
            refused = await refusal(start(client, mode, request))
            assert (refused.code, refused.reason) == ("ALREADY_EXISTS", "RUN_ID_REUSED")
            assert refused.metadata == {"run_id": "run-1"}
            assert "'run-1'" in refused.message
        dry = await refusal(client.agent.BuildRequest(agent_service_pb2.BuildRequestRequest(step=request)))
        assert dry == refused
        assert await client.run("run-1") == run


async def test_how_an_answer_is_delivered_does_not_make_another_request(store: str) -> None:
    """Defaults spelled out, views, waits and the caller's clock may differ between repeats."""
    async with scripted([says("Hello.")], store) as (client, upstream):
        first = await client.agent.Step(changed())
        repeats = [
            changed(background=True),
            changed(on_disconnect=agent_service_pb2.ON_DISCONNECT_CANCEL),
            changed(use_assistant_message=False),
            changed(include_return_message_types=[messages_pb2.MESSAGE_TYPE_USER]),
            changed(request_start_timestamp_ns=5),
            changed(max_wait={"seconds": 1}),
            changed(max_steps=50),
            changed(tool_choice=tools_pb2.ToolChoice(mode=tools_pb2.TOOL_CHOICE_MODE_AUTO)),
            changed(
                input_messages=[
                    messages_pb2.InputMessage(
                        role=messages_pb2.ROLE_USER, parts=[content_pb2.ContentPart(text="Hello?")]
                    )
                ]
            ),
        ]
        for request in repeats:
            assert (await client.agent.Step(request)).run == first.run
        assert upstream.request_count == 1


async def test_the_default_agent_by_its_name_is_the_same_request(store: str) -> None:
    """An empty agent_id means the default agent."""
    async with scripted([says("Hello.")], store) as (client, _):
        first = await client.agent.Step(changed())
        assert (await client.agent.Step(changed(agent_id="default"))).run == first.run


@pytest.mark.parametrize("mode", MODES)
async def test_a_busy_conversation_refuses_another_start(store: str, mode: str) -> None:
    """Running: ABORTED with the run. Paused: FAILED_PRECONDITION with the calls it waits for. Nothing is stored."""
    gate = Gate()
    two = calls(("get_secret_code", {"name": "A"}), ("get_secret_code", {"name": "B"}), gate=gate)
    async with scripted([two, says("Thanks."), says("Hello.")], store) as (client, upstream):
        run = (await client.ask("Codes?", SECRET, background=True)).run
        request = step("Hello?", conversation_id=run.conversation_id, run_id="run-2")
        refused = await refusal(start(client, mode, request))
        assert (refused.code, refused.reason) == ("ABORTED", "CONVERSATION_BUSY")
        assert refused.metadata == {"run_id": run.run_id}
        assert refused.message.startswith(f"conversation {run.conversation_id} is busy with {run.run_id} (RUNNING)")
        gate.open()
        await client.watch(run.run_id, stop_at=run_service_pb2.STOP_AT_NEXT_STOP)

        first, second = (await client.run(run.run_id)).pending_tool_calls
        refused = await refusal(start(client, mode, request))
        assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "CONVERSATION_PAUSED")
        assert refused.message == (
            f"conversation {run.conversation_id} is paused by {run.run_id}, which waits for: "
            f"{first.tool_call_id} (get_secret_code), {second.tool_call_id} (get_secret_code); "
            "submit their returns first"
        )
        assert refused.metadata == {
            "run_id": run.run_id,
            "pending_total": "2",
            "pending_0": f"{first.tool_call_id} get_secret_code CLIENT_EXECUTION",
            "pending_1": f"{second.tool_call_id} get_secret_code CLIENT_EXECUTION",
        }
        assert (await refusal(client.run("run-2"))).reason == "RUN_NOT_FOUND"
        await client.answer(run.run_id, returned(first, "1"), returned(second, "2"))
        assert (await start(client, mode, request)).run.status == runs_pb2.RUN_STATUS_COMPLETED
        assert len(upstream.requests[-1].history) == 6


async def test_of_starts_racing_for_a_conversation_one_wins(store: str) -> None:
    """The others are told the winner; twenty times."""
    async with scripted(asks_once, store) as (client, upstream):
        for attempt in range(1, 21):
            conversation_id = await conversation(client)
            results = await asyncio.gather(
                *(client.ask("Code?", SECRET, conversation_id=conversation_id) for _ in range(3)),
                return_exceptions=True,
            )
            (won,) = [result for result in results if not isinstance(result, BaseException)]
            assert won.run.status == runs_pb2.RUN_STATUS_PAUSED
            assert kinds(await client.messages(conversation_id))[-2:] == ["user", "tool_call"]
            assert upstream.request_count == 3 * attempt


async def conversation(client: Client) -> str:
    """A conversation with a finished run."""
    run = (await client.ask("Code?", SECRET)).run
    await client.answer(run.run_id, returned(run.pending_tool_calls[0], "SECRET-42"))
    return run.conversation_id


@pytest.mark.parametrize("mode", MODES)
async def test_unknown_agents_and_conversations_are_not_found(store: str, mode: str) -> None:
    """Each is named, with what to do; nothing is stored."""
    async with scripted([], store) as (client, _):
        refused = await refusal(start(client, mode, step("Hello?", agent_id="sales", run_id="run-1")))
        assert (refused.code, refused.reason) == ("NOT_FOUND", "AGENT_NOT_FOUND")
        assert refused.message == "agent_id: no agent 'sales'; configured: default, responder; ListAgents shows all"
        refused = await refusal(start(client, mode, step("Hello?", conversation_id="conv-9", run_id="run-1")))
        assert (refused.code, refused.reason) == ("NOT_FOUND", "CONVERSATION_NOT_FOUND")
        assert refused.message == "conversation_id: no conversation 'conv-9'; leave it empty to begin one"
        for request in (client.run("run-1"), client.watch("run-1")):
            refused = await refusal(request)
            assert (refused.code, refused.message) == ("NOT_FOUND", "run_id: no run 'run-1'")
