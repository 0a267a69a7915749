"""Tool rules as they are given and shown: in agents, starts and dry runs, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agentrpc.v1 import agent_registry_service_pb2 as registry_pb
from agentrpc.v1 import agents_pb2, runs_pb2, tool_rules_pb2, tools_pb2

from tests.ruled import CHOSEN, A, B, C, answer, asks, child, most, rule
from tests.scripted_openai import says
from tests.service import refusal, returned, scripted, step, submit
from tests.test_build_request import build

pytestmark = pytest.mark.anyio

BY_OUTPUT = {"tool_name": "a", "tools_by_output": {"true": "b", "1": "c", "maybe": "a"}}
END_TURN = runs_pb2.STOP_REASON_END_TURN


async def test_the_dry_run_shows_what_the_rules_make_of_the_request(store: str) -> None:
    """Byte for byte, at the start and for the resume after a return: tools, tool choice, and the rules in words."""
    rules = [rule(run_first="a"), rule(conditional=BY_OUTPUT), most("b", 1)]
    async with scripted([asks("a"), asks("b"), says("Done.")], store) as (client, upstream):
        await client.create_agent("strict", instructions="Be brief.", tool_rules=rules)
        request = step("Go.", A, B, C, agent_id="strict", run_id="run-1")
        built = [await build(client, step=request)]
        run = (await client.agent.Step(request)).run
        for text in ("true", "done"):
            returns = submit("run-1", returned(run.pending_tool_calls[0], text))
            built.append(await build(client, submit=returns))
            run = (await client.agent.SubmitToolReturns(returns)).run
        assert [each.request_json.encode() for each in built] == [request.raw for request in upstream.requests]
        bodies = [json.loads(each.request_json) for each in built]
        assert [body.get("tool_choice") for body in bodies][1:] == [CHOSEN, None]
        assert {body["messages"][0]["content"] for body in bodies} == {
            "Be brief.\n\nRules for your tool calls:\n- The first call must be of 'a'.\n"
            "- The output of 'a' decides the next call: after '1' it must be of 'c'; after 'maybe' it must be of 'a'; "
            "after 'true' it must be of 'b'. Wait for it.\n- Call 'b' at most once."
        }


async def test_by_json_schema_a_forced_call_is_the_only_answer_there_is(store: str) -> None:
    """The schema of the answer holds the calls of the allowed tools, and text only where no call is demanded."""
    script = [says('{"tool":"a","arguments":{"q":"x"}}'), says('{"tool":"b","arguments":{"q":"x"}}'), says("Done.")]
    async with scripted(script, store, tool_mode="json_schema", answers_after_return=True) as (client, upstream):
        run = (await client.ask("Go.", A, B, C, tool_rules=[rule(run_first="a"), child("a", "b", "c")])).run
        assert [call.name for call in run.pending_tool_calls] == ["a"]
        run = (await answer(client, run, "one")).run
        ended = await answer(client, run, "two")
        assert ended.run.stop_reason == END_TURN
        first, second = (r.body["response_format"]["json_schema"]["schema"] for r in upstream.requests[:2])
        assert first["properties"]["tool"] == {"const": "a"}
        assert [each["properties"]["tool"] for each in second["anyOf"]] == [{"const": "b"}, {"const": "c"}]
        assert "response_format" not in upstream.requests[2].body


async def test_agents_are_shown_with_their_rules(store: str) -> None:
    """As they were given, arguments as text. A field mask leaves them alone; an agent without them is another one."""
    rules = [
        rule(run_first={"tool_name": "a", "arguments_json": '{"q": 1.0}'}),
        rule(terminal="b"),
        rule(continue_run="c"),
        child("a", "b", "c"),
        rule(conditional={**BY_OUTPUT, "require_output_mapping": True}),
        rule(conditional={"tool_name": "b", "tools_by_output": {"x": "a"}, "default_tool": "c"}),
        most("a", 3),
        rule(parent_last={"tool_name": "a", "children": ["b"]}),
        rule(required_before_exit="a"),
        rule(requires_approval="add"),
    ]
    async with scripted([], store) as (client, _):
        assert list((await client.create_agent("strict", tool_rules=rules)).tool_rules) == rules
        assert list((await client.get_agent("strict")).tool_rules) == rules
        update = registry_pb.UpdateAgentRequest(agent=agents_pb2.Agent(agent_id="strict", instructions="Be brief."))
        update.update_mask.paths.append("instructions")
        assert list((await client.registry.UpdateAgent(update)).agent.tool_rules) == rules
        assert (await refusal(client.create_agent("strict", instructions="Be brief."))).reason == "AGENT_ID_REUSED"


async def test_another_set_of_rules_is_another_start(store: str) -> None:
    """A repeat with the same rules joins the run."""
    async with scripted([asks("a")], store) as (client, upstream):
        request = step("Go.", A, tool_rules=[most("a", 1)], run_id="run-1")
        run = (await client.agent.Step(request)).run
        assert (await client.agent.Step(request)).run == run
        other = step("Go.", A, tool_rules=[most("a", 2)], run_id="run-1")
        assert (await refusal(client.agent.Step(other))).reason == "RUN_ID_REUSED"
        assert upstream.request_count == 1


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({}, "tool_rules[0]", "has no rule; set one of run_first, terminal, continue_run, child, conditional, "),
    ({"terminal": "x"}, "tool_rules[0].terminal.tool_name", "no tool 'x'; tools: a"),
    ({"max_count": {"tool_name": "a"}}, "tool_rules[0].max_count.max_count", "0 is below 1"),
    (
        {"run_first": {"tool_name": "a", "arguments_json": "[1]"}},
        "tool_rules[0].run_first.arguments_json",
        "is not a JSON object",
    ),
    (
        {"run_first": {"tool_name": "a", "arguments_json": "{"}},
        "tool_rules[0].run_first.arguments_json",
        "not valid JSON",
    ),
    (
        {"run_first": {"tool_name": "a", "arguments_json": "{}", "arguments": {}}},
        "tool_rules[0].run_first.arguments_json",
        "set together with arguments",
    ),
    (
        {"child": {"tool_name": "a", "children": [{"tool_name": "a", "arguments_json": "7"}]}},
        "tool_rules[0].child.children[0].arguments_json",
        "is not a JSON object",
    ),
    (
        {"run_first": {"tool_name": "a", "arguments": {"q": "x" * 65536}}},
        "tool_rules[0].run_first.arguments_json",
        "bytes; at most 65536 are allowed",
    ),
]


@pytest.mark.parametrize(("arm", "field", "text"), WRONG)
async def test_rules_that_cannot_be_used_are_refused_with_their_place(
    store: str, arm: dict[str, Any], field: str, text: str
) -> None:
    """In a start; nothing is stored."""
    wrong = rule(**arm) if arm else tool_rules_pb2.ToolRule()
    async with scripted([], store) as (client, _):
        refused = await refusal(client.ask("Go.", A, tool_rules=[wrong], run_id="run-1"))
        assert (refused.code, refused.reason, refused.fields) == ("INVALID_ARGUMENT", "INVALID_FIELD", (field,))
        assert text in refused.message
        assert (await refusal(client.run("run-1"))).reason == "RUN_NOT_FOUND"


async def test_rules_of_an_agent_are_checked_when_it_is_written(store: str) -> None:
    """They may name tools that only a client has. One kind about one tool stands once; a responder has no tools."""
    async with scripted([], store) as (client, _):
        twice = await refusal(client.create_agent("x", tool_rules=[most("a", 1), most("a", 2)]))
        assert twice.fields == ("agent.tool_rules[1].max_count.tool_name",)
        many = await refusal(client.create_agent("x", tool_rules=[most(f"t{n}", 1) for n in range(129)]))
        assert many.message == "agent.tool_rules: 129 rules; at most 128 are allowed"
        large = [rule(conditional={"tool_name": f"t{n}", "tools_by_output": {"x" * 2**16: "a"}}) for n in range(4)]
        refused = await refusal(client.create_agent("x", tool_rules=large))
        assert refused.fields == ("agent.tool_rules",)
        assert "bytes; at most 262144 are allowed" in refused.message
        kind = agents_pb2.AGENT_KIND_RESPONDER
        refused = await refusal(client.create_agent("x", kind=kind, tool_rules=[most("a", 1)]))
        assert refused.fields == ("agent.tool_rules",)
        refused = await refusal(client.ask("Hi", agent_id="responder", tool_rules=[most("a", 1)]))
        assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "AGENT_CANNOT")
        assert refused.message.startswith("tool_rules: agent 'responder' has no tools")


CHOICES: list[tuple[list[Any], dict[str, Any], str, str]] = [
    ([rule(run_first="a")], {"tool_name": "b"}, "tool_name", "the first call must be of 'a'"),
    ([rule(run_first="a")], {"mode": tools_pb2.TOOL_CHOICE_MODE_NONE}, "mode", "the first call must be of 'a'"),
    (
        [
            rule(parent_last={"tool_name": "b", "children": ["a"]}),
            rule(parent_last={"tool_name": "a", "children": ["b"]}),
        ],
        {"mode": tools_pb2.TOOL_CHOICE_MODE_REQUIRED},
        "mode",
        "the tool rules allow no tool at first",
    ),
]


@pytest.mark.parametrize(("rules", "choice", "field", "text"), CHOICES)
async def test_a_tool_choice_against_the_rules_is_refused(
    store: str, rules: list[Any], choice: dict[str, Any], field: str, text: str
) -> None:
    """It is not ignored."""
    async with scripted([], store) as (client, _):
        asked = client.ask("Go.", A, B, tool_rules=rules, tool_choice=tools_pb2.ToolChoice(**choice))
        refused = await refusal(asked)
        assert refused.fields == (f"tool_choice.{field}",)
        assert refused.message == f"tool_choice.{field}: against a tool rule: {text}"


async def test_a_tool_choice_within_the_rules_holds(store: str) -> None:
    """One of several first tools may be chosen, and a required call is one of theirs."""
    async with scripted([asks("b"), asks("a")], store) as (client, upstream):
        rules = [rule(run_first="a"), rule(run_first="b")]
        await client.ask("Go.", A, B, C, tool_rules=rules, tool_choice=tools_pb2.ToolChoice(tool_name="b"))
        required = tools_pb2.ToolChoice(mode=tools_pb2.TOOL_CHOICE_MODE_REQUIRED)
        await client.ask("Go.", A, B, C, tool_rules=rules, tool_choice=required)
        assert [r.body["tool_choice"] for r in upstream.requests] == [CHOSEN, "required"]
        assert upstream.requests[1].tool_names == ["a", "b"]


async def test_an_answer_that_cannot_be_the_last_is_not_judged_by_the_response_format(store: str) -> None:
    """While a required tool is missing, text is no answer; the one that ends the run is checked as ever."""
    schema = '{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"],"additionalProperties":false}'
    script = [says("I am done."), asks("a"), says("Seven."), says('{"n":7}')]
    async with scripted(script, store) as (client, upstream):
        wanted: dict[str, Any] = {"schema_json": schema}
        run = (await client.ask("Go.", A, tool_rules=[rule(required_before_exit="a")], response_format=wanted)).run
        ended = await answer(client, run, "one")
        assert (ended.run.stop_reason, ended.messages[-1].assistant.text) == (END_TURN, '{"n":7}')
        notes = [message["content"] for message in upstream.requests[-1].messages[1:] if message["role"] == "system"]
        assert [note.split(":")[0] for note in notes] == ["Do not end your turn yet", "Error"]
