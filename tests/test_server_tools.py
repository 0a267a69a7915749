"""Server tools through the service: executed by it, or after an approval, each call at most once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from agentrpc.v1 import run_service_pb2, runs_pb2, tools_pb2

from tests.modes import MODES, resume, start
from tests.scripted_openai import Gate, Reply, Request, calls, says
from tests.server_tools import executions, hold_gates
from tests.service import SECRET, kinds, refusal, returned, scripted, step, submit

pytestmark = pytest.mark.anyio

DELETE = {"tools": "tests.server_tools:delete_file"}
ALL = {"tools": "tests.server_tools:delete_file,tests.server_tools:add"}


def deletes(*paths: str, **arguments: Any) -> Any:
    """A model that wants files deleted, and repeats what it was told."""

    def script(request: Request) -> Reply:
        if request.last["role"] == "tool":
            return says(" | ".join(request.new_returns))
        return calls(*(("delete_file", {"path": path, **arguments}) for path in paths))

    return script


def approve(call: Any, **fields: Any) -> tools_pb2.ApprovalDecision:
    """An approval."""
    return tools_pb2.ApprovalDecision(tool_call_id=call.tool_call_id, approve=tools_pb2.Approve(**fields))


def deny(call: Any, reason: str = "") -> tools_pb2.ApprovalDecision:
    """A denial."""
    return tools_pb2.ApprovalDecision(tool_call_id=call.tool_call_id, deny=tools_pb2.Deny(reason=reason))


@pytest.mark.parametrize("mode", MODES)
async def test_an_approved_call_is_executed_once(store: str, mode: str) -> None:
    """The pause is of kind APPROVAL and nothing runs before the decision; a repeat of it runs nothing again."""
    async with scripted(deletes("/a"), store, **DELETE) as (client, upstream):
        paused = await start(client, mode, step("Delete /a."))
        (call,) = paused.run.pending_tool_calls
        assert call.kind == tools_pb2.PENDING_KIND_APPROVAL
        assert (call.name, json.loads(call.arguments_json)) == ("delete_file", {"path": "/a"})
        assert executions[call.tool_call_id] == 0

        decision = submit(paused.run.run_id, approvals=[approve(call, note="fine")])
        done = await resume(client, mode, paused.run, decision)
        assert kinds(done.messages) == ["approval", "tool_return", "assistant"]
        approval, returned_ = done.messages[0].approval, done.messages[1].tool_return
        assert (approval.tool_call_id, approval.approved, approval.note) == (call.tool_call_id, True, "fine")
        assert (returned_.outcome, returned_.text) == (tools_pb2.TOOL_CALL_OUTCOME_RETURNED, "deleted /a")
        assert done.run.stop_reason == runs_pb2.STOP_REASON_END_TURN
        assert upstream.requests[1].new_returns == ["deleted /a"]

        again = await resume(client, mode, paused.run, decision)
        assert again.messages == done.messages
        assert executions[call.tool_call_id] == 1
        assert upstream.request_count == 2


async def test_an_approval_may_edit_the_arguments(store: str) -> None:
    """The tool runs with the edited ones, recorded in the approval; the model's own stay in its message and in what
    it sees."""
    async with scripted(deletes("/a"), store, **DELETE) as (client, upstream):
        run = (await client.ask("Delete /a.")).run
        (call,) = run.pending_tool_calls
        edited = '{"path": "/b", "force": true}'
        done = await client.answer(run.run_id, approvals=[approve(call, edited_arguments_json=edited)])
        assert done.messages[0].approval.edited_arguments_json == edited
        assert done.messages[1].tool_return.text == "deleted /b by force"
        (stored,) = (await client.messages(run.conversation_id))[1].tool_call.tool_calls
        assert json.loads(stored.arguments_json) == {"path": "/a"}
        sent = upstream.requests[1].history[1]["tool_calls"][0]["function"]["arguments"]
        assert sent == stored.arguments_json


@pytest.mark.parametrize(
    ("edited", "problem"),
    [
        ('{"path": 7}', 'at /path: 7 is not of type "string"'),
        ("{}", '"path" is a required property'),
        ('{"path": "/b", "more": 1}', "more"),
        ("[]", "not a JSON object"),
        ("{", "not valid JSON"),
    ],
)
async def test_edited_arguments_against_the_schema_are_refused(store: str, edited: str, problem: str) -> None:
    """The call stays pending and nothing is executed; a good edit is accepted afterwards."""
    async with scripted(deletes("/a"), store, **DELETE) as (client, _):
        run = (await client.ask("Delete /a.")).run
        (call,) = run.pending_tool_calls
        refused = await refusal(client.answer(run.run_id, approvals=[approve(call, edited_arguments_json=edited)]))
        assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "SCHEMA_VIOLATION")
        assert refused.fields == ("approvals[0].approve.edited_arguments_json",)
        assert "'delete_file'" in refused.message and problem in refused.message
        assert await client.run(run.run_id) == run
        good = approve(call, edited_arguments_json='{"path": "/c"}')
        assert (await client.answer(run.run_id, approvals=[good])).messages[1].tool_return.text == "deleted /c"
        assert executions[call.tool_call_id] == 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("reason", "told"), [("too dangerous", "Denied: too dangerous"), ("", "Denied.")])
async def test_a_denied_call_is_never_executed(store: str, mode: str, reason: str, told: str) -> None:
    """The model is told the denial, with its reason if there is one, and goes on."""
    async with scripted(deletes("/a"), store, **DELETE) as (client, upstream):
        paused = await start(client, mode, step("Delete /a."))
        (call,) = paused.run.pending_tool_calls
        done = await resume(client, mode, paused.run, submit(paused.run.run_id, approvals=[deny(call, reason)]))
        assert kinds(done.messages) == ["approval", "tool_return", "assistant"]
        assert (done.messages[0].approval.approved, done.messages[0].approval.note) == (False, reason)
        assert done.messages[1].tool_return.outcome == tools_pb2.TOOL_CALL_OUTCOME_DENIED
        assert done.messages[1].tool_return.status == tools_pb2.TOOL_RETURN_STATUS_ERROR
        assert upstream.requests[1].new_returns == [told]
        assert executions[call.tool_call_id] == 0
        late = await refusal(client.answer(paused.run.run_id, approvals=[approve(call)]))
        assert (late.code, late.reason) == ("ALREADY_EXISTS", "CALL_ALREADY_SETTLED")


async def test_a_decision_never_changes(store: str) -> None:
    """Between an approval and its execution another decision is refused, and the same one is a no-op."""
    async with scripted(deletes("/a", "/b"), store, **DELETE) as (client, _):
        run = (await client.ask("Delete both.")).run
        first, second = run.pending_tool_calls
        part = await client.answer(run.run_id, approvals=[approve(first)])
        assert list(part.receipt.remaining) == [second]
        for other in (
            deny(first),
            approve(first, note="really"),
            approve(first, edited_arguments_json='{"path":"/c"}'),
        ):
            refused = await refusal(client.answer(run.run_id, approvals=[other]))
            assert (refused.code, refused.reason) == ("ALREADY_EXISTS", "CALL_ALREADY_SETTLED")
            assert "already approved" in refused.message
        again = await client.answer(run.run_id, approvals=[approve(first)], request_id="again")
        assert list(again.receipt.already_settled_tool_call_ids) == [first.tool_call_id]
        assert executions[first.tool_call_id] == 0
        done = await client.answer(run.run_id, approvals=[deny(second)])
        assert done.messages[-1].assistant.text == "deleted /a | Denied."
        assert executions[first.tool_call_id] == 1


async def test_racing_approvals_execute_the_call_once(store: str) -> None:
    """Twenty times, with an approval and a denial at the same instant: one wins."""
    async with scripted(deletes("/a"), store, **DELETE) as (client, upstream):
        for attempt in range(1, 21):
            run = (await client.ask("Delete /a.")).run
            (call,) = run.pending_tool_calls
            results = await asyncio.gather(
                client.answer(run.run_id, approvals=[approve(call)]),
                client.answer(run.run_id, approvals=[approve(call)], request_id="mine"),
                client.answer(run.run_id, approvals=[deny(call)]),
                return_exceptions=True,
            )
            won = [result for result in results if not isinstance(result, BaseException)]
            approved = won[0].messages[0].approval.approved
            assert len(won) == (2 if approved else 1)
            assert executions[call.tool_call_id] == (1 if approved else 0)
            assert upstream.request_count == 2 * attempt


@pytest.mark.parametrize("mode", MODES)
async def test_a_mixed_batch_runs_server_calls_then_pauses_then_runs_what_was_approved(store: str, mode: str) -> None:
    """Plain server calls run first; client calls and approvals wait together; approved calls run when none waits any
    more; and the model reads all returns in the order of its calls."""

    def script(request: Request) -> Reply:
        if request.last["role"] == "tool":
            return says(" | ".join(request.new_returns))
        return calls(
            ("delete_file", {"path": "/a"}),
            ("get_secret_code", {"name": "Alice"}),
            ("add", {"a": 1, "b": 2}),
            ("delete_file", {"path": "/b"}),
            ("add", {"a": 3, "b": 4}),
        )

    async with scripted(script, store, **ALL) as (client, upstream):
        paused = await start(client, mode, step("All of it.", SECRET))
        assert kinds(paused.messages) == ["user", "tool_call", "tool_return", "tool_return"]
        assert [m.tool_return.text for m in paused.messages[2:]] == ["3", "7"]
        first, code, second = paused.run.pending_tool_calls
        assert [call.index for call in (first, code, second)] == [0, 1, 3]
        approval, execution = tools_pb2.PENDING_KIND_APPROVAL, tools_pb2.PENDING_KIND_CLIENT_EXECUTION
        assert [call.kind for call in (first, code, second)] == [approval, execution, approval]

        run_id = paused.run.run_id
        part = await resume(client, mode, paused.run, submit(run_id, approvals=[approve(first), approve(second)]))
        assert kinds(part.messages) == ["approval", "approval"]
        assert list(part.run.pending_tool_calls) == [code]
        assert executions[first.tool_call_id] == executions[second.tool_call_id] == 0

        done = await resume(client, mode, part.run, submit(run_id, returned(code, "SECRET-42")))
        assert [m.tool_return.text for m in done.messages[:-1]] == ["SECRET-42", "deleted /a", "deleted /b"]
        assert done.messages[-1].assistant.text == "deleted /a | SECRET-42 | 3 | deleted /b | 7"
        all_calls = paused.messages[1].tool_call.tool_calls
        assert [executions[call.tool_call_id] for call in all_calls] == [1, 0, 1, 1, 1]
        assert upstream.request_count == 2
        upstream.check_histories()


async def test_an_approval_given_while_the_server_works_waits_for_the_other_decisions(store: str) -> None:
    """A call approved during a sibling's execution does not run before every call of the batch is decided."""
    batch = calls(("hold", {}), ("delete_file", {"path": "/a"}), ("delete_file", {"path": "/b"}))
    async with scripted([batch, says("Done.")], store, tools="tests.server_tools") as (client, upstream):
        gate = hold_gates["run-1"] = Gate()
        starting = asyncio.ensure_future(client.ask("All.", run_id="run-1"))
        await gate.reached(1)
        first, second = (await client.run("run-1")).pending_tool_calls
        early = await client.answer("run-1", approvals=[approve(first)], background=True)
        assert list(early.receipt.remaining) == [second]
        gate.open()
        await starting
        log = await client.watch("run-1", early.run.last_sequence, stop_at=run_service_pb2.STOP_AT_NEXT_STOP)
        assert list(log[-1].run_stopped.remaining) == [second]
        paused = await client.run("run-1")
        assert (paused.status, list(paused.pending_tool_calls)) == (runs_pb2.RUN_STATUS_PAUSED, [second])
        assert executions[first.tool_call_id] == 0
        done = await client.answer("run-1", approvals=[approve(second)])
        assert done.run.status == runs_pb2.RUN_STATUS_COMPLETED
        assert executions[first.tool_call_id] == executions[second.tool_call_id] == 1
        assert upstream.requests[1].new_returns == ["held", "deleted /a", "deleted /b"]


async def test_a_paused_batch_waits_for_every_kind(store: str) -> None:
    """Returns and decisions may come in one submit."""
    script = [calls(("get_secret_code", {"name": "Alice"}), ("delete_file", {"path": "/a"})), says("Done.")]
    async with scripted(script, store, **ALL) as (client, upstream):
        run = (await client.ask("Both.", SECRET)).run
        code, delete = run.pending_tool_calls
        done = await client.answer(run.run_id, returned(code, "SECRET-42"), approvals=[approve(delete)])
        assert set(done.receipt.accepted_tool_call_ids) == {code.tool_call_id, delete.tool_call_id}
        assert kinds(done.messages) == ["tool_return", "approval", "tool_return", "assistant"]
        assert upstream.requests[1].new_returns == ["SECRET-42", "deleted /a"]


async def test_the_run_shows_no_pending_calls_of_the_server(store: str) -> None:
    """A call that the server executes by itself is never listed, and nothing may be sent for it."""
    script = [calls(("add", {"a": 1, "b": 2}), ("get_secret_code", {"name": "Alice"}))]
    async with scripted(script, store, **ALL) as (client, _):
        paused = await client.ask("Both.", SECRET)
        (code,) = paused.run.pending_tool_calls
        assert code.name == "get_secret_code"
        added = paused.messages[1].tool_call.tool_calls[0]
        refused = await refusal(client.answer(paused.run.run_id, returned(added.tool_call_id, "4")))
        assert (refused.code, refused.reason) == ("ALREADY_EXISTS", "CALL_ALREADY_SETTLED")
        log = await client.watch(paused.run.run_id, stop_at=run_service_pb2.STOP_AT_NEXT_STOP)
        assert [call.name for call in log[-1].run_stopped.remaining] == ["get_secret_code"]
