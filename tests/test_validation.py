"""What a start is checked for before anything is stored: each bad field is named by its path, all of them at once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agentrpc.v1 import agent_service_pb2, content_pb2, messages_pb2, run_service_pb2, runs_pb2, tools_pb2
from google.protobuf import struct_pb2

from tests.scripted_openai import calls, says
from tests.service import SECRET, Client, Refusal, refusal, returned, scripted, step

pytestmark = pytest.mark.anyio

KIB = 1024
LIMITS = {"limits": {"max_request_bytes": 300 * KIB, "max_input_bytes": 100, "max_labels": 2, "max_client_tools": 3}}


def schema(parameters_json: str, **fields: Any) -> tools_pb2.ClientToolSchema:
    """A client tool."""
    return tools_pb2.ClientToolSchema(**{"name": "tool", "parameters_json": parameters_json, **fields})


def said(**fields: Any) -> messages_pb2.InputMessage:
    """An input message."""
    return messages_pb2.InputMessage(**fields)


async def refused_everywhere(client: Client, request: agent_service_pb2.StepRequest) -> Refusal:
    """The refusal of a start, which is the same when streamed and in a dry run but for the path of the arm; and there
    is no run."""
    request.run_id = request.run_id or "run-1"
    found = await refusal(client.agent.Step(request))
    streamed = await refusal(client.agent.Stream(agent_service_pb2.StreamRequest(step=request)))
    dry = await refusal(client.agent.BuildRequest(agent_service_pb2.BuildRequestRequest(step=request)))
    assert streamed == dry
    assert streamed.fields == tuple(f"step.{field}" for field in found.fields)
    assert (streamed.code, streamed.reason) == (found.code, found.reason)
    if request.run_id == "run-1":
        assert (await refusal(client.run("run-1"))).code == "NOT_FOUND"
    return found


FIELDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no input": ({"input_messages": []}, "input_messages", "is empty; send at least one message"),
    "empty text": ({"input_messages": [said()]}, "input_messages[0].text", "is empty, and so is parts; send one"),
    "text and parts": (
        {"input_messages": [said(text="a"), said(text="a", parts=[content_pb2.ContentPart(text="b")])]},
        "input_messages[1].parts",
        "set together with text",
    ),
    "empty part": (
        {"input_messages": [said(parts=[content_pb2.ContentPart(text="a"), content_pb2.ContentPart()])]},
        "input_messages[0].parts[1]",
        "has no content",
    ),
    "name": ({"input_messages": [said(text="a", name="Å b")]}, "input_messages[0].name", "'Å b' is not 1 to 64"),
    "too much input": (
        {"input_messages": [said(text="é" * 26)] * 2},
        "input_messages",
        "104 bytes of text; at most 100",
    ),
    "run_id": ({"run_id": "run 1"}, "run_id", "'run 1' is not 1 to 64 of"),
    "long run_id": ({"run_id": "r" * 65}, "run_id", "is not 1 to 64 of"),
    "run_id with a line": ({"run_id": "run-1\n"}, "run_id", "is not 1 to 64 of"),
    "conversation_id": ({"conversation_id": "ä"}, "conversation_id", "'ä' is not 1 to 64 of"),
    "agent_id": ({"agent_id": "a/b"}, "agent_id", "'a/b' is not 1 to 64 of"),
    "model": ({"model": "m" * 257}, "model", "257 bytes; at most 256"),
    "system prompt": ({"system_prompt": "é" * 51}, "system_prompt", "102 bytes; at most 100"),
    "clock": ({"request_start_timestamp_ns": -1}, "request_start_timestamp_ns", "-1 is negative"),
    "many labels": ({"labels": {"a": "", "b": "", "c": ""}}, "labels", "3 labels; at most 2"),
    "label key": ({"labels": {"a b": ""}}, "labels", "key 'a b' is not 1 to 64"),
    "label value": ({"labels": {"a": "é" * 257}}, 'labels["a"]', "257 characters; at most 256"),
    "mode and name": (
        {
            "client_tools": [SECRET],
            "tool_choice": tools_pb2.ToolChoice(mode=tools_pb2.TOOL_CHOICE_MODE_NONE, tool_name=SECRET.name),
        },
        "tool_choice.tool_name",
        "set together with mode",
    ),
    "many tools": (
        {"client_tools": [schema("{}", name=f"t{n}") for n in range(4)]},
        "client_tools",
        "4 tools; at most 3",
    ),
    "tool name": ({"client_tools": [schema("{}", name="a.b")]}, "client_tools[0].name", "'a.b' is not 1 to 64 letters"),
    "no tool name": ({"client_tools": [schema("{}", name="")]}, "client_tools[0].name", "'' is not 1 to 64 letters"),
    "same name": (
        {"client_tools": [SECRET, schema("{}"), SECRET]},
        "client_tools[2].name",
        "'get_secret_code' is the name of client_tools[0]",
    ),
    "description": (
        {"client_tools": [schema("{}", description="d" * (64 * KIB + 1))]},
        "client_tools[0].description",
        "65537 bytes; at most 65536",
    ),
    "Struct and text": (
        {"client_tools": [schema("{}", parameters=struct_pb2.Struct())]},
        "client_tools[0].parameters_json",
        "set together with parameters",
    ),
    "unknown on_disconnect": ({"on_disconnect": 99}, "on_disconnect", "99 is not a value of OnDisconnect"),
    "unknown mode": ({"tool_choice": {"mode": 99}}, "tool_choice.mode", "99 is not a value of ToolChoiceMode"),
    "unknown role": (
        {"input_messages": [{"text": "a", "role": 99}]},
        "input_messages[0].role",
        "99 is not a value of Role",
    ),
    "unknown type": (
        {"include_return_message_types": [1, 99]},
        "include_return_message_types[1]",
        "99 is not a message type",
    ),
    "unspecified type": (
        {"include_return_message_types": [0]},
        "include_return_message_types[0]",
        "0 is not a message",
    ),
}


@pytest.mark.parametrize("case", FIELDS)
async def test_a_bad_field_is_named_with_what_is_allowed(store: str, case: str) -> None:
    """By its path as in the contract; the message alone suffices."""
    fields, path, description = FIELDS[case]
    async with scripted([], store, **LIMITS) as (client, _):
        request = agent_service_pb2.StepRequest(**{"input_messages": [said(text="Hello?")], **fields})
        refused = await refused_everywhere(client, request)
        assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
        assert refused.fields == (path,)
        assert refused.message.startswith(f"{path}: ") and description in refused.message


async def test_all_problems_are_named_at_once(store: str) -> None:
    """In one answer, so that one correction suffices."""
    async with scripted([], store) as (client, _):
        request = agent_service_pb2.StepRequest(
            input_messages=[said(text="a", name="?"), said()],
            client_tools=[schema("[]"), schema("{}", name="b b")],
            max_steps=0,
            labels={"a b": "c"},
        )
        refused = await refused_everywhere(client, request)
        assert refused.fields == (
            "input_messages[0].name",
            "input_messages[1].text",
            "client_tools[0].parameters_json",
            "client_tools[1].name",
            "max_steps",
            "labels",
        )
        for field in refused.fields:
            assert f"{field}: " in refused.message


async def test_a_tool_choice_needs_its_tools(store: str) -> None:
    """A name that is not among the run's tools, and REQUIRED without any."""
    async with scripted([], store, tools="tests.server_tools:add") as (client, _):
        choice = tools_pb2.ToolChoice(tool_name="sub")
        refused = await refusal(client.ask("1 - 1?", SECRET, tool_choice=choice))
        assert refused.fields == ("tool_choice.tool_name",)
        assert refused.message == "tool_choice.tool_name: no tool 'sub' in this run; tools: add, get_secret_code"
        required = tools_pb2.ToolChoice(mode=tools_pb2.TOOL_CHOICE_MODE_REQUIRED)
        refused = await refusal(client.ask("1 - 1?", agent_id="responder", tool_choice=required))
        assert refused.fields == ("tool_choice.mode",)


@pytest.mark.parametrize("seconds", [-1, -(10**9)])
async def test_a_negative_wait_is_refused(store: str, seconds: int) -> None:
    """Zero means not to wait."""
    async with scripted([], store) as (client, _):
        request = step("Hello?", max_wait={"seconds": seconds})
        refused = await refusal(client.agent.Step(request))
        assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", ("max_wait",))


SCHEMAS = {
    "no JSON": ("{'type': 'object'}", "not valid JSON"),
    "cut": ('{"type": "object"', "not valid JSON"),
    "two values": ("{} {}", "not valid JSON"),
    "key twice": ('{"type":"object","properties":{"a":{"type":"string","type":"integer"}}}', "key 'type' twice"),
    "NaN": ('{"type":"object","properties":{"a":{"maximum":NaN}}}', "NaN is not JSON"),
    "Infinity": ('{"type":"object","properties":{"a":{"maximum":-Infinity}}}', "-Infinity is not JSON"),
    "wrong type": ('{"type":"strng"}', '/type: must be "object"'),
    "no schema": ('{"type":"object","properties":{"a":{"type":"strng"}}}', 'at /properties/a/type: "strng" is not'),
    "no properties": ('{"type":"object","properties":[]}', 'at /properties: [] is not of type "object"'),
    "bad pattern": (
        '{"type":"object","properties":{"a":{"pattern":"("}}}',
        'at /properties/a/pattern: "(" is not a "regex"',
    ),
    "half of a pair": ('{"type":"object","properties":{"\\ud83d":7}}', "not valid JSON Schema"),
    "remote ref": (
        '{"properties":{"a":{"$ref":"https://example.com/a.json"}}}',
        "only references inside the same schema",
    ),
    "file ref": ('{"properties":{"a":{"$ref":"other.json#/a"}}}', "only references inside the same schema"),
    "dangling ref": ('{"properties":{"a":{"$ref":"#/$defs/b"}}}', "$ref '#/$defs/b' leads nowhere"),
    "dangling anchor": ('{"properties":{"a":{"$ref":"#b"}}}', "$ref '#b' leads nowhere"),
    "ref into a list": ('{"properties":{"a":{"$ref":"#/allOf/x"}},"allOf":[{}]}', "$ref '#/allOf/x' leads nowhere"),
    "ref into a number": ('{"properties":{"a":{"$ref":"#/x/y"}},"x":7}', "$ref '#/x/y' leads nowhere"),
    "ref into text": ('{"properties":{"a":{"$ref":"#/type/y"}},"type":"object"}', "$ref '#/type/y' leads nowhere"),
    "ref to a number": ('{"properties":{"a":{"$ref":"#/x"}},"x":7}', "leads to a number, not to a schema"),
    "too deep": ('{"properties":{"a":' * 17 + "{}" + "}}" * 17, "nested deeper than 32 levels"),
    "far too deep": ('{"not":' * 5000 + "{}" + "}" * 5000, "nested"),
    "too big": ('{"description":"' + "a" * 64 * KIB + '"}', "65554 bytes; at most 65536"),
    "list": ("[]", "must be a JSON object, found an array"),
    "null": ("null", "must be a JSON object, found null"),
    "true": ("true", "must be a JSON object, found a boolean"),
    "number": ("1" * 5000, "not valid JSON"),
    "array schema": ('{"type":"array"}', '/type: must be "object", found "array"'),
    "types": ('{"type":["object","null"]}', '/type: must be "object"'),
}


@pytest.mark.parametrize("case", SCHEMAS)
async def test_a_schema_that_cannot_be_used_is_refused_with_the_reason(store: str, case: str) -> None:
    """Before the run is stored, not when the model calls the tool."""
    text, problem = SCHEMAS[case]
    async with scripted([], store) as (client, _):
        request = step("Hello?", schema("{}", name="good"), schema(text))
        refused = await refused_everywhere(client, request)
        assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "INVALID_TOOL_SCHEMA")
        assert refused.fields == ("client_tools[1].parameters_json",)
        assert refused.message.startswith("client_tools[1].parameters_json: ") and problem in refused.message


async def test_result_schemas_are_checked_alike_but_may_be_of_any_type(store: str) -> None:
    """A tool may return a plain string or a list."""
    async with scripted([says("Hello.")], store) as (client, _):
        refused = await refusal(client.ask("Hello?", schema("", result_schema_json='{"type":"strng"}')))
        assert (refused.reason, refused.fields) == ("INVALID_TOOL_SCHEMA", ("client_tools[0].result_schema_json",))
        await client.ask("Hello?", schema("", result_schema_json='{"type":"array"}'))


async def test_references_inside_a_schema_are_followed(store: str) -> None:
    """By pointer, by anchor, and to itself."""
    text = json.dumps(
        {
            "type": "object",
            "properties": {"tree": {"$ref": "#/$defs/tree"}, "n": {"$ref": "#n"}},
            "$defs": {
                "tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
                "n": {"$anchor": "n", "type": "integer"},
            },
        }
    )
    script = [calls(("tool", '{"tree": [[7]]}')), calls(("tool", '{"n": "x"}')), calls(("tool", '{"tree":[[]],"n":1}'))]
    async with scripted(script, store) as (client, upstream):
        run = (await client.ask("Hello?", schema(text))).run
        assert run.status == runs_pb2.RUN_STATUS_PAUSED
        texts = list(upstream.requests[-1].returns.values())
        assert 'at /tree/0/0: 7 is not of type "array"' in texts[0]
        assert 'at /n: "x" is not of type "integer"' in texts[1]


async def test_a_schema_as_text_reaches_the_model_exactly(store: str) -> None:
    """Layout, order of keys and numbers of any size are kept."""
    text = '{ "type":"object", "properties":{"b":{"maximum":9007199254740993}, "a":{"const":1.0}} }'
    async with scripted([says("Hello.")], store) as (client, upstream):
        await client.ask("Hello?", schema(text, description="Über \u2028"))
        assert f'"parameters":{text}'.encode() in upstream.requests[0].raw
        assert upstream.requests[0].body["tools"][0]["function"]["description"] == "Über \u2028"


async def test_a_schema_as_a_struct_has_sorted_keys_and_whole_numbers(store: str) -> None:
    """What a Struct turned into doubles becomes integers again, as far as doubles are exact."""
    parameters = struct_pb2.Struct()
    parameters.update(
        {
            "type": "object",
            "required": ["b"],
            "properties": {
                "b": {"type": "integer", "minimum": 1, "maximum": 2**53, "default": None},
                "a": {"type": "number", "multipleOf": 0.5, "exclusiveMaximum": 2.0**60, "const": -0.0},
                "é": {"enum": [True, "x", [1.5]], "type": "string"},
            },
        }
    )
    script = [calls(("tool", {"b": 2})), says("Thanks.")]
    async with scripted(script, store) as (client, upstream):
        tool = tools_pb2.ClientToolSchema(name="tool", parameters=parameters)
        run = (await client.ask("Hello?", tool)).run
        expected = (
            '{"properties":{"a":{"const":0,"exclusiveMaximum":1.152921504606847e+18,"multipleOf":0.5,"type":"number"},'
            '"b":{"default":null,"maximum":9007199254740992,"minimum":1,"type":"integer"},'
            '"é":{"enum":[true,"x",[1.5]],"type":"string"}},"required":["b"],"type":"object"}'
        )
        assert f'"parameters":{expected}'.encode() in upstream.requests[0].raw
        done = await client.answer(run.run_id, returned(run.pending_tool_calls[0], "2"))
        assert done.run.status == runs_pb2.RUN_STATUS_COMPLETED


async def test_a_struct_is_checked_like_text(store: str) -> None:
    """Its path is its own."""
    parameters = struct_pb2.Struct()
    parameters.update({"type": "object", "properties": {"a": {"maximum": float("nan")}}})
    async with scripted([], store) as (client, _):
        refused = await refusal(client.ask("Hello?", tools_pb2.ClientToolSchema(name="tool", parameters=parameters)))
        assert (refused.reason, refused.fields) == ("INVALID_TOOL_SCHEMA", ("client_tools[0].parameters",))


@pytest.mark.parametrize(
    "tool",
    [schema("{}"), tools_pb2.ClientToolSchema(name="tool", parameters=struct_pb2.Struct())],
    ids=["text", "struct"],
)
async def test_an_empty_schema_allows_any_arguments(tool: tools_pb2.ClientToolSchema, store: str) -> None:
    """Strict endpoints get it as the schema of an object, since they refuse an empty one."""
    async with scripted([calls(("tool", {"a": 1}))], store) as (client, upstream):
        run = (await client.ask("Hello?", tool)).run
        assert run.status == runs_pb2.RUN_STATUS_PAUSED
        (sent,) = upstream.requests[0].body["tools"]
        assert sent["function"]["parameters"] == {"type": "object", "properties": {}}


async def test_a_tool_without_parameters_takes_none(store: str) -> None:
    """Neither field set: an object schema without properties."""
    async with scripted([calls(("tool", "{}"))], store) as (client, upstream):
        run = (await client.ask("Hello?", tools_pb2.ClientToolSchema(name="tool"))).run
        assert run.pending_tool_calls[0].arguments_json == "{}"
        (tool,) = upstream.requests[0].body["tools"]
        assert tool["function"] == {"name": "tool", "parameters": {"type": "object", "properties": {}}}


async def test_limits_are_inclusive(store: str) -> None:
    """What is exactly at a limit is taken."""
    async with scripted([says("Hello.")], store, **LIMITS) as (client, _):
        request = agent_service_pb2.StepRequest(
            input_messages=[said(text="é" * 25, name="n" * 64), said(parts=[content_pb2.ContentPart(text="a" * 50)])],
            run_id="r" * 32 + "._:-" + "A" * 28,
            client_tools=[schema('{"type":"object","properties":{}}', name=f"t{n}" * 32) for n in range(3)],
            labels={"a" * 64: "é" * 256, "b": ""},
            system_prompt="s" * 100,
            max_steps=2**31 - 1,
        )
        assert (await client.agent.Step(request)).run.status == runs_pb2.RUN_STATUS_COMPLETED


WATCHES: dict[str, tuple[dict[str, Any], str]] = {
    "run_id": ({"run_id": "a b"}, "run_id"),
    "no run_id": ({"run_id": ""}, "run_id"),
    "negative": ({"after_sequence": -1}, "after_sequence"),
    "stop_at": ({"stop_at": 9}, "stop_at"),
    "type": ({"include_return_message_types": [9]}, "include_return_message_types[0]"),
}


@pytest.mark.parametrize("case", WATCHES)
async def test_a_watch_is_checked_alike(store: str, case: str) -> None:
    """Each field by its path."""
    fields, path = WATCHES[case]
    async with scripted([], store) as (client, _):
        request = run_service_pb2.WatchRunRequest(**{"run_id": "run-1", **fields})
        refused = await refusal(client.runs.WatchRun(request))
        assert (refused.code, refused.reason, refused.fields) == ("INVALID_ARGUMENT", "INVALID_FIELD", (path,))
        empty = await refusal(client.runs.GetRun(run_service_pb2.GetRunRequest()))
        assert (empty.code, empty.fields) == ("INVALID_ARGUMENT", ("run_id",))
