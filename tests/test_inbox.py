"""ListPendingToolCalls: what waits for callers, over all runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from agentrpc.v1 import agent_service_pb2, inbox_service_pb2, sort_order_pb2, tools_pb2

from agent_service.tools import server_tool
from tests.scripted_openai import calls, says
from tests.service import SECRET, Client, refusal, returned, scripted, submit

pytestmark = pytest.mark.anyio

TOOLS = "tests.test_inbox:delete_file"
EXECUTION, APPROVAL = tools_pb2.PENDING_KIND_CLIENT_EXECUTION, tools_pb2.PENDING_KIND_APPROVAL
AGE = tools_pb2.ClientToolSchema(name="get_age")


@server_tool(requires_approval=True)
async def delete_file(path: str) -> str:
    """Deletes a file."""
    return f"deleted {path}"


def named(names: Iterable[Any]) -> list[tuple[str, str]]:
    """Run and tool of each call."""
    return [(waiting.run_id, waiting.call.name) for waiting in names]


async def three_runs(client: Client) -> None:
    """Three paused runs, one of them of another agent; and one that waits for nothing."""
    await client.create_agent("keeper", server_tools=["delete_file"])
    await client.ask("Hi", SECRET, AGE, run_id="run-1")
    await client.ask("Hi", SECRET, run_id="run-2", agent_id="keeper")
    await client.ask("Hi", AGE, run_id="run-3")
    await client.ask("Hi", run_id="run-4")


SCRIPT = [
    calls(("get_secret_code", {"name": "A"}), ("get_age", {})),
    calls(("delete_file", {"path": "/x"}), ("get_secret_code", {"name": "B"})),
    calls(("get_age", {})),
    says("Nothing to do."),
]
ALL = [
    ("run-1", "get_age"),
    ("run-1", "get_secret_code"),
    ("run-2", "delete_file"),
    ("run-2", "get_secret_code"),
    ("run-3", "get_age"),
]


async def test_calls_of_all_runs_are_found_by_filters_that_must_all_hold(store: str) -> None:
    """Agent, conversation, tool and kind; the longest waiting first, or the newest first where asked."""
    async with scripted(SCRIPT, store, tools=TOOLS) as (client, _):
        await three_runs(client)

        async def found(**which: Any) -> list[tuple[str, str]]:
            return sorted(named((await client.waiting(**which)).calls))

        assert await found() == ALL
        assert await found(agent_id="keeper") == ALL[2:4]
        assert await found(tool_name="get_age") == [ALL[0], ALL[4]]
        assert await found(kind=APPROVAL) == [ALL[2]]
        assert await found(kind=EXECUTION) == ALL[:2] + ALL[3:]
        conversation_id = (await client.run("run-1")).conversation_id
        assert await found(conversation_id=conversation_id) == ALL[:2]
        assert await found(conversation_id=conversation_id, tool_name="get_age", kind=EXECUTION) == ALL[:1]
        assert await found(conversation_id=conversation_id, kind=APPROVAL) == []
        assert await found(tool_name="no such tool", agent_id="nobody") == []

        oldest_first = [waiting.run_id for waiting in (await client.waiting()).calls]
        assert oldest_first == ["run-1", "run-1", "run-2", "run-2", "run-3"]
        newest_first = await client.waiting(order=sort_order_pb2.SORT_ORDER_DESCENDING)
        assert [waiting.run_id for waiting in newest_first.calls] == oldest_first[::-1]


async def test_a_waiting_call_has_all_that_its_answer_needs(store: str) -> None:
    """The call as the run shows it, the run to submit to, and since when it waits: since the pause."""
    async with scripted([*SCRIPT[1:2], says("Done.")], store, tools=TOOLS) as (client, _):
        paused = await client.ask("Hi", SECRET, run_id="run-1")
        waiting = {waiting.call.name: waiting for waiting in (await client.waiting()).calls}
        assert {name: w.call for name, w in waiting.items()} == {c.name: c for c in paused.run.pending_tool_calls}
        deletion, secret = waiting["delete_file"], waiting["get_secret_code"]
        assert (deletion.call.kind, secret.call.kind) == (APPROVAL, EXECUTION)
        assert (deletion.call.arguments_json, deletion.call.index) == ('{"path": "/x"}', 0)
        assert (secret.run_id, secret.agent_id) == ("run-1", "default")
        assert secret.conversation_id == paused.run.conversation_id
        assert secret.pending_time == paused.run.update_time
        assert deletion.pending_time == paused.run.update_time

        request = submit(secret.run_id, returned(secret.call, "B-2"))
        request.approvals.add(tool_call_id=deletion.call.tool_call_id).approve.SetInParent()
        answered: agent_service_pb2.SubmitToolReturnsResponse = await client.agent.SubmitToolReturns(request)
        assert answered.messages[-1].assistant.text == "Done."


async def test_a_settled_call_leaves_at_once_and_its_siblings_stay(store: str) -> None:
    """After a return, an approval, a denial and a cancel."""
    async with scripted(SCRIPT, store, tools=TOOLS) as (client, _):
        await three_runs(client)
        run = {run_id: await client.run(run_id) for run_id in ("run-1", "run-2")}
        await client.answer("run-1", returned(run["run-1"].pending_tool_calls[0], "A-1"))
        approve = submit("run-2")
        approve.approvals.add(tool_call_id=run["run-2"].pending_tool_calls[0].tool_call_id).approve.SetInParent()
        await client.agent.SubmitToolReturns(approve)
        left = [("run-1", "get_age"), ("run-2", "get_secret_code"), ("run-3", "get_age")]
        assert named((await client.waiting()).calls) == left
        await client.cancel("run-3")
        assert named((await client.waiting()).calls) == left[:2]
        await client.cancel("run-1")
        await client.cancel("run-2")
        assert named((await client.waiting()).calls) == []


async def test_pages_stay_right_while_calls_are_settled(store: str) -> None:
    """Each call that still waits is seen once, also when the last one of a page was answered meanwhile."""
    async with scripted([*SCRIPT, says("Go on.")], store, tools=TOOLS) as (client, _):
        await three_runs(client)
        seen, token = [], ""
        while True:
            page = await client.waiting(page_size=2, page_token=token)
            seen += named(page.calls)
            token = page.next_page_token
            if not token:
                break
            last = page.calls[-1]
            if last.call.kind == EXECUTION:
                await client.answer(last.run_id, returned(last.call, "A-1"))
        assert sorted(seen) == ALL
        assert [run_id for run_id, _ in seen] == ["run-1", "run-1", "run-2", "run-2", "run-3"]


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"kind": 9}, ("kind",)),
        ({"order": 9, "page_size": 1001}, ("order", "page_size")),
        ({"agent_id": "not an id", "conversation_id": "ü"}, ("agent_id", "conversation_id")),
        ({"page_token": "x"}, ("page_token",)),
    ],
)
async def test_bad_fields_are_named(fields: dict[str, Any], names: tuple[str, ...]) -> None:
    """INVALID_ARGUMENT with their paths."""
    async with scripted([], "memory") as (client, _):
        request = inbox_service_pb2.ListPendingToolCallsRequest(**fields)
        refused = await refusal(client.inbox.ListPendingToolCalls(request))
        assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", names)
