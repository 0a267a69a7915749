"""The parameters of a start: what each does to the run, and that each is the same in every mode."""

from __future__ import annotations

import time

import pytest
from agentrpc.v1 import agent_service_pb2, messages_pb2, runs_pb2, tools_pb2

from tests.modes import MODES, resume, start
from tests.scripted_openai import Gate, Usage, breaks_off, calls, says
from tests.server_tools import executions
from tests.service import SECRET, event_kinds, kinds, refusal, returned, scripted, step, submit

pytestmark = pytest.mark.anyio

ASKS = calls(("get_secret_code", {"name": "Alice"}))
SPEAKS = {"tools": "tests.server_tools:send_message"}
TYPES = {
    "user": messages_pb2.MESSAGE_TYPE_USER,
    "system": messages_pb2.MESSAGE_TYPE_SYSTEM,
    "assistant": messages_pb2.MESSAGE_TYPE_ASSISTANT,
    "reasoning": messages_pb2.MESSAGE_TYPE_REASONING,
    "tool_call": messages_pb2.MESSAGE_TYPE_TOOL_CALL,
    "tool_return": messages_pb2.MESSAGE_TYPE_TOOL_RETURN,
    "approval": messages_pb2.MESSAGE_TYPE_APPROVAL,
}
DELTAS = {"text_delta": "assistant", "reasoning_delta": "reasoning", "tool_call_arguments_delta": "tool_call"}


@pytest.mark.parametrize("mode", MODES)
async def test_max_steps_counts_model_answers_over_pauses(store: str, mode: str) -> None:
    """With two steps the calls of the second are still awaited; with their return the run ends, and nothing is lost."""
    async with scripted([ASKS, ASKS, says("Good.")], store) as (client, upstream):
        first = await start(client, mode, step("Codes?", SECRET, max_steps=2))
        assert (first.run.status, first.run.max_steps) == (runs_pb2.RUN_STATUS_PAUSED, 2)
        second = await resume(
            client, mode, first.run, submit(first.run.run_id, returned(first.run.pending_tool_calls[0], "ONE"))
        )
        assert (second.run.status, second.run.steps_taken) == (runs_pb2.RUN_STATUS_PAUSED, 2)
        ended = await resume(
            client, mode, second.run, submit(second.run.run_id, returned(second.run.pending_tool_calls[0], "TWO"))
        )
        assert kinds(ended.messages) == ["tool_return"]
        assert ended.messages[0].tool_return.text == "TWO"
        assert ended.run.status == runs_pb2.RUN_STATUS_COMPLETED
        assert ended.run.stop_reason == runs_pb2.STOP_REASON_MAX_STEPS
        assert not ended.run.pending_tool_calls
        assert upstream.request_count == 2
        await client.ask("And now?", conversation_id=ended.run.conversation_id)
        assert upstream.requests[-1].new_returns == []
        assert list(upstream.requests[-1].returns.values()) == ["ONE", "TWO"]


async def test_the_server_tools_of_the_last_step_are_executed(store: str) -> None:
    """The run then ends MAX_STEPS, with their outcomes stored."""
    async with scripted([calls(("add", {"a": 1, "b": 2}))], store, tools="tests.server_tools:add") as (client, _):
        ended = await client.ask("1 + 2?", max_steps=1)
        assert ended.run.stop_reason == runs_pb2.STOP_REASON_MAX_STEPS
        assert kinds(ended.messages) == ["user", "tool_call", "tool_return"]
        assert ended.messages[-1].tool_return.text == "3"


async def test_a_text_answer_within_max_steps_ends_the_turn(store: str) -> None:
    """The limit stops what would go on, nothing else; unset it is 50."""
    async with scripted([says("Hello."), says("Hello.")], store) as (client, _):
        assert (await client.ask("Hello?", max_steps=1)).run.stop_reason == runs_pb2.STOP_REASON_END_TURN
        assert (await client.ask("Hello?")).run.max_steps == 50


@pytest.mark.parametrize("steps", [0, -1, -(2**31)])
async def test_max_steps_below_one_is_refused(store: str, steps: int) -> None:
    """The message says what was found and what is allowed; nothing is stored."""
    async with scripted([], store) as (client, _):
        refused = await refusal(client.agent.Step(step("Hello?", max_steps=steps, run_id="mine")))
        assert (refused.code, refused.reason, refused.fields) == ("INVALID_ARGUMENT", "INVALID_FIELD", ("max_steps",))
        assert refused.message == f"max_steps: {steps} is below 1; send 1 or more, or leave it unset for 50"
        assert (await refusal(client.run("mine"))).code == "NOT_FOUND"


@pytest.mark.parametrize("mode", MODES)
async def test_a_message_tool_is_shown_as_an_assistant_message(store: str, mode: str) -> None:
    """A call of send_message is shown as what it says, without its return, deltas included; what is stored stays."""
    async with scripted([calls(("send_message", {"message": "Hi, Ä!"})), says("Done.")], store, **SPEAKS) as (
        client,
        _,
    ):
        done = await start(client, mode, step("Say hi"))
        assert kinds(done.messages) == ["user", "assistant", "assistant"]
        assert [message.assistant.text for message in done.messages[1:]] == ["Hi, Ä!", "Done."]
        assert not any(event.HasField("tool_call_arguments_delta") for event in done.events)
        stored = await client.messages(done.run.conversation_id)
        assert kinds(stored) == ["user", "tool_call", "tool_return", "assistant"]
        assert executions[stored[2].tool_return.tool_call_id] == 1


@pytest.mark.parametrize("mode", MODES)
async def test_use_assistant_message_false_shows_the_message_tool_as_a_call(store: str, mode: str) -> None:
    """The same run, seen as it is stored."""
    async with scripted([calls(("send_message", {"message": "Hi!"})), says("Done.")], store, **SPEAKS) as (client, _):
        done = await start(client, mode, step("Say hi", use_assistant_message=False))
        assert kinds(done.messages) == ["user", "tool_call", "tool_return", "assistant"]
        assert done.messages[2].tool_return.text == "3 characters sent"
        assert any(event.HasField("tool_call_arguments_delta") for event in done.events) == (mode == "tokens")


async def test_a_client_tool_named_send_message_is_never_hidden(store: str) -> None:
    """Only the server's own message tool is shown as an assistant message."""
    mine = tools_pb2.ClientToolSchema(name="send_message", description="Mine.")
    async with scripted([calls(("send_message", {}))], store, **SPEAKS) as (client, _):
        paused = await client.ask("Say hi", mine)
        assert kinds(paused.messages) == ["user", "tool_call"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wanted", [*TYPES, ""])
async def test_message_types_choose_what_is_shown(store: str, mode: str, wanted: str) -> None:
    """Each type alone, and none meaning all: the same choice in every mode, for whole messages and deltas, while
    starts, receipts and stops are always shown."""
    script = [calls(("add", {"a": 1, "b": 2}), text="Let me add."), says("It is 3.", reasoning="Simple.")]
    async with scripted(script, store, tools="tests.server_tools:add") as (client, _):
        request = step("1 + 2?", include_return_message_types=[TYPES[wanted]] if wanted else [])
        request.input_messages.add(role=messages_pb2.ROLE_SYSTEM, text="Be short.")
        window = await start(client, mode, request)
        stored = ["user", "system", "assistant", "tool_call", "tool_return", "reasoning", "assistant"]
        assert kinds(window.messages) == [kind for kind in stored if wanted in ("", kind)]
        seen = event_kinds(window.events)
        assert {DELTAS[kind] for kind in seen if kind in DELTAS} == (
            {kind for kind in DELTAS.values() if wanted in ("", kind)} if mode == "tokens" else set()
        )
        if mode != "blocking":
            assert [kind for kind in seen if kind in ("run_accepted", "run_started", "run_stopped")] == [
                "run_accepted",
                "run_started",
                "run_stopped",
            ]


async def test_several_message_types_are_shown_together(store: str) -> None:
    """The types add up."""
    async with scripted([says("Hello.", reasoning="Greet.")], store) as (client, _):
        types = [TYPES["user"], TYPES["reasoning"]]
        done = await client.ask("Hello?", include_return_message_types=types)
        assert kinds(done.messages) == ["user", "reasoning"]


@pytest.mark.parametrize("mode", MODES)
async def test_the_time_to_the_first_token_is_recorded(store: str, mode: str) -> None:
    """From admission always, from the caller's own timestamp when it was told; it never changes after the first."""
    async with scripted([ASKS, says("Thanks."), says("Hello.")], store) as (client, _):
        begun = time.time_ns() - 5_000_000_000
        first = (await start(client, mode, step("Code?", SECRET, request_start_timestamp_ns=begun))).run
        arrived = first.first_token_time.ToNanoseconds()
        assert first.create_time.ToNanoseconds() <= arrived <= first.update_time.ToNanoseconds()
        assert first.time_to_first_token_ns == arrived - first.create_time.ToNanoseconds()
        assert first.request_to_first_token_ns == arrived - begun
        resumed = await resume(
            client, mode, first, submit(first.run_id, returned(first.pending_tool_calls[0], "SECRET-42"))
        )
        assert resumed.run.first_token_time == first.first_token_time
        untold = (await start(client, mode, step("Hello?"))).run
        assert untold.HasField("time_to_first_token_ns") and not untold.HasField("request_to_first_token_ns")


async def test_labels_model_and_system_prompt_are_the_runs_own(store: str) -> None:
    """The overrides hold for the whole run, over its pause, and not for the next one; labels are kept as sent."""
    async with scripted([ASKS, says("Thanks."), says("Hello.")], store, instructions="Be kind.") as (client, upstream):
        labels = {"team": "blue", "order.id": "é 7"}
        paused = await client.ask("Code?", SECRET, model="other-model", system_prompt="Be brief.", labels=labels)
        assert (paused.run.model, dict(paused.run.labels)) == ("other-model", labels)
        done = await client.answer(paused.run.run_id, returned(paused.run.pending_tool_calls[0], "SECRET-42"))
        assert dict(done.run.labels) == labels
        later = await client.ask("Hello?", conversation_id=done.run.conversation_id)
        assert (later.run.model, dict(later.run.labels)) == ("scripted-model", {})
        assert [(r.model, r.system) for r in upstream.requests] == [
            ("other-model", "Be brief."),
            ("other-model", "Be brief."),
            ("scripted-model", "Be kind."),
        ]


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        (tools_pb2.ToolChoice(), None),
        (tools_pb2.ToolChoice(mode=tools_pb2.TOOL_CHOICE_MODE_AUTO), None),
        (tools_pb2.ToolChoice(mode=tools_pb2.TOOL_CHOICE_MODE_REQUIRED), "required"),
        (tools_pb2.ToolChoice(tool_name="get_secret_code"), {"type": "function", "function": {"name": SECRET.name}}),
    ],
    ids=["unset", "auto", "required", "by name"],
)
async def test_the_tool_choice_holds_for_the_first_request_of_the_run(
    store: str, choice: tools_pb2.ToolChoice, sent: object
) -> None:
    """AUTO is the endpoint's default and not sent; the request after the pause is AUTO again."""
    async with scripted([ASKS, says("Thanks.")], store) as (client, upstream):
        paused = await client.ask("Code?", SECRET, tool_choice=choice)
        await client.answer(paused.run.run_id, returned(paused.run.pending_tool_calls[0], "SECRET-42"))
        assert [request.body.get("tool_choice") for request in upstream.requests] == [sent, None]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "choice",
    [
        tools_pb2.ToolChoice(mode=tools_pb2.TOOL_CHOICE_MODE_REQUIRED),
        tools_pb2.ToolChoice(tool_name="get_secret_code"),
    ],
    ids=["required", "by name"],
)
async def test_a_required_call_that_the_model_does_not_make_fails_the_run(
    store: str, mode: str, choice: tools_pb2.ToolChoice
) -> None:
    """NO_TOOL_CALL; the text that it wrote instead is kept, and the next message works."""
    async with scripted([says("I will not.", unruly=True), says("Hello.")], store) as (client, _):
        failed = await start(client, mode, step("Code?", SECRET, tool_choice=choice))
        assert failed.run.status == runs_pb2.RUN_STATUS_FAILED
        assert failed.run.stop_reason == runs_pb2.STOP_REASON_NO_TOOL_CALL
        assert failed.run.error.message and not failed.run.error.retryable
        assert failed.messages[-1].assistant.text == "I will not."
        later = await client.ask("Hello?", conversation_id=failed.run.conversation_id)
        assert later.run.status == runs_pb2.RUN_STATUS_COMPLETED


async def test_a_call_in_spite_of_tool_choice_none_is_not_executed(store: str) -> None:
    """NONE goes to the endpoint; a model that calls all the same gets an error return, and nothing pauses."""
    none = tools_pb2.ToolChoice(mode=tools_pb2.TOOL_CHOICE_MODE_NONE)
    unruly = calls(("get_secret_code", {"name": "Alice"}), unruly=True)
    async with scripted([unruly, says("No tools, then.")], store) as (client, upstream):
        done = await client.ask("Code?", SECRET, tool_choice=none)
        assert upstream.requests[0].body["tool_choice"] == "none"
        assert kinds(done.messages) == ["user", "tool_call", "tool_return", "assistant"]
        assert done.messages[2].tool_return.outcome == tools_pb2.TOOL_CALL_OUTCOME_FAILED


@pytest.mark.parametrize("allowed", [True, False, None])
async def test_parallel_tool_calls_is_passed_on(store: str, allowed: bool | None) -> None:
    """Unset leaves it to the endpoint."""
    async with scripted([says("Hello.")], store) as (client, upstream):
        await client.ask("Hello?", SECRET, parallel_tool_calls=allowed)
        assert upstream.requests[0].body.get("parallel_tool_calls") is allowed


@pytest.mark.parametrize("mode", MODES)
async def test_usage_and_attempts_add_up_over_pauses(store: str, mode: str) -> None:
    """Usage sums what the endpoint counted; attempts count every request, also one that broke off."""
    script = [
        calls(("get_secret_code", {"name": "Alice"}), usage=Usage(prompt=10, completion=5, cached=4)),
        breaks_off("I will"),
        calls(("get_secret_code", {"name": "Bob"}), usage=Usage(prompt=20, completion=7, reasoning=3)),
        says("Thanks.", usage=Usage(prompt=30, completion=1, cached=20)),
    ]
    async with scripted(script, store) as (client, _):
        window = await start(client, mode, step("Codes?", SECRET))
        for _round in range(2):
            pending = window.run.pending_tool_calls[0]
            window = await resume(client, mode, window.run, submit(window.run.run_id, returned(pending, "SECRET")))
        usage = runs_pb2.Usage(
            prompt_tokens=60, completion_tokens=13, total_tokens=73, cached_prompt_tokens=24, reasoning_tokens=3
        )
        assert window.run.usage == usage
        assert (window.run.steps_taken, window.run.model_attempts) == (3, 4)
        stops = [e.run_stopped for e in await client.watch(window.run.run_id) if e.HasField("run_stopped")]
        assert [stop.usage.total_tokens for stop in stops] == [15, 42, 73]


async def test_background_answers_at_once_and_max_wait_when_it_is_over(store: str) -> None:
    """Both answer OK with the present status while the model works; the run goes on to its end."""
    gate = Gate()
    async with scripted([says("Hello.", gate=gate), says("Hello.", gate=gate)], store) as (client, _):
        accepted = await client.ask("Hello?", background=True)
        request = step("Hello?")
        request.max_wait.FromMilliseconds(0)
        waited = await client.agent.Step(request)
        for response in (accepted, waited):
            assert response.run.status == runs_pb2.RUN_STATUS_RUNNING
            assert not response.run.HasField("stop_reason")
            assert kinds(response.messages) == ["user"]
        gate.open()
        for response in (accepted, waited):
            assert (await client.watch(response.run.run_id))[-1].run_stopped.final


async def test_background_is_refused_in_a_stream(store: str) -> None:
    """The message names the way to do it."""
    async with scripted([], store) as (client, _):
        stream = agent_service_pb2.StreamRequest(step=step("Hello?", background=True))
        refused = await refusal(client.agent.Stream(stream))
        assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", ("step.background",))
        assert "WatchRun" in refused.message


@pytest.mark.parametrize(
    "arguments",
    ['{"message": "\\ud83d"}', '{"message": 7}', "{}", "[" * 100_000, '{"message": "Hi"'],
    ids=["half of a pair", "no text", "nothing", "too deep", "cut"],
)
@pytest.mark.parametrize("mode", MODES)
async def test_a_message_that_cannot_be_said_is_shown_as_the_call_it_is(store: str, mode: str, arguments: str) -> None:
    """With the error return that the model got, so that the caller can see why."""
    async with scripted([calls(("send_message", arguments)), says("Hm.")], store, **SPEAKS) as (client, _):
        done = await start(client, mode, step("Say hi"))
        assert kinds(done.messages) == ["user", "tool_call", "tool_return", "assistant"]
        assert done.messages[1].tool_call.tool_calls[0].arguments_json == arguments
        assert done.messages[2].tool_return.outcome == tools_pb2.TOOL_CALL_OUTCOME_FAILED
