"""Structured output: the answer of a run is JSON of the asked schema, or the run says where it is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agentrpc.v1 import agent_service_pb2, errors_pb2, messages_pb2, run_service_pb2, runs_pb2, tools_pb2
from google.protobuf import struct_pb2

from tests.modes import MODES, resume, start, story
from tests.scripted_openai import ScriptedOpenAI, calls, cut_by_length, fails, says
from tests.service import SECRET, kinds, refusal, returned, scripted, serving, step, submit

pytestmark = pytest.mark.anyio

PERSON = (
    '{"type": "object", "properties": {"age": {"type":"integer"}}, "required": ["age"], "additionalProperties":false}'
)
WANTED = agent_service_pb2.ResponseFormat(name="person", description="Who it is.", schema_json=PERSON, strict=True)
GOOD, BAD = '{"age": 7}', '{"age": "x"}'
ASKS = calls(("get_secret_code", {"name": "Alice"}))
WRONG = 'at /age: "x" is not of type "integer"'
SENT = {
    "type": "json_schema",
    "json_schema": {"name": "person", "description": "Who it is.", "schema": json.loads(PERSON), "strict": True},
}
BY_SCHEMA: dict[str, Any] = {"tool_mode": "json_schema"}
COMPLETED, FAILED = runs_pb2.RUN_STATUS_COMPLETED, runs_pb2.RUN_STATUS_FAILED


def wanted(schema_json: str = PERSON, **fields: Any) -> agent_service_pb2.ResponseFormat:
    """A response format."""
    return agent_service_pb2.ResponseFormat(schema_json=schema_json, **fields)


@pytest.mark.parametrize("mode", MODES)
async def test_the_endpoint_is_asked_for_the_schema_and_the_answer_is_its_text(store: str, mode: str) -> None:
    """Over a pause, too: the format is pinned on the run. What would be sent is shown by the dry run."""
    written = '{ "age":7 }'
    async with scripted([ASKS, says(written)], store) as (client, upstream):
        request = step("Age of Alice?", SECRET, response_format=WANTED)
        built = await client.agent.BuildRequest(agent_service_pb2.BuildRequestRequest(step=request))
        paused = await start(client, mode, request)
        assert built.request_json.encode() == upstream.requests[0].raw
        returns = submit(paused.run.run_id, returned(paused.run.pending_tool_calls[0], "7 years"))
        built = await client.agent.BuildRequest(agent_service_pb2.BuildRequestRequest(submit=returns))
        done = await resume(client, mode, paused.run, returns)
        assert built.request_json.encode() == upstream.requests[1].raw
        assert [sent.body["response_format"] for sent in upstream.requests] == [SENT, SENT]
        assert PERSON.encode() in upstream.requests[0].raw
        assert done.messages[-1].assistant.text == written
        assert (done.run.status, done.run.stop_reason) == (COMPLETED, runs_pb2.STOP_REASON_END_TURN)


async def test_a_schema_may_be_a_struct_and_needs_no_name(store: str) -> None:
    """Endpoints insist on a name, and on the type of the schema; without `strict` it is said that it is not."""
    schema = struct_pb2.Struct()
    schema.update({"properties": {"age": {"minimum": 7}}})
    async with scripted([says(GOOD)], store) as (client, upstream):
        answer = await client.ask("Age?", response_format=agent_service_pb2.ResponseFormat(schema=schema))
        assert upstream.requests[0].body["response_format"]["json_schema"] == {
            "name": "answer",
            "schema": {"type": "object", "properties": {"age": {"minimum": 7}}},
            "strict": False,
        }
        assert answer.messages[-1].assistant.text == GOOD


@pytest.mark.parametrize(
    "choice",
    [
        tools_pb2.ToolChoice(mode=tools_pb2.TOOL_CHOICE_MODE_REQUIRED),
        tools_pb2.ToolChoice(tool_name="get_secret_code"),
    ],
    ids=["required", "named"],
)
async def test_a_request_that_demands_a_call_asks_for_no_format(store: str, choice: tools_pb2.ToolChoice) -> None:
    """Its answer is no text; the next one may be."""
    async with scripted([ASKS, says(GOOD)], store) as (client, upstream):
        run = (await client.ask("Age?", SECRET, tool_choice=choice, response_format=WANTED)).run
        await client.answer(run.run_id, returned(run.pending_tool_calls[0], "7"))
        assert ["response_format" in sent.body for sent in upstream.requests] == [False, True]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("written", "problem"),
    [
        (BAD, WRONG),
        ("{}", 'at /: "age" is a required property'),
        ("It is 7.", "it is not valid JSON: Expecting value: line 1 column 1 (char 0)"),
        ("[7]", "it is an array, not a JSON object"),
        (f"```json\n{GOOD}\n```", "it is not valid JSON: Expecting value: line 1 column 1 (char 0)"),
        ('{"age": 7, "age": 8}', "it is not valid JSON: key 'age' twice in one object"),
    ],
    ids=["type", "missing", "prose", "array", "fenced", "twice"],
)
async def test_the_model_is_told_what_is_wrong_and_asked_again(
    store: str, mode: str, written: str, problem: str
) -> None:
    """Its answer and what it was told are stored, both with the id of the step; the good answer comes last."""
    async with scripted([says(written), says(GOOD)], store) as (client, upstream):
        done = await start(client, mode, step("Age?", response_format=WANTED))
        assert kinds(done.messages) == ["user", "assistant", "system", "assistant"]
        _, refused, told, answer = done.messages
        assert (refused.assistant.text, answer.assistant.text) == (written, GOOD)
        assert refused.step_id == told.step_id != ""
        assert told.system.text == (
            f"Error: your answer is against the response schema: {problem}. "
            "Answer again, with nothing but JSON that satisfies the schema."
        )
        assert upstream.requests[1].messages[-2:] == [
            {"role": "assistant", "content": written},
            {"role": "system", "content": told.system.text},
        ]
        assert (done.run.stop_reason, done.run.steps_taken) == (runs_pb2.STOP_REASON_END_TURN, 2)
        assert await client.messages(done.run.conversation_id) == done.messages


@pytest.mark.parametrize("mode", MODES)
async def test_a_run_without_a_good_answer_fails_and_says_where_the_last_one_is_wrong(store: str, mode: str) -> None:
    """After three answers; two corrections were told. The conversation goes on with the next message."""
    script = [says("No."), says("{}"), says(BAD), says("Hello.")]
    async with scripted(script, store) as (client, upstream):
        done = await start(client, mode, step("Age?", response_format=WANTED))
        assert kinds(done.messages) == ["user", "assistant", "system", "assistant", "system", "assistant"]
        assert (done.run.status, done.run.stop_reason) == (FAILED, runs_pb2.STOP_REASON_INVALID_LLM_RESPONSE)
        assert done.run.error.reason == errors_pb2.ERROR_REASON_RESPONSE_SCHEMA_VIOLATION
        assert done.run.error.message == f"no answer satisfied the response schema; the last of 3: {WRONG}"
        free = await client.ask("Hello?", conversation_id=done.run.conversation_id)
        assert free.messages[-1].assistant.text == "Hello."
        assert "response_format" not in upstream.requests[-1].body


async def test_the_story_of_a_corrected_run_is_the_same_in_every_mode(store: str) -> None:
    """Durable events do not depend on how they are read."""
    stories = []
    for mode in MODES[1:]:
        async with scripted([says(BAD), says(GOOD)], store) as (client, _):
            run = (await start(client, mode, step("Age?", response_format=WANTED))).run
            stories.append(story(await client.watch(run.run_id)))
    assert stories[0] == stories[1] == stories[2]


async def test_the_limit_of_such_answers_is_a_setting(store: str) -> None:
    """One: the first bad answer ends the run."""
    async with scripted([says(BAD)], store, limits={"max_invalid_answers": 1}) as (client, _):
        run = (await client.ask("Age?", response_format=WANTED)).run
        assert run.error.message == f"no answer satisfied the response schema; the last of 1: {WRONG}"


async def test_bad_answers_count_over_the_whole_run(store: str) -> None:
    """A call between them makes none of them good."""
    script = [says(BAD), ASKS, says(BAD), says(BAD)]
    async with scripted(script, store) as (client, _):
        run = (await client.ask("Age?", SECRET, response_format=WANTED)).run
        run = (await client.answer(run.run_id, returned(run.pending_tool_calls[0], "7"))).run
        assert (run.status, run.steps_taken) == (FAILED, 4)
        assert run.error.message.endswith(f"the last of 3: {WRONG}")


async def test_a_bad_answer_in_the_last_step_fails_the_run(store: str) -> None:
    """It is not COMPLETED with MAX_STEPS: its answer is there, and is not what was asked for."""
    async with scripted([says(BAD)], store) as (client, _):
        run = (await client.ask("Age?", response_format=WANTED, max_steps=1)).run
        assert (run.status, run.stop_reason) == (FAILED, runs_pb2.STOP_REASON_INVALID_LLM_RESPONSE)


async def test_an_answer_cut_by_the_token_limit_is_not_checked(store: str) -> None:
    """The stop reason says why it is incomplete; asking again would be cut again."""
    async with scripted([cut_by_length('{"age": 70000}')], store) as (client, _):
        run = (await client.ask("Age?", response_format=WANTED)).run
        assert (run.status, run.stop_reason) == (COMPLETED, runs_pb2.STOP_REASON_MAX_TOKENS_EXCEEDED)


async def test_a_correction_is_asked_for_with_the_same_tool_choice(store: str) -> None:
    """Who wants no calls gets none because of a bad answer; what comes after a call is a request of its own."""
    none = tools_pb2.ToolChoice(mode=tools_pb2.TOOL_CHOICE_MODE_NONE)
    async with scripted([says(BAD), says(GOOD)], store) as (client, upstream):
        await client.ask("Age?", SECRET, tool_choice=none, response_format=WANTED)
        assert [sent.body["tool_choice"] for sent in upstream.requests] == ["none", "none"]
    required = tools_pb2.ToolChoice(mode=tools_pb2.TOOL_CHOICE_MODE_REQUIRED)
    async with scripted([ASKS, says(BAD), says(GOOD)], store) as (client, upstream):
        run = (await client.ask("Age?", SECRET, tool_choice=required, response_format=WANTED)).run
        await client.answer(run.run_id, returned(run.pending_tool_calls[0], "7"))
        assert [sent.body.get("tool_choice") for sent in upstream.requests] == ["required", None, None]


async def test_text_beside_calls_is_no_answer(store: str) -> None:
    """Models think aloud before they call."""
    thinks = calls(("get_secret_code", {"name": "Alice"}), text="I look it up.")
    async with scripted([thinks, says(GOOD)], store) as (client, _):
        paused = await client.ask("Age?", SECRET, response_format=WANTED)
        assert kinds(paused.messages) == ["user", "assistant", "tool_call"]
        done = await client.answer(paused.run.run_id, returned(paused.run.pending_tool_calls[0], "7"))
        assert done.run.status == COMPLETED


async def test_an_answer_of_reasoning_alone_is_a_bad_one(store: str) -> None:
    """There is no text that could be the JSON."""
    async with scripted([says("", reasoning="Hm."), says(GOOD)], store) as (client, upstream):
        done = await client.ask("Age?", response_format=WANTED)
        assert kinds(done.messages) == ["user", "reasoning", "system", "assistant"]
        assert [message["role"] for message in upstream.requests[1].history] == ["user"]


async def test_what_the_model_was_told_outlives_a_failure(store: str) -> None:
    """The correction is stored with the answer: the retry asks with both."""
    async with scripted([says(BAD), fails(503), says(GOOD)], store) as (client, upstream):
        run = (await client.ask("Age?", response_format=WANTED)).run
        assert run.status == runs_pb2.RUN_STATUS_INTERRUPTED
        await client.retry(run.run_id)
        await client.watch(run.run_id)
        assert (await client.run(run.run_id)).status == COMPLETED
        assert upstream.requests[2].messages == upstream.requests[1].messages
        assert WRONG in upstream.requests[2].last["content"]


async def test_the_format_outlives_the_server(shared_store: str) -> None:
    """A pause that another process resumes still wants the schema."""
    async with ScriptedOpenAI([ASKS, says(BAD), says(GOOD)]) as upstream:
        async with serving(upstream, shared_store) as client:
            run = (await client.ask("Age?", SECRET, response_format=WANTED)).run
        async with serving(upstream, shared_store) as client:
            done = await client.answer(run.run_id, returned(run.pending_tool_calls[0], "7"))
    assert kinds(done.messages) == ["tool_return", "assistant", "system", "assistant"]
    assert upstream.requests[1].body["response_format"] == SENT


async def test_the_format_is_part_of_what_a_start_is(store: str) -> None:
    """The same start joins its run; with another schema it is another request."""
    async with scripted([says(GOOD)], store) as (client, upstream):
        first = await client.ask("Age?", run_id="run-1", response_format=WANTED)
        again = await client.ask("Age?", run_id="run-1", response_format=WANTED)
        assert again == first
        for other in (wanted(PERSON), wanted(PERSON, name="person", strict=True), None):
            assert (await refusal(client.ask("Age?", run_id="run-1", response_format=other))).reason == "RUN_ID_REUSED"
        assert upstream.request_count == 1


async def test_a_responder_answers_in_the_format_as_well(store: str) -> None:
    """It needs no tools for that."""
    async with scripted([says(GOOD)], store) as (client, upstream):
        done = await client.ask("Age?", agent_id="responder", response_format=WANTED)
        assert done.messages[-1].assistant.text == GOOD
        assert upstream.requests[0].body["response_format"] == SENT


STRUCT = struct_pb2.Struct()
STRUCT.update({"type": "array"})
REFUSED: dict[str, tuple[agent_service_pb2.ResponseFormat, str, str, str]] = {
    "empty": (wanted(""), "INVALID_FIELD", "schema_json", "is empty, and so is schema"),
    "both": (wanted(schema=STRUCT), "INVALID_FIELD", "schema_json", "set together with schema"),
    "name": (wanted(name="a b"), "INVALID_FIELD", "name", "'a b' is not 1 to 64"),
    "description": (wanted(description="d" * 65537), "INVALID_FIELD", "description", "65537 bytes; at most 65536"),
    "no JSON": (wanted("{"), "INVALID_RESPONSE_SCHEMA", "schema_json", "not valid JSON"),
    "array": (
        agent_service_pb2.ResponseFormat(schema=STRUCT),
        "INVALID_RESPONSE_SCHEMA",
        "schema",
        '/type: must be "object", found "array"',
    ),
    "remote": (
        wanted('{"$ref": "https://example.org/a"}'),
        "INVALID_RESPONSE_SCHEMA",
        "schema_json",
        "only references inside the same schema",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_format_that_cannot_be_used_is_refused_with_its_field(store: str, case: str) -> None:
    """Before anything is stored, and in the dry run as well."""
    bad, reason, field, problem = REFUSED[case]
    async with scripted([], store) as (client, _):
        request = step("Age?", run_id="run-1", response_format=bad)
        found = await refusal(client.agent.Step(request))
        assert (found.code, found.reason) == ("INVALID_ARGUMENT", reason)
        assert problem in found.message
        if case != "both":  # the schema that is beside it is a bad one as well
            assert found.fields == (f"response_format.{field}",)
        dry = await refusal(client.agent.BuildRequest(agent_service_pb2.BuildRequestRequest(step=request)))
        assert dry.fields[0] == f"step.response_format.{field}"
        assert (await refusal(client.run("run-1"))).code == "NOT_FOUND"


# Endpoints that constrain their output but do not call tools.

WRAPPED = f'{{"answer": {GOOD}}}'
CALLED = '{"tool": "get_secret_code", "arguments": {"name": "Alice"}}'


@pytest.mark.parametrize("mode", MODES)
async def test_by_schema_the_answer_is_an_alternative_to_a_call(store: str, mode: str) -> None:
    """In an object of its own, so that no answer is taken for a call; callers see the JSON that was asked for."""
    async with scripted([says(CALLED), says(WRAPPED)], store, **BY_SCHEMA) as (client, upstream):
        paused = await start(client, mode, step("Age?", SECRET, response_format=WANTED))
        (call,) = paused.run.pending_tool_calls
        done = await resume(client, mode, paused.run, submit(paused.run.run_id, returned(call, "7")))
        assert done.messages[-1].assistant.text == GOOD
        assert done.run.status == COMPLETED
        for sent in upstream.requests:
            either = sent.body["response_format"]["json_schema"]["schema"]["anyOf"]
            assert [list(one["properties"]) for one in either] == [["tool", "arguments"], ["answer"]]
            assert either[1]["properties"]["answer"] == json.loads(PERSON)
            assert PERSON in sent.system and "Who it is." in sent.system


async def test_by_schema_an_answer_of_any_form_is_checked_and_corrected(store: str) -> None:
    """Bare JSON of the schema will do, though the model was asked to wrap it; anything else is told to it."""
    script = [says("Hm."), says(f'{{"answer": {BAD}}}'), says(GOOD)]
    async with scripted(script, store, **BY_SCHEMA) as (client, upstream):
        done = await client.ask("Age?", SECRET, response_format=WANTED)
        assert [m.assistant.text for m in done.messages if m.HasField("assistant")] == ["Hm.", BAD, GOOD]
        assert [m.system.text.count(WRONG) for m in done.messages if m.HasField("system")] == [0, 1]
        assert done.run.status == COMPLETED
        assert upstream.requests[2].last["role"] == "system"


async def test_by_schema_references_hold_where_the_schema_is_put(store: str) -> None:
    """They count from the root of the whole."""
    schema = {"type": "object", "properties": {"p": {"$ref": "#/$defs/P"}}, "$defs": {"P": {"type": "string"}}}
    async with scripted([says('{"answer": {"p": "x"}}')], store, **BY_SCHEMA) as (client, upstream):
        done = await client.ask("P?", SECRET, response_format=wanted(json.dumps(schema)))
        assert done.messages[-1].assistant.text == '{"p": "x"}'
        either = upstream.requests[0].body["response_format"]["json_schema"]["schema"]["anyOf"]
        assert either[1]["properties"]["answer"]["properties"]["p"] == {"$ref": "#/anyOf/1/properties/answer/$defs/P"}


async def test_by_schema_a_forced_call_has_no_answer(store: str) -> None:
    """Only the call's schema, as without a format."""
    choice = tools_pb2.ToolChoice(tool_name="get_secret_code")
    async with scripted([says(CALLED)], store, **BY_SCHEMA) as (client, upstream):
        await client.ask("Age?", SECRET, tool_choice=choice, response_format=WANTED)
        sent = upstream.requests[0].body["response_format"]["json_schema"]["schema"]
        assert list(sent["properties"]) == ["tool", "arguments"]


@pytest.mark.parametrize("marked", [False, True])
async def test_by_schema_where_no_call_is_possible_the_schema_is_asked_for_as_it_is(store: str, marked: bool) -> None:
    """NONE, or a return for a model that answers after one; also when that answer has to be corrected. The endpoint is
    to make sure of it, as of calls."""
    lax = agent_service_pb2.ResponseFormat()
    lax.CopyFrom(WANTED)
    lax.strict = False
    settings = BY_SCHEMA | {"answers_after_return": marked}
    script = [says(CALLED)] if marked else []
    async with scripted([*script, says(BAD), says(GOOD)], store, **settings) as (client, upstream):
        if marked:
            run = (await client.ask("Age?", SECRET, response_format=lax)).run
            done: Any = await client.answer(run.run_id, returned(run.pending_tool_calls[0], "7"))
            asked = upstream.requests[1:]
        else:
            done = await client.ask("Age?", agent_id="responder", response_format=lax)
            asked = upstream.requests
        assert done.messages[-1].assistant.text == GOOD
        assert [sent.body["response_format"] for sent in asked] == [SENT, SENT]
        assert all(PERSON in sent.system for sent in asked)


async def test_by_schema_a_cut_answer_is_kept_as_it_was_written(store: str) -> None:
    """Without what was put around it."""
    script = [cut_by_length(says([WRAPPED[:15], WRAPPED[15:]]), after=1)]
    async with scripted(script, store, **BY_SCHEMA) as (client, _):
        done = await client.ask("Age?", SECRET, response_format=WANTED)
        assert done.messages[-1].assistant.text == '{"ag'
        assert done.run.stop_reason == runs_pb2.STOP_REASON_MAX_TOKENS_EXCEEDED


async def test_what_the_server_said_is_a_system_message_for_views(store: str) -> None:
    """A caller that asks for assistant messages alone does not see it."""
    types = [messages_pb2.MESSAGE_TYPE_ASSISTANT]
    async with scripted([says(BAD), says(GOOD)], store) as (client, _):
        done = await client.ask("Age?", response_format=WANTED, include_return_message_types=types)
        assert [message.assistant.text for message in done.messages] == [BAD, GOOD]
        request = run_service_pb2.WatchRunRequest(run_id=done.run.run_id, include_return_message_types=types)
        shown = [response.event async for response in client.runs.WatchRun(request)]
        assert sum(event.HasField("message_stored") for event in shown) == 2
