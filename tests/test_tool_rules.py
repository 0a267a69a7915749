"""Tool rules over a real service, kind by kind: what the model may call, must call, and what ends a run."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from agentrpc.v1 import agent_registry_service_pb2 as registry_pb
from agentrpc.v1 import agent_service_pb2, agents_pb2, runs_pb2, tools_pb2

from tests.modes import MODES, resume, start
from tests.ruled import CHOSEN, A, B, C, answer, asks, child, defies, failure, most, outcomes, rule
from tests.scripted_openai import calls, says
from tests.server_tools import executions
from tests.service import kinds, returned, scripted, step, submit
from tests.test_build_request import build

pytestmark = pytest.mark.anyio

SERVER = {"tools": "tests.server_tools:add,tests.server_tools:delete_file"}
COMPLETED, PAUSED, FAILED = runs_pb2.RUN_STATUS_COMPLETED, runs_pb2.RUN_STATUS_PAUSED, runs_pb2.RUN_STATUS_FAILED
TOOL_RULE, END_TURN = runs_pb2.STOP_REASON_TOOL_RULE, runs_pb2.STOP_REASON_END_TURN


@pytest.mark.parametrize("mode", MODES)
async def test_the_first_call_is_forced_and_its_given_arguments_take_the_place_of_the_models(
    store: str, mode: str
) -> None:
    """The model is shown this tool alone and must call it. The call is stored, shown and executed with the whole
    arguments, checked with them, and deltas tell the same; later requests are free, and later calls as written."""
    first = rule(run_first={"tool_name": "b", "arguments": {"n": 7}})
    script = [calls(("b", '{"q": "tea", "n": 1.5}')), asks("b"), says("Done.")]
    async with scripted(script, store) as (client, upstream):
        paused = await start(client, mode, step("Go.", A, B, tool_rules=[first]))
        request = upstream.requests[0]
        assert (request.tool_names, request.body["tool_choice"]) == (["b"], CHOSEN)
        (call,) = paused.run.pending_tool_calls
        assert call.arguments_json == '{"q": "tea", "n":7}'
        assert paused.messages[-1].tool_call.tool_calls[0].arguments_json == call.arguments_json
        deltas = [e.tool_call_arguments_delta for e in paused.events if e.HasField("tool_call_arguments_delta")]
        assert "".join(delta.text for delta in deltas) == (call.arguments_json if mode == "tokens" else "")
        again = await resume(client, mode, paused.run, submit(paused.run.run_id, returned(call, "one")))
        assert json.loads(again.run.pending_tool_calls[0].arguments_json) == {"q": "x"}
        assert upstream.requests[1].tool_names == ["a", "b"]
        assert "tool_choice" not in upstream.requests[1].body
        ended = await resume(
            client, mode, again.run, submit(again.run.run_id, returned(again.run.pending_tool_calls[0], "two"))
        )
        assert (ended.run.status, ended.run.stop_reason) == (COMPLETED, END_TURN)


async def test_another_first_call_is_refused_and_does_not_count(store: str) -> None:
    """It never waits for the caller; the model is told what it may call. What it called against the schema is still
    to be called first."""
    script = [defies("a", "b"), calls(("b", {"n": 1})), asks("b"), says("Done.")]
    async with scripted(script, store) as (client, upstream):
        paused = await client.ask("Go.", A, B, tool_rules=[rule(run_first="b")])
        (call,) = paused.run.pending_tool_calls
        assert (call.name, call.index) == ("b", 1)
        told = "Error: not called, the first call must be of 'b'. Tools that may be called now: b."
        assert outcomes(paused.messages) == [("a", told)]
        ended = await answer(client, paused.run, "one")
        assert upstream.requests[1].tool_names == ["a", "b"]
        assert outcomes(ended.messages)[1][1].startswith("Error: not executed, the arguments are against")
    async with scripted([calls(("b", {"n": 1})), asks("b")], store) as (client, upstream):
        await client.ask("Go.", A, B, tool_rules=[rule(run_first="b")])
        assert upstream.requests[1].body["tool_choice"] == CHOSEN


async def test_several_first_tools_leave_the_choice(store: str) -> None:
    """The model must call one of them; one that calls none fails the run, as with any forced call."""
    rules = [rule(run_first="a"), rule(run_first="c")]
    async with scripted([asks("c"), says("No.", unruly=True)], store) as (client, upstream):
        await client.ask("Go.", A, B, C, tool_rules=rules)
        assert (upstream.requests[0].tool_names, upstream.requests[0].body["tool_choice"]) == (["a", "c"], "required")
        run = (await client.ask("Go.", A, B, C, tool_rules=rules)).run
        assert (run.status, run.stop_reason) == (FAILED, runs_pb2.STOP_REASON_NO_TOOL_CALL)


async def test_a_terminal_client_tool_ends_the_run_with_its_return(store: str) -> None:
    """Not with an error return, after which the model goes on. The calls beside it are awaited."""
    script = [asks("a"), asks("a", "b")]
    async with scripted(script, store) as (client, upstream):
        paused = await client.ask("Go.", A, B, tool_rules=[rule(terminal="a")])
        again = await answer(client, paused.run, "broken", status=tools_pb2.TOOL_RETURN_STATUS_ERROR)
        a, b = again.run.pending_tool_calls
        partly = await client.answer(again.run.run_id, returned(a, "one"))
        assert partly.run.status == PAUSED
        ended = await client.answer(again.run.run_id, returned(b, "two"))
        assert (ended.run.status, ended.run.stop_reason) == (COMPLETED, TOOL_RULE)
        assert not ended.run.HasField("error")
        assert upstream.request_count == 2
        assert kinds(ended.messages) == ["tool_return"]


async def test_a_terminal_server_tool_ends_the_run(store: str) -> None:
    """Also in the last of the run's steps. The next message of the conversation is answered."""
    rules = [rule(terminal="add")]
    async with scripted([asks("add", a=1, b=2), says("Hello.")], store, **SERVER) as (client, _):
        await client.create_agent("adder", server_tools=["add"], tool_rules=rules)
        ended = await client.ask("1 + 2?", agent_id="adder", max_steps=1)
        assert (ended.run.status, ended.run.stop_reason) == (COMPLETED, TOOL_RULE)
        assert outcomes(ended.messages) == [("add", "3")]
        later = await client.ask("Hello?", agent_id="adder", conversation_id=ended.run.conversation_id)
        assert later.run.stop_reason == END_TURN


async def test_a_denied_terminal_call_does_not_end_the_run(store: str) -> None:
    """Only a return does."""
    rules = [rule(terminal="delete_file")]
    script = [asks("delete_file", path="/a"), says("Then not.")]
    async with scripted(script, store, **SERVER) as (client, _):
        await client.create_agent("cleaner", server_tools=["delete_file"], tool_rules=rules)
        run = (await client.ask("Clean.", agent_id="cleaner")).run
        deny = tools_pb2.ApprovalDecision(tool_call_id=run.pending_tool_calls[0].tool_call_id, deny=tools_pb2.Deny())
        ended = await client.answer(run.run_id, approvals=[deny])
        assert ended.run.stop_reason == END_TURN


async def test_continue_lifts_an_end_for_one_run(store: str) -> None:
    """The agent's rule stands for others. The model is told."""
    script = [asks("add", a=1, b=2), says("It is 3."), asks("add", a=1, b=2)]
    async with scripted(script, store, **SERVER) as (client, upstream):
        await client.create_agent("adder", server_tools=["add"], tool_rules=[rule(terminal="add")])
        ended = await client.ask("1 + 2?", agent_id="adder", tool_rules=[rule(continue_run="add")])
        assert ended.run.stop_reason == END_TURN
        assert "After 'add' go on" in upstream.requests[0].system
        assert (await client.ask("1 + 2?", agent_id="adder")).run.stop_reason == TOOL_RULE


async def test_a_child_follows_its_parent_with_its_given_arguments(store: str) -> None:
    """Over the pause. Of several calls in one answer the first counts; one that is not the child is refused."""
    rules = [rule(child={"tool_name": "a", "children": [{"tool_name": "b", "arguments_json": '{"n": 9}'}]})]
    script = [asks("a"), defies("c", "b", "b"), says("Done.")]
    async with scripted(script, store) as (client, upstream):
        paused = await client.ask("Go.", A, B, C, tool_rules=rules)
        assert upstream.requests[0].tool_names == ["a", "b", "c"]
        again = await answer(client, paused.run, "one")
        request = upstream.requests[1]
        assert (request.tool_names, request.body["tool_choice"]) == (["b"], CHOSEN)
        told = "Error: not called, the call after 'a' must be of 'b'. Tools that may be called now: b."
        assert outcomes(again.messages)[1:] == [("c", told)]
        arguments = [json.loads(call.arguments_json) for call in again.run.pending_tool_calls]
        assert arguments == [{"q": "x", "n": 9}, {"q": "x"}]
        await answer(client, again.run, "two", "three")
        assert upstream.requests[2].tool_names == ["a", "b", "c"]


async def test_a_child_may_follow_its_parent_in_the_same_answer(store: str) -> None:
    """And is free of it for what comes next."""
    async with scripted([asks("a", "b"), says("Done.")], store) as (client, upstream):
        run = (await client.ask("Go.", A, B, C, tool_rules=[child("a", "b")])).run
        assert [call.name for call in run.pending_tool_calls] == ["a", "b"]
        await answer(client, run, "one", "two")
        assert upstream.requests[1].tool_names == ["a", "b", "c"]


BY_OUTPUT = {"tool_name": "a", "tools_by_output": {"true": "b", "1": "c", "maybe": "a"}}
OUTPUTS = [
    ("true", ["b"]),
    (' "true"\n', ["b"]),
    ("1.0", ["c"]),
    ('"maybe"', ["a"]),
    ("maybe", ["a"]),
    ("false", ["a", "b", "c"]),
    ("null", ["a", "b", "c"]),
    ('{"ok": true}', ["a", "b", "c"]),
]


@pytest.mark.parametrize(("output", "names"), OUTPUTS)
async def test_the_output_decides_what_comes_next(store: str, output: str, names: list[str]) -> None:
    """A JSON scalar or plain text; what is not mapped leaves the choice, if no default says otherwise."""
    async with scripted([asks("a"), asks(names[0])], store) as (client, upstream):
        run = (await client.ask("Go.", A, B, C, tool_rules=[rule(conditional=BY_OUTPUT)])).run
        await answer(client, run, output)
        assert upstream.requests[1].tool_names == names
        forced = {"type": "function", "function": {"name": names[0]}}
        assert upstream.requests[1].body.get("tool_choice") == (forced if len(names) == 1 else None)


async def test_another_output_leads_to_the_default_or_to_the_end(store: str) -> None:
    """With `require_output_mapping` the run fails and says which output it was; an error return is an output, too."""
    async with scripted([asks("a"), asks("c"), asks("a")], store) as (client, upstream):
        run = (await client.ask("Go.", A, B, C, tool_rules=[rule(conditional={**BY_OUTPUT, "default_tool": "c"})])).run
        await answer(client, run, "nothing", status=tools_pb2.TOOL_RETURN_STATUS_ERROR)
        assert upstream.requests[1].tool_names == ["c"]
        strict = rule(conditional={**BY_OUTPUT, "require_output_mapping": True})
        run = (await client.ask("Go.", A, B, C, tool_rules=[strict])).run
        ended = await answer(client, run, "100")
        assert failure(ended.run) == "no tool may be called: no tool is mapped to the output '100' of 'a'"
        assert upstream.request_count == 3


async def test_nothing_is_called_beside_a_call_whose_output_decides(store: str) -> None:
    """The model has to wait for it."""
    async with scripted([asks("a", "b")], store) as (client, _):
        asked = await client.ask("Go.", A, B, C, tool_rules=[rule(conditional=BY_OUTPUT)])
        assert [call.name for call in asked.run.pending_tool_calls] == ["a"]
        assert "decides what comes next, so wait for it. Answer without a call." in outcomes(asked.messages)[0][1]


async def test_the_output_of_a_server_tool_decides_as_well(store: str) -> None:
    """And the tool that follows may be a client's."""
    rules = [rule(conditional={"tool_name": "add", "tools_by_output": {"3": "a"}})]
    async with scripted([asks("add", a=1, b=2), asks("a")], store, **SERVER) as (client, upstream):
        await client.create_agent("adder", server_tools=["add"], tool_rules=rules)
        run = (await client.ask("1 + 2?", A, agent_id="adder")).run
        assert upstream.requests[1].tool_names == ["a"]
        assert [call.name for call in run.pending_tool_calls] == ["a"]


async def test_a_tool_is_called_no_more_often_than_allowed(store: str) -> None:
    """Over pauses, each call once, also those of one answer; then it is not shown any more. Refused calls do not count,
    and the next run begins anew."""
    script = [calls(("a", {}), ("a", {"q": "x"})), asks("a", "a", "b"), defies("a"), says("Done."), asks("a")]
    async with scripted(script, store) as (client, upstream):
        first = await client.ask("Go.", A, B, tool_rules=[most("a", 2)])
        assert [call.index for call in first.run.pending_tool_calls] == [1]
        second = await answer(client, first.run, "one")
        assert [(call.name, call.index) for call in second.run.pending_tool_calls] == [("a", 0), ("b", 2)]
        told = "Error: not called, 'a' was called 2 times, which is the most in a run. Tools that may be called now: b."
        assert outcomes(second.messages)[1:] == [("a", told)]
        ended = await answer(client, second.run, "two", "three")
        assert [request.tool_names for request in upstream.requests] == [["a", "b"], ["a", "b"], ["b"], ["b"]]
        assert outcomes(ended.messages)[2:] == [("a", told)]
        next_run = await client.ask("More.", A, B, tool_rules=[most("a", 2)], conversation_id=ended.run.conversation_id)
        assert next_run.run.status == PAUSED


async def test_without_any_tool_left_the_model_is_asked_for_text(store: str) -> None:
    """Where no rule demands a call."""
    async with scripted([asks("a"), says("Done.")], store) as (client, upstream):
        run = (await client.ask("Go.", A, tool_rules=[most("a", 1)])).run
        ended = await answer(client, run, "one")
        assert (upstream.requests[1].tool_names, upstream.requests[1].body["tool_choice"]) == (["a"], "none")
        assert (ended.run.status, ended.run.stop_reason) == (COMPLETED, END_TURN)


async def test_a_child_that_needs_its_parent_comes_right_after_it(store: str) -> None:
    """Of several parents any will do; other tools may follow a parent as well."""
    rules = [rule(parent_last={"tool_name": each, "children": ["c"]}) for each in ("a", "b")]
    script = [defies("c", "a", "c", "c"), asks("b"), says("Done.")]
    async with scripted(script, store) as (client, upstream):
        asked = await client.ask("Go.", A, B, C, tool_rules=rules)
        assert [call.index for call in asked.run.pending_tool_calls] == [1, 2]
        told = "'c' may only be called right after 'a' or 'b'"
        assert all(told in text for _, text in outcomes(asked.messages))
        again = await answer(client, asked.run, "one", "two")
        await answer(client, again.run, "three")
        assert [request.tool_names for request in upstream.requests] == [["a", "b"], ["a", "b"], ["a", "b", "c"]]


async def test_the_run_does_not_end_before_what_is_required_was_called(store: str) -> None:
    """A note names what is missing, each time the model ends its turn; it is a system message of the step."""
    rules = [rule(required_before_exit="a"), rule(required_before_exit="b")]
    script = [says("I am done."), asks("a"), says("Now I am."), asks("b"), says("Really.")]
    async with scripted(script, store) as (client, upstream):
        first = await client.ask("Go.", A, B, tool_rules=rules)
        assert kinds(first.messages) == ["user", "assistant", "system", "tool_call"]
        assert first.messages[2].system.text == "Do not end your turn yet: first call 'a' and 'b'."
        assert first.messages[2].step_id == first.messages[1].step_id != first.messages[3].step_id
        assert upstream.requests[1].last["role"] == "system"
        second = await answer(client, first.run, "one")
        assert second.messages[2].system.text == "Do not end your turn yet: first call 'b'."
        ended = await answer(client, second.run, "two")
        assert (ended.run.status, ended.run.stop_reason) == (COMPLETED, END_TURN)
        assert kinds(ended.messages) == ["tool_return", "assistant"]


async def test_what_is_required_is_asked_for_within_max_steps(store: str) -> None:
    """A model that never calls it does not go on for ever, and is not told in vain at the end."""
    async with scripted([says("Done.")] * 3, store) as (client, upstream):
        ended = await client.ask("Go.", A, tool_rules=[rule(required_before_exit="a")], max_steps=3)
        assert (ended.run.status, ended.run.stop_reason) == (COMPLETED, runs_pb2.STOP_REASON_MAX_STEPS)
        assert kinds(ended.messages) == ["user", "assistant", "system", "assistant", "system", "assistant"]
        assert upstream.request_count == 3


async def test_a_terminal_tool_waits_for_what_is_required(store: str) -> None:
    """It is not executed before, so that it is not executed twice."""
    rules = [rule(terminal="b"), rule(required_before_exit="a")]
    async with scripted([defies("b", "a", "b")], store) as (client, upstream):
        asked = await client.ask("Go.", A, B, tool_rules=rules)
        assert upstream.requests[0].tool_names == ["a"]
        assert "the run ends with 'b', so first call 'a'" in outcomes(asked.messages)[0][1]
        assert [call.index for call in asked.run.pending_tool_calls] == [1, 2]
        assert (await answer(client, asked.run, "one", "two")).run.stop_reason == TOOL_RULE


async def test_a_server_tool_can_be_made_to_need_approval(store: str) -> None:
    """By the agent or by the start; it is not executed before. Client tools are as ever."""
    script = [asks("add", a=1, b=2), says("3."), asks("add", a=1, b=2), says("3.")]
    async with scripted(script, store, **SERVER) as (client, _):
        await client.create_agent("adder", server_tools=["add"])
        rules = [rule(requires_approval="add"), rule(requires_approval="a")]
        run = (await client.ask("1 + 2?", A, agent_id="adder", tool_rules=rules)).run
        (call,) = run.pending_tool_calls
        assert (call.kind, executions[call.tool_call_id]) == (tools_pb2.PENDING_KIND_APPROVAL, 0)
        approve = tools_pb2.ApprovalDecision(tool_call_id=call.tool_call_id, approve=tools_pb2.Approve())
        ended = await client.answer(run.run_id, approvals=[approve])
        assert outcomes(ended.messages) == [("add", "3")]
        assert (await client.ask("1 + 2?", A, agent_id="adder")).run.stop_reason == END_TURN


EMPTY: dict[str, tuple[list[Any], str]] = {
    "run_first": (
        [rule(run_first="absent")],
        "no tool may be called: the first call must be of 'absent', but 'absent' is not a tool of this run",
    ),
    "required_before_exit": (
        [rule(required_before_exit="absent")],
        "no tool may be called: 'absent' must be called before the end, but is not a tool of this run",
    ),
    "parent_last": (
        [rule(run_first="a"), rule(parent_last={"tool_name": "b", "children": ["a"]})],
        "no tool may be called: the first call must be of 'a', but 'a' may only be called right after 'b'",
    ),
}


@pytest.mark.parametrize("kind", EMPTY)
async def test_rules_that_leave_no_tool_end_the_run_before_the_model_is_asked(store: str, kind: str) -> None:
    """With the reason, in the run and in its last event; the dry run says it as well. The conversation is free."""
    rules, message = EMPTY[kind]
    async with scripted([says("Hello.")], store) as (client, upstream):
        await client.create_agent("strict", tool_rules=rules)
        request = step("Go.", A, B, agent_id="strict")
        built = await build(client, step=request)
        assert built.not_buildable.message == f"the run would fail: {message}"
        run = (await client.agent.Step(request)).run
        assert failure(run) == message
        stopped = (await client.watch(run.run_id))[-1].run_stopped
        assert (stopped.final, stopped.error) == (True, run.error)
        assert upstream.request_count == 0
        assert (await client.ask("Hi", conversation_id=run.conversation_id)).run.status == COMPLETED


async def test_rules_that_leave_no_tool_after_a_pause_end_the_run(store: str) -> None:
    """The return is stored, and every call has its outcome."""
    async with scripted([asks("b", "a")], store) as (client, upstream):
        run = (await client.ask("Go.", A, B, tool_rules=[child("a", "b"), most("b", 1)])).run
        ended = await answer(client, run, "one", "two")
        assert failure(ended.run) == (
            "no tool may be called: the call after 'a' must be of 'b', "
            "but 'b' was called once, which is the most in a run"
        )
        assert kinds(ended.messages) == ["tool_return", "tool_return"]
        assert upstream.request_count == 1


async def test_a_run_that_may_neither_call_nor_end_fails_with_the_reason(store: str) -> None:
    """The model is not asked again for a call that it may never make."""
    rules = [
        rule(required_before_exit="a"),
        rule(parent_last={"tool_name": "b", "children": ["a"]}),
        most("b", 1),
        most("c", 1),
    ]
    async with scripted([asks("b", "c")], store) as (client, upstream):
        run = (await client.ask("Go.", A, B, C, tool_rules=rules)).run
        ended = await answer(client, run, "one", "two")
        assert failure(ended.run) == (
            "no tool may be called: 'a' must be called before the end, but 'a' may only be called right after 'b'"
        )
        assert upstream.request_count == 1


async def test_answers_with_nothing_but_forbidden_calls_end_the_run(store: str) -> None:
    """As other refused calls do."""
    async with scripted([defies("a")] * 3, store) as (client, _):
        run = (await client.ask("Go.", A, B, tool_rules=[rule(run_first="b")])).run
        assert (run.status, run.stop_reason) == (FAILED, runs_pb2.STOP_REASON_INVALID_TOOL_CALL)


async def test_a_run_keeps_its_rules_when_its_agent_changes(store: str) -> None:
    """Rules are pinned as the rest of the agent; what was called before a pause counts after it."""
    async with scripted([asks("a"), defies("a", "b")], store) as (client, upstream):
        await client.create_agent("strict", tool_rules=[most("a", 1), rule(terminal="b")])
        run = (await client.ask("Go.", A, B, agent_id="strict")).run
        update = registry_pb.UpdateAgentRequest(agent=agents_pb2.Agent(agent_id="strict"))
        update.update_mask.paths.append("tool_rules")
        assert list((await client.registry.UpdateAgent(update)).agent.tool_rules) == []
        again = await answer(client, run, "one")
        assert "which is the most in a run" in outcomes(again.messages)[1][1]
        assert (await answer(client, again.run, "two")).run.stop_reason == TOOL_RULE
        assert upstream.requests[1].tool_names == ["b"]


async def test_rules_hold_for_a_run_that_was_queued(store: str) -> None:
    """Its turn comes later, its rules stay."""
    async with scripted([asks("a"), says("One."), asks("b")], store) as (client, upstream):
        run = (await client.ask("Go.", A)).run
        fields: dict[str, Any] = {"conversation_id": run.conversation_id, "on_busy": agent_service_pb2.ON_BUSY_ENQUEUE}
        queued = await client.ask("More.", A, B, tool_rules=[rule(run_first="b")], background=True, **fields)
        await answer(client, run, "one")
        async with asyncio.timeout(10):
            await client.watch(queued.run.run_id, stop_at="STOP_AT_NEXT_STOP")
        assert upstream.requests[2].body["tool_choice"] == CHOSEN


async def test_an_error_return_and_a_rule_go_to_the_model_in_the_order_of_its_calls(store: str) -> None:
    """Nothing is left open in the history."""
    async with scripted([defies("c", "a"), says("Done."), says("Yes.")], store) as (client, upstream):
        run = (await client.ask("Go.", A, B, C, tool_rules=[most("c", 1), rule(run_first="a")])).run
        ended = await answer(client, run, "one")
        returns = upstream.requests[1].new_returns
        assert [text.startswith("Error: not called") for text in returns] == [True, False]
        await client.ask("Sure?", conversation_id=ended.run.conversation_id)
        upstream.check_histories()
