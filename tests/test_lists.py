"""ListRuns and ListMessages as callers see them: defaults, pages and their tokens, bounds, refusals."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from agentrpc.v1 import agent_registry_service_pb2 as registry_pb
from agentrpc.v1 import agent_service_pb2, inbox_service_pb2, run_service_pb2, runs_pb2, sort_order_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from agent_service.engine.limits import Limits
from tests.scripted_openai import Gate, Reply, ScriptedOpenAI, calls, fails, says
from tests.service import SECRET, Client, kinds, refusal, returned, scripted, serving, step
from tests.stored import lost_twice

pytestmark = pytest.mark.anyio

CALL = calls(("get_secret_code", {"name": "Alice"}))
ASCENDING, DESCENDING = sort_order_pb2.SORT_ORDER_ASCENDING, sort_order_pb2.SORT_ORDER_DESCENDING
gate = Gate()


async def hold() -> str:
    """A server tool that waits for the test."""
    await gate.next_step()
    return "held"


def forged(value: object) -> str:
    """A token that no server gave."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


FORGED: list[object] = [None, 7, [], {"a": 1, "b": 2, "c": 3}, [1, "a"]]
BAD_TOKENS = ["x", "é", "!!!!", "AAAA", *map(forged, FORGED)]
BAD_PLACES: list[list[object]] = [[1], ["1", "a"], [1, 2], [-1, "a"], [2**63, "a"], [True, "a"], [1.5, "a"]]
BAD_PLACES += [[1, "\ud800"], [1, "a\0b"], [1, ""]]


def lists(client: Client, conversation_id: str) -> dict[str, Callable[..., Any]]:
    """The calls that list something, by the name that their tokens bear."""
    messages = partial(registry_pb.ListMessagesRequest, conversation_id=conversation_id)
    return {
        "runs": lambda **page: client.runs.ListRuns(run_service_pb2.ListRunsRequest(**page)),
        "agents": lambda **page: client.registry.ListAgents(registry_pb.ListAgentsRequest(**page)),
        "conversations": lambda **page: client.registry.ListConversations(registry_pb.ListConversationsRequest(**page)),
        "messages": lambda **page: client.registry.ListMessages(messages(**page)),
        "calls": lambda **page: client.inbox.ListPendingToolCalls(
            inbox_service_pb2.ListPendingToolCallsRequest(**page)
        ),
    }


async def run_pages(client: Client, **fields: Any) -> list[list[str]]:
    """The run ids of ListRuns, page by page."""
    pages, token = [], ""
    while True:
        page = await client.list_runs(page_token=token, **fields)
        pages.append([run.run_id for run in page.runs])
        token = page.next_page_token
        if not token:
            return pages


async def message_pages(client: Client, **fields: Any) -> list[list[int]]:
    """The positions of ListMessages, page by page."""
    pages, token = [], ""
    while True:
        request = registry_pb.ListMessagesRequest(page_token=token, **fields)
        page = await client.registry.ListMessages(request)
        pages.append([message.position for message in page.messages])
        token = page.next_page_token
        if not token:
            return pages


async def test_runs_are_listed_newest_first_and_page_by_page(store: str) -> None:
    """In both orders; the last page has no token, also if it is full, and no page is empty."""
    async with scripted([says("Yes.")] * 4, store) as (client, _):
        for number in range(4):
            await client.ask("Hi", run_id=f"run-{number}")
        assert await run_pages(client) == [["run-3", "run-2", "run-1", "run-0"]]
        assert await run_pages(client, page_size=3) == [["run-3", "run-2", "run-1"], ["run-0"]]
        assert await run_pages(client, page_size=2, order=ASCENDING) == [["run-0", "run-1"], ["run-2", "run-3"]]
        assert await run_pages(client, page_size=1000, order=DESCENDING) == await run_pages(client)


async def test_an_empty_list_is_one_empty_page(store: str) -> None:
    """Also for a filter by a conversation or an agent that does not exist: a filter is no reference."""
    async with scripted([], store) as (client, _):
        assert await run_pages(client) == [[]]
        assert await run_pages(client, conversation_id="nowhere", agent_id="nobody") == [[]]


async def test_a_page_goes_on_right_while_runs_are_added(store: str) -> None:
    """Runs that start between two pages are not seen newest first, and at the end oldest first."""
    async with scripted([says("Yes.")] * 5, store) as (client, _):
        for number in range(4):
            await client.ask("Hi", run_id=f"run-{number}")
        first = {order: await client.list_runs(page_size=2, order=order) for order in (ASCENDING, DESCENDING)}
        await client.ask("Hi", run_id="run-4")
        second = {
            order: await client.list_runs(page_token=page.next_page_token, order=order) for order, page in first.items()
        }
        assert [run.run_id for run in second[DESCENDING].runs] == ["run-1", "run-0"]
        assert [run.run_id for run in second[ASCENDING].runs] == ["run-2", "run-3", "run-4"]


async def test_runs_are_chosen_by_all_filters(store: str) -> None:
    """Statuses, agent, conversation, labels and the time of start, alone and together."""
    script = [CALL, says("Yes."), fails(503), says("Yes.")]
    async with scripted(script, store) as (client, _):
        await client.ask("Hi", SECRET, run_id="paused", labels={"team": "a"})
        done = await client.ask("Hi", run_id="done", labels={"team": "a", "env": "x"}, conversation_id="")
        await client.ask("Hi", run_id="lost", conversation_id=done.run.conversation_id)
        await client.ask("Hi", run_id="other", agent_id="responder")

        async def ids(**which: Any) -> list[str]:
            ((*found,),) = await run_pages(client, order=ASCENDING, **which)
            return found

        assert await ids(statuses=[runs_pb2.RUN_STATUS_PAUSED]) == ["paused"]
        statuses = [runs_pb2.RUN_STATUS_COMPLETED, runs_pb2.RUN_STATUS_INTERRUPTED, runs_pb2.RUN_STATUS_COMPLETED]
        assert await ids(statuses=statuses) == ["done", "lost", "other"]
        assert await ids(agent_id="responder") == ["other"]
        assert await ids(conversation_id=done.run.conversation_id) == ["done", "lost"]
        assert await ids(labels={"team": "a"}) == ["paused", "done"]
        assert await ids(labels={"team": "a", "env": "x"}) == ["done"]
        began = done.run.create_time
        assert await ids(create_time_from=began) == ["done", "lost", "other"]
        assert await ids(create_time_before=began) == ["paused"]
        assert await ids(create_time_from=began, conversation_id=done.run.conversation_id, statuses=statuses[:1]) == [
            "done"
        ]


async def test_a_listed_run_is_the_run(store: str) -> None:
    """As GetRun shows it, with its pending calls."""
    async with scripted([CALL], store) as (client, _):
        await client.ask("Hi", SECRET, run_id="run-1")
        (listed,) = (await client.list_runs()).runs
        assert listed == await client.run("run-1")
        assert [call.name for call in listed.pending_tool_calls] == ["get_secret_code"]


async def test_pages_end_by_bytes_too(store: str) -> None:
    """No answer is larger than the limit, nothing is left out, and one large row is a page by itself."""
    limits = Limits(max_response_bytes=10_000)
    large = calls(("get_secret_code", {"name": "A" * 6_000}))
    async with scripted([large, large, large, says("Yes.")], store, limits=limits) as (client, _):
        for number in range(3):
            await client.ask("Hi", SECRET, run_id=f"run-{number}")
        await client.ask("Hi", run_id="run-3")
        assert await run_pages(client) == [["run-3", "run-2"], ["run-1"], ["run-0"]]
        assert await run_pages(client, order=ASCENDING) == [["run-0"], ["run-1"], ["run-2", "run-3"]]
        waiting = await client.waiting()
        assert (len(waiting.calls), bool(waiting.next_page_token)) == (1, True)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"page_size": -1}, "page_size"),
        ({"page_size": 1001}, "page_size"),
        ({"statuses": [0]}, "statuses[0]"),
        ({"statuses": [runs_pb2.RUN_STATUS_PAUSED, 99]}, "statuses[1]"),
        ({"order": 9}, "order"),
        ({"agent_id": "not an id"}, "agent_id"),
        ({"conversation_id": "x" * 65}, "conversation_id"),
        ({"labels": {'a"b': "c"}}, "labels"),
        ({"create_time_from": Timestamp(seconds=-5)}, "create_time_from"),
        ({"create_time_before": Timestamp(seconds=253402300799)}, "create_time_before"),
    ],
)
async def test_a_bad_field_is_named(fields: dict[str, Any], named: str) -> None:
    """INVALID_ARGUMENT with its path."""
    async with scripted([], "memory") as (client, _):
        refused = await refusal(client.runs.ListRuns(run_service_pb2.ListRunsRequest(**fields)))
        assert (refused.code, refused.reason, refused.fields) == ("INVALID_ARGUMENT", "INVALID_FIELD", (named,))


async def test_all_bad_fields_are_named_at_once() -> None:
    """Filters, order, size and token."""
    async with scripted([], "memory") as (client, _):
        fields: dict[str, Any] = {"statuses": [0], "order": 9, "page_size": -1, "page_token": "x"}
        request = run_service_pb2.ListRunsRequest(**fields)
        refused = await refusal(client.runs.ListRuns(request))
        assert sorted(refused.fields) == ["order", "page_size", "page_token", "statuses[0]"]


async def test_a_token_that_no_server_gave_is_refused_by_every_list(store: str) -> None:
    """Whatever it holds: INVALID_ARGUMENT naming page_token, never an internal error or the first page."""
    async with scripted([says("Yes.")], store) as (client, _):
        run = (await client.ask("Hi")).run
        for name, listing in lists(client, run.conversation_id).items():
            await listing(page_token=forged([name, 1, "a"]))
            for token in [*BAD_TOKENS, *(forged([name, *place]) for place in BAD_PLACES)]:
                refused = await refusal(listing(page_token=token))
                assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", ("page_token",)), token


async def test_a_token_of_another_list_is_refused(store: str) -> None:
    """It would begin somewhere, and rows would be missing without a word."""
    async with scripted([CALL, CALL], store) as (client, _):
        run = (await client.ask("Hi", SECRET)).run
        await client.ask("Hi", SECRET)
        listings = lists(client, run.conversation_id)
        tokens = {name: (await listing(page_size=1)).next_page_token for name, listing in listings.items()}
        assert all(tokens.values())
        for name, listing in listings.items():
            for of, token in tokens.items():
                if of == name:
                    await listing(page_token=token)
                else:
                    refused = await refusal(listing(page_token=token))
                    assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", ("page_token",)), (name, of)


async def _talk(client: Client) -> tuple[str, str]:
    """A conversation of six messages in two runs; its id and that of the second run."""
    first = await client.ask("Hi", SECRET)
    await client.answer(first.run.run_id, returned(first.run.pending_tool_calls[0], "A-1"))
    second = await client.ask("And now?", conversation_id=first.run.conversation_id)
    return first.run.conversation_id, second.run.run_id


TALK: list[Reply] = [CALL, says("It is A-1."), says("Nothing.")]


async def test_messages_are_listed_in_both_directions(store: str) -> None:
    """Oldest first unless asked otherwise; pages meet without gap or doubling."""
    async with scripted(TALK, store) as (client, _):
        conversation_id, _ = await _talk(client)
        forward = await message_pages(client, conversation_id=conversation_id, page_size=4)
        assert forward == [[1, 2, 3, 4], [5, 6]]
        back = await message_pages(client, conversation_id=conversation_id, page_size=3, order=DESCENDING)
        assert back == [[6, 5, 4], [3, 2, 1]]
        assert await message_pages(client, conversation_id=conversation_id, order=ASCENDING) == [[1, 2, 3, 4, 5, 6]]


async def test_messages_of_one_run(store: str) -> None:
    """By the run alone, or with its conversation; with another conversation the request contradicts itself."""
    async with scripted(TALK, store) as (client, _):
        conversation_id, run_id = await _talk(client)
        assert await message_pages(client, run_id=run_id) == [[5, 6]]
        assert await message_pages(client, run_id=run_id, page_size=1, order=DESCENDING) == [[6], [5]]
        (first,) = [run.run_id for run in (await client.list_runs()).runs if run.run_id != run_id]
        pages = await message_pages(client, run_id=first, conversation_id=conversation_id, page_size=3)
        assert pages == [[1, 2, 3], [4]]
        request = registry_pb.ListMessagesRequest(run_id=run_id, conversation_id="another")
        refused = await refusal(client.registry.ListMessages(request))
        assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", ("run_id",))


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({}, "INVALID_ARGUMENT", "INVALID_FIELD"),
        ({"conversation_id": "nowhere"}, "NOT_FOUND", "CONVERSATION_NOT_FOUND"),
        ({"run_id": "nothing"}, "NOT_FOUND", "RUN_NOT_FOUND"),
    ],
)
async def test_messages_of_nothing_are_refused(fields: dict[str, Any], code: str, reason: str) -> None:
    """Neither named, or what is named does not exist."""
    async with scripted([], "memory") as (client, _):
        refused = await refusal(client.registry.ListMessages(registry_pb.ListMessagesRequest(**fields)))
        assert (refused.code, refused.reason) == (code, reason)


async def test_messages_of_a_run_that_was_interrupted_and_settled_by_the_next_one(shared_store: str) -> None:
    """A tool executes that killed its servers: what the next start writes for the open calls belongs to the old run."""
    script = [calls(("hold", {}), ("get_secret_code", {"name": "Alice"})), says("Let us go on.")]
    async with ScriptedOpenAI(script) as upstream:
        async with serving(upstream, shared_store, tools="tests.test_lists:hold") as client:
            request = step("Hi", SECRET, run_id="old", background=True)
            conversation_id = (await client.agent.Step(request)).run.conversation_id
            stream = client.runs.WatchRun(run_service_pb2.WatchRunRequest(run_id="old"))
            async for response in stream:
                if response.event.message_stored.message.HasField("tool_call"):
                    break
        await lost_twice(shared_store)
        async with serving(upstream, shared_store, tools="tests.test_lists:hold") as client:
            assert (await client.run("old")).status == runs_pb2.RUN_STATUS_INTERRUPTED
            await client.ask("And now?", SECRET, conversation_id=conversation_id, run_id="new")
            assert (await client.run("old")).status == runs_pb2.RUN_STATUS_FAILED
            assert await message_pages(client, run_id="old", page_size=3) == [[1, 2, 3], [4]]
            assert await message_pages(client, run_id="old", page_size=3, order=DESCENDING) == [[4, 3, 2], [1]]
            assert await message_pages(client, run_id="new") == [[5, 6]]
            messages = await client.messages(conversation_id)
            assert kinds(messages) == ["user", "tool_call", "tool_return", "tool_return", "user", "assistant"]
            upstream.check_histories()


async def test_a_page_of_messages_is_bounded_by_bytes(store: str) -> None:
    """Pages of large messages are shorter than asked for and still meet."""
    script = [says("x" * 700_000, chunks=1)] * 4
    async with scripted(script, store) as (client, _):
        conversation_id = ""
        for _ in range(4):
            answered: agent_service_pb2.StepResponse = await client.ask("Hi", conversation_id=conversation_id)
            conversation_id = answered.run.conversation_id
        assert await message_pages(client, conversation_id=conversation_id) == [[1, 2, 3, 4], [5, 6, 7, 8]]
        back = await message_pages(client, conversation_id=conversation_id, order=DESCENDING)
        assert [position for page in back for position in page] == [8, 7, 6, 5, 4, 3, 2, 1]
        assert len(back) > 1
