"""Submits that are refused: each bad entry is named in the message, nothing is stored, and the pause stands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from agentrpc.v1 import agent_service_pb2, run_service_pb2, runs_pb2, tools_pb2

from tests.scripted_openai import calls, says
from tests.server_tools import executions
from tests.service import SECRET, Client, Refusal, refusal, returned, scripted, submit

pytestmark = pytest.mark.anyio

TOOLS = {"tools": "tests.server_tools:delete_file"}
MIXED = calls(("get_secret_code", {"name": "Alice"}), ("delete_file", {"path": "/a"}))
AGE = tools_pb2.ClientToolSchema(
    name="get_age",
    result_schema_json='{"type":"object","properties":{"age":{"type":"integer"}},"required":["age"]}',
)
ASKS_AGE = calls(("get_age", {}))


def approve(call: Any, **fields: Any) -> tools_pb2.ApprovalDecision:
    """An approval."""
    return tools_pb2.ApprovalDecision(tool_call_id=call.tool_call_id, approve=tools_pb2.Approve(**fields))


@asynccontextmanager
async def paused(store: str) -> AsyncIterator[tuple[Client, runs_pb2.Run]]:
    """A run that waits for a client's return and for an approval; at the end it must wait as before."""
    async with scripted([MIXED], store, **TOOLS) as (client, upstream):
        run = (await client.ask("Code of Alice? And delete /a.", SECRET)).run
        log = await client.watch(run.run_id, stop_at=run_service_pb2.STOP_AT_NEXT_STOP)
        yield client, run
        assert await client.run(run.run_id) == run
        assert (await client.watch(run.run_id, stop_at=run_service_pb2.STOP_AT_NEXT_STOP))[:-1] == log[:-1]
        assert sum(executions[call.tool_call_id] for call in run.pending_tool_calls) == 0
        assert upstream.request_count == 1


async def refused_everywhere(client: Client, request: agent_service_pb2.SubmitToolReturnsRequest) -> Refusal:
    """The refusal of a submit, which is the same when streamed and in a dry run, but for the path of the arm."""
    found = await refusal(client.agent.SubmitToolReturns(request))
    streamed = await refusal(client.agent.StreamToolReturns(agent_service_pb2.StreamToolReturnsRequest(submit=request)))
    dry = await refusal(client.agent.BuildRequest(agent_service_pb2.BuildRequestRequest(submit=request)))
    assert streamed == dry
    assert (streamed.code, streamed.reason, streamed.metadata) == (found.code, found.reason, found.metadata)
    assert streamed.message.replace("submit.", "") == found.message
    return found


async def test_an_unknown_id_is_named_with_what_is_pending(store: str) -> None:
    """The message alone suffices to go on."""
    async with paused(store) as (client, run):
        code, delete = run.pending_tool_calls
        request = submit(run.run_id, returned(code, "ONE"), returned("call_x", "TWO"))
        refused = await refused_everywhere(client, request)
        assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "UNKNOWN_TOOL_CALL")
        assert refused.fields == ("tool_returns[1].tool_call_id",)
        assert refused.message == (
            f"tool_returns[1].tool_call_id: 'call_x' is not a call of {run.run_id}; "
            f"pending: {code.tool_call_id}, {delete.tool_call_id}"
        )


async def test_an_id_named_twice_is_refused(store: str) -> None:
    """In returns, in approvals, and across both."""
    async with paused(store) as (client, run):
        code, delete = run.pending_tool_calls
        twice = submit(run.run_id, returned(code, "ONE"), returned(code, "ONE"))
        refused = await refused_everywhere(client, twice)
        assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "UNKNOWN_TOOL_CALL")
        assert refused.fields == ("tool_returns[1].tool_call_id",)
        assert f"'{code.tool_call_id}' is named twice" in refused.message
        across = submit(run.run_id, returned(delete, "ONE"), approvals=[approve(delete)])
        assert (await refused_everywhere(client, across)).fields == ("approvals[0].tool_call_id",)


async def test_an_id_of_another_run_is_refused(store: str) -> None:
    """A call belongs to one run, even of the same conversation; an empty list of pending calls is said, too."""
    async with scripted([MIXED, says("Hello.")], store, **TOOLS) as (client, _):
        run = (await client.ask("Code?", SECRET)).run
        other = (await client.ask("Hello?")).run
        refused = await refused_everywhere(client, submit(other.run_id, returned(run.pending_tool_calls[0], "ONE")))
        assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "UNKNOWN_TOOL_CALL")
        assert refused.message.endswith(f"is not a call of {other.run_id}; pending: none")
        assert await client.run(run.run_id) == run
        assert await client.run(other.run_id) == other


async def test_many_bad_ids_are_named_up_to_sixteen_with_their_total(store: str) -> None:
    """The answer stays small."""
    async with paused(store) as (client, run):
        request = submit(run.run_id, *(returned(f"call_{n}", "x") for n in range(200)))
        refused = await refusal(client.agent.SubmitToolReturns(request))
        assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "UNKNOWN_TOOL_CALL")
        assert refused.metadata == {"violations_total": "200"}
        assert "'call_0' is not a call" in refused.message
        assert 8 <= len(refused.fields) <= 16


async def test_approving_a_client_call_says_to_send_a_return(store: str) -> None:
    """The call is executed by the client; nothing runs on the server."""
    async with paused(store) as (client, run):
        code, _delete = run.pending_tool_calls
        refused = await refused_everywhere(client, submit(run.run_id, approvals=[approve(code)]))
        assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "CALL_NEEDS_TOOL_RETURN")
        assert refused.metadata == {"tool_call_id": code.tool_call_id}
        assert refused.message == (
            f"approvals[0]: {code.tool_call_id} (get_secret_code) is executed by the client; "
            "send tool_returns (or deny it)"
        )


async def test_a_return_for_a_call_that_needs_approval_says_to_send_a_decision(store: str) -> None:
    """Also when it comes with a good return of another call: none is stored."""
    async with paused(store) as (client, run):
        code, delete = run.pending_tool_calls
        request = submit(run.run_id, returned(code, "ONE"), returned(delete, "deleted"))
        refused = await refused_everywhere(client, request)
        assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "CALL_NEEDS_APPROVAL")
        assert refused.metadata == {"tool_call_id": delete.tool_call_id}
        assert refused.message.startswith(f"tool_returns[1]: {delete.tool_call_id} (delete_file) is executed by the")


async def test_denying_a_client_call_is_allowed(store: str) -> None:
    """The model reads the reason and goes on; a return for it afterwards is refused with its outcome."""
    script = [calls(("get_secret_code", {"name": "Alice"})), says("I see.")]
    async with scripted(script, store) as (client, upstream):
        run = (await client.ask("Code?", SECRET)).run
        (call,) = run.pending_tool_calls
        deny = tools_pb2.ApprovalDecision(tool_call_id=call.tool_call_id, deny=tools_pb2.Deny(reason="not for you"))
        done = await client.answer(run.run_id, approvals=[deny])
        assert not done.messages[0].approval.approved and done.messages[0].approval.note == "not for you"
        assert done.messages[1].tool_return.outcome == tools_pb2.TOOL_CALL_OUTCOME_DENIED
        assert upstream.requests[1].new_returns == ["Denied: not for you"]
        refused = await refusal(client.answer(run.run_id, returned(call, "ONE")))
        assert (refused.code, refused.metadata["outcome"]) == ("ALREADY_EXISTS", "DENIED")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"age": "x"}', 'at /age: "x" is not of type "integer"'),
        ("{}", 'at /: "age" is a required property'),
        ("[]", 'at /: [] is not of type "object"'),
        ("forty", "the text is not JSON"),
        ("", "the text is not JSON"),
        ('{"age": NaN}', "NaN is not JSON"),
        ('{"age": 1, "age": 2}', "key 'age' twice"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
async def test_a_return_against_the_result_schema_leaves_the_call_pending(store: str, text: str, problem: str) -> None:
    """The path and the problem are in the message; a good return is accepted afterwards."""
    async with scripted([ASKS_AGE, says("Forty.")], store) as (client, upstream):
        run = (await client.ask("Age?", AGE)).run
        (call,) = run.pending_tool_calls
        refused = await refused_everywhere(client, submit(run.run_id, returned(call, text)))
        assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "SCHEMA_VIOLATION")
        assert refused.fields == ("tool_returns[0].text",)
        assert refused.message.startswith("tool_returns[0].text: against the result schema of 'get_age' ")
        assert problem in refused.message
        assert await client.run(run.run_id) == run
        done = await client.answer(run.run_id, returned(call, '{"age": 40}'))
        assert upstream.requests[1].new_returns == ['{"age": 40}']
        assert done.run.status == runs_pb2.RUN_STATUS_COMPLETED


async def test_an_error_return_need_not_satisfy_the_result_schema(store: str) -> None:
    """The schema is of successful returns; a repeat of what was accepted is never checked again."""
    async with scripted([ASKS_AGE, says("Pity.")], store) as (client, _):
        run = (await client.ask("Age?", AGE)).run
        error = returned(run.pending_tool_calls[0], "unknown", status=tools_pb2.TOOL_RETURN_STATUS_ERROR)
        done = await client.answer(run.run_id, error)
        assert done.run.status == runs_pb2.RUN_STATUS_COMPLETED
        assert await client.answer(run.run_id, error) == done


async def test_an_empty_submit_is_refused(store: str) -> None:
    """It would answer nothing."""
    async with paused(store) as (client, run):
        refused = await refused_everywhere(client, submit(run.run_id))
        assert (refused.code, refused.reason, refused.fields) == (
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
            ("tool_returns",),
        )


async def test_a_submit_to_an_unknown_run_is_not_found(store: str) -> None:
    """Named in the message."""
    async with scripted([], store) as (client, _):
        refused = await refused_everywhere(client, submit("run-9", returned("call_1", "x")))
        assert (refused.code, refused.reason) == ("NOT_FOUND", "RUN_NOT_FOUND")
        assert refused.message == "run_id: no run 'run-9'"


async def test_every_bad_entry_of_a_submit_is_named_at_once(store: str) -> None:
    """Empty ids, unknown status numbers, both kinds of text, decisions without an arm."""
    async with paused(store) as (client, run):
        code, delete = run.pending_tool_calls
        bad_status = tools_pb2.ToolReturn(tool_call_id=code.tool_call_id, text="x")
        bad_status.status = 77  # type: ignore[assignment]  # what a newer client may send
        request = submit(
            run.run_id,
            returned("", "ONE"),
            bad_status,
            returned(code, "ONE", parts=[{"text": "TWO"}]),
            returned(code, "", parts=[{}]),
            approvals=[tools_pb2.ApprovalDecision(tool_call_id=delete.tool_call_id)],
            request_id="not an id",
            on_disconnect=99,
        )
        refused = await refusal(client.agent.SubmitToolReturns(request))
        assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
        assert set(refused.fields) == {
            "tool_returns[0].tool_call_id",
            "tool_returns[1].status",
            "tool_returns[2].parts",
            "tool_returns[3].parts[0]",
            "approvals[0].decision",
            "request_id",
            "on_disconnect",
        }


async def test_sizes_of_returns_are_bounded(store: str) -> None:
    """Each text, output and note, with the limit in the message; a text at the limit is accepted."""
    limits = {"limits": {"max_tool_return_bytes": 100, "max_tool_arguments_bytes": 100}}
    async with scripted([MIXED], store, **TOOLS, **limits) as (client, _):
        run = (await client.ask("Code?", SECRET)).run
        code, delete = run.pending_tool_calls
        long = "é" * 51
        for request, field in (
            (submit(run.run_id, returned(code, long)), "tool_returns[0].text"),
            (submit(run.run_id, returned(code, "", stdout=long)), "tool_returns[0].stdout"),
            (submit(run.run_id, returned(code, "", stderr=long)), "tool_returns[0].stderr"),
            (submit(run.run_id, approvals=[approve(delete, note=long)]), "approvals[0].approve.note"),
            (
                submit(run.run_id, approvals=[approve(delete, edited_arguments_json=long)]),
                "approvals[0].approve.edited_arguments_json",
            ),
        ):
            refused = await refusal(client.agent.SubmitToolReturns(request))
            assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", (field,))
            assert refused.message == f"{field}: 102 bytes; at most 100 are allowed"
        assert (await client.answer(run.run_id, returned(code, "é" * 50))).receipt.accepted_tool_call_ids


async def test_background_and_max_wait_are_refused_in_a_stream_of_returns(store: str) -> None:
    """Both are named with what to use instead."""
    async with scripted([], store) as (client, _):
        request = submit("run-1", returned("call_1", "x"), background=True)
        request.max_wait.FromSeconds(1)
        stream = agent_service_pb2.StreamToolReturnsRequest(submit=request)
        refused = await refusal(client.agent.StreamToolReturns(stream))
        assert refused.fields == ("submit.background", "submit.max_wait")
        assert "SubmitToolReturns" in refused.message and "WatchRun" in refused.message
