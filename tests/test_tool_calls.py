"""What the model calls: exact arguments to the client, error returns for calls that must not run, bounds on all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agentrpc.v1 import agent_registry_service_pb2, messages_pb2, runs_pb2, tools_pb2

from tests.modes import MODES, resume, start
from tests.scripted_openai import Framing, Reply, Request, calls, cut_by_length, says
from tests.server_tools import executions
from tests.service import SECRET, Client, kinds, refusal, returned, scripted, step, submit

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
ANYTHING = tools_pb2.ClientToolSchema(name="take", parameters_json='{"type":"object","properties":{}}')
QUICK = Framing(cut=False)

ARGUMENTS = {
    "19 digits": '{"id": 9007199254740993123, "big": 1234567890123456789}',
    "exact numbers": '{"a": 1.10, "b": 1e400, "c": -0, "d": 0.1000000000000000055511151231257827}',
    "unicode": '{"text": "Ünïcödé \U0001f600 \u2028 \\ud83d\\ude00 \\u0000 \\u00e9"}',
    "layout": '{\n  "b" :1,\t"a": [ 1,2 ]  }',
    "half of a pair": '{"text": "\\ud83d"}',
    "empty": "{}",
    "1 MiB": json.dumps({"text": "é" * (MIB // 2)}, ensure_ascii=False),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
async def test_arguments_and_returns_arrive_exactly(store: str, mode: str, arguments: str) -> None:
    """Text for text: in the pending call, in the message, in the next request to the model; and the return as well."""
    script = [calls(("take", arguments), fragments=20, framing=QUICK), says("Taken.")]
    async with scripted(script, store) as (client, upstream):
        paused = await start(client, mode, step("Take it.", ANYTHING))
        (call,) = paused.run.pending_tool_calls
        assert call.arguments_json == arguments
        assert paused.messages[-1].tool_call.tool_calls[0].arguments_json == arguments
        done = await resume(client, mode, paused.run, submit(paused.run.run_id, returned(call, arguments)))
        assert done.messages[0].tool_return.text == arguments
        assert upstream.requests[1].history[1]["tool_calls"][0]["function"]["arguments"] == arguments
        assert upstream.requests[1].new_returns == [arguments]
        assert done.run.status == runs_pb2.RUN_STATUS_COMPLETED


async def test_a_call_without_arguments_has_an_empty_object(store: str) -> None:
    """Some models write nothing where they mean no arguments."""
    async with scripted([calls(("take", "")), says("Taken.")], store) as (client, _):
        (call,) = (await client.ask("Take.", ANYTHING)).run.pending_tool_calls
        assert call.arguments_json == "{}"


async def test_ids_are_the_servers_own_and_unique(store: str) -> None:
    """Though the endpoint gives the same ids in each answer; they are what it reads back."""
    async with scripted([calls(("take", "{}"), ("take", "{}"))] * 2 + [says("Taken.")], store) as (client, upstream):
        run = (await client.ask("Take.", ANYTHING)).run
        first = list(run.pending_tool_calls)
        run = (await client.answer(run.run_id, *(returned(call, "x") for call in first))).run
        second = list(run.pending_tool_calls)
        await client.answer(run.run_id, *(returned(call, "x") for call in second))
        ids = [call.tool_call_id for call in first + second]
        assert len(set(ids)) == 4 and all(len(call_id) <= 40 for call_id in ids)
        assert list(upstream.requests[-1].returns) == ids


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("get_secret_code", '{"name": "Alice"', "the arguments are not valid JSON"),
        ("get_secret_code", "Alice", "the arguments are not valid JSON"),
        ("get_secret_code", '{"name": "a", "name": "b"}', "key 'name' twice"),
        ("get_secret_code", '{"name": NaN}', "NaN is not JSON"),
        ("get_secret_code", "[" * 100_000, "nested too deeply"),
        ("get_secret_code", '["Alice"]', "the arguments are not a JSON object"),
        ("get_secret_code", "{}", 'at /: "name" is a required property'),
        ("get_secret_code", '{"name": 7}', 'at /name: 7 is not of type "string"'),
        ("get_secret_cod", '{"name": "Alice"}', "there is no tool 'get_secret_cod'. Available tools: get_secret_code."),
        ("", "{}", "there is no tool ''"),
        ("get secret\n\u2028\U0001f600" * 40, "{}", "there is no tool"),
    ],
    ids=lambda value: value[:24].encode("ascii", "replace").decode().strip(),
)
async def test_a_bad_call_is_an_error_return_to_the_model_and_no_pause(
    store: str, name: str, arguments: str, told: str
) -> None:
    """The model reads what was wrong and may try again; nothing is executed or awaited."""
    script = [calls((name, arguments), unruly=True), calls(("get_secret_code", {"name": "Alice"}))]
    async with scripted(script, store) as (client, upstream):
        paused = await client.ask("Code?", SECRET)
        assert kinds(paused.messages) == ["user", "tool_call", "tool_return", "tool_call"]
        error = paused.messages[2].tool_return
        assert (error.status, error.outcome) == (
            tools_pb2.TOOL_RETURN_STATUS_ERROR,
            tools_pb2.TOOL_CALL_OUTCOME_FAILED,
        )
        assert error.text.startswith("Error: ") and told in error.text
        assert upstream.requests[1].new_returns == [error.text]
        assert paused.messages[1].tool_call.tool_calls[0].arguments_json == arguments
        (call,) = paused.run.pending_tool_calls
        assert json.loads(call.arguments_json) == {"name": "Alice"}


async def test_good_calls_beside_a_bad_one_are_still_awaited(store: str) -> None:
    """Only the bad one is answered by the server; the model reads all in its order."""
    script = [calls(("get_secret_code", "{"), ("get_secret_code", {"name": "Bob"})), says("One.")]
    async with scripted(script, store) as (client, upstream):
        run = (await client.ask("Codes?", SECRET)).run
        (call,) = run.pending_tool_calls
        assert call.index == 1
        await client.answer(run.run_id, returned(call, "TWO"))
        bad, good = upstream.requests[1].new_returns
        assert bad.startswith("Error") and good == "TWO"


@pytest.mark.parametrize("mode", MODES)
async def test_three_answers_of_nothing_but_bad_calls_fail_the_run(store: str, mode: str) -> None:
    """INVALID_TOOL_CALL, with every call answered, so that the next message works."""
    script = [*[calls(("get_secret_code", "{}"), ("get_secret_code", "["))] * 3, says("Sorry.")]
    async with scripted(script, store) as (client, upstream):
        failed = await start(client, mode, step("Code?", SECRET))
        assert failed.run.status == runs_pb2.RUN_STATUS_FAILED
        assert failed.run.stop_reason == runs_pb2.STOP_REASON_INVALID_TOOL_CALL
        assert "3 model answers in a row" in failed.run.error.message
        assert upstream.request_count == 3
        later = await client.ask("Hello?", conversation_id=failed.run.conversation_id)
        assert later.messages[-1].assistant.text == "Sorry."
        assert len(upstream.requests[-1].returns) == 6


async def test_a_good_call_in_between_begins_the_count_anew(store: str) -> None:
    """Bad answers count only in a row."""
    bad = calls(("get_secret_code", "{}"))
    script = [bad, bad, calls(("get_secret_code", {"name": "Alice"})), bad, bad, says("At last.")]
    async with scripted(script, store) as (client, _):
        run = (await client.ask("Code?", SECRET)).run
        done = await client.answer(run.run_id, returned(run.pending_tool_calls[0], "ONE"))
        assert done.run.stop_reason == runs_pb2.STOP_REASON_END_TURN


@pytest.mark.parametrize("mode", MODES)
async def test_an_answer_cut_by_the_token_limit_ends_the_run_and_its_calls_never_run(store: str, mode: str) -> None:
    """Neither the server's tools nor the client's: cut arguments may look whole. The history stays usable."""
    both = calls(("add", {"a": 1, "b": 2}), ("get_secret_code", {"name": "Alice"}), fragments=1)
    script = [cut_by_length(both, after=2), cut_by_length(says("This answer is"), after=2), says("Hello.")]
    async with scripted(script, store, tools="tests.server_tools:add") as (client, upstream):
        cut = await start(client, mode, step("Both.", SECRET))
        assert cut.run.status == runs_pb2.RUN_STATUS_COMPLETED
        assert cut.run.stop_reason == runs_pb2.STOP_REASON_MAX_TOKENS_EXCEEDED
        assert kinds(cut.messages) == ["user", "tool_call", "tool_return", "tool_return"]
        for message in cut.messages[2:]:
            assert message.tool_return.outcome == tools_pb2.TOOL_CALL_OUTCOME_FAILED
            assert executions[message.tool_return.tool_call_id] == 0
        text = await start(client, mode, step("And?", conversation_id=cut.run.conversation_id))
        assert text.run.stop_reason == runs_pb2.STOP_REASON_MAX_TOKENS_EXCEEDED
        assert text.messages[-1].assistant.text == "This answe"
        await client.ask("Hello?", conversation_id=cut.run.conversation_id)
        upstream.check_histories()


@pytest.mark.parametrize("mode", MODES)
async def test_oversized_arguments_are_error_returns_and_the_answers_stay_bounded(store: str, mode: str) -> None:
    """Of five calls of 1 MiB each two are awaited, the others are above the sum for one answer. No answer is larger
    than 3 MiB; what was left out says where to read on."""
    megabyte = json.dumps({"text": "a" * (MIB - 12)})

    def script(request: Request) -> Reply:
        if request.last["role"] == "tool":
            return says("Read.")
        return calls(*[("take", megabyte)] * 5, fragments=1, framing=QUICK)

    async with scripted(script, store) as (client, upstream):
        paused = await start(client, mode, step("Take it all.", ANYTHING))
        assert paused.run.ByteSize() < 3 * MIB
        first, second = paused.run.pending_tool_calls
        assert (first.arguments_json, second.arguments_json) == (megabyte, megabyte)
        stored = await all_messages(client, paused.run.conversation_id)
        assert kinds(stored) == ["user", "tool_call", *["tool_return"] * 3]
        for message in stored[2:]:
            assert message.tool_return.outcome == tools_pb2.TOOL_CALL_OUTCOME_FAILED
            assert "may have" in message.tool_return.text and "Make fewer calls" in message.tool_return.text
        done = await resume(
            client, mode, paused.run, submit(paused.run.run_id, returned(first, "1"), returned(second, "2"))
        )
        assert done.run.status == runs_pb2.RUN_STATUS_COMPLETED
        assert [len(text) < 200 for text in upstream.requests[1].new_returns] == [True] * 5


async def test_one_call_above_the_limit_is_an_error_return_with_the_limit(store: str) -> None:
    """The stored arguments are shortened, so that no message is too large."""
    limits = {"limits": {"max_tool_arguments_bytes": 2000}}
    script = [calls(("take", json.dumps({"text": "a" * 2000})), fragments=1), says("Too much.")]
    async with scripted(script, store, **limits) as (client, upstream):
        done = await client.ask("Take it.", ANYTHING)
        assert done.run.status == runs_pb2.RUN_STATUS_COMPLETED
        assert len(done.messages[1].tool_call.tool_calls[0].arguments_json) == 1024
        assert "at most 2000" in upstream.requests[1].new_returns[0]


async def test_an_answer_leaves_out_its_oldest_messages_when_it_would_be_too_large(store: str) -> None:
    """The newest stay; `messages_truncated` and `read_after_sequence` say where the rest can be read, and it can."""
    text = "é" * (MIB // 2)

    def script(request: Request) -> Reply:
        if len(request.returns) < 5:
            return calls(("take", json.dumps({"n": len(request.returns)})), text=text, framing=QUICK)
        return says("Enough.")

    async with scripted(script, store, tools="tests.test_tool_calls:take") as (client, _):
        done = await client.agent.Step(step("Take five."))
        assert done.ByteSize() <= 3 * MIB
        assert done.messages_truncated
        assert done.messages[-1].assistant.text == "Enough."
        log = await client.watch(done.run.run_id, done.read_after_sequence)
        missed = [e.message_stored.message for e in log if e.HasField("message_stored")]
        everything = await all_messages(client, done.run.conversation_id)
        assert len(everything) == 1 + 5 * 3 + 1
        assert missed == everything
        assert list(done.messages) == everything[-len(done.messages) :]
        assert done.ByteSize() > 2 * MIB


async def take(n: int) -> str:
    """The server tool of the test above."""
    return f"{n} taken"


async def all_messages(client: Client, conversation_id: str, page_size: int = 0) -> list[messages_pb2.Message]:
    """All pages of ListMessages, each checked to be bounded."""
    return [message for page in await pages(client, conversation_id, page_size) for message in page]


async def pages(client: Client, conversation_id: str, page_size: int = 0) -> list[list[messages_pb2.Message]]:
    """The pages of ListMessages."""
    request = agent_registry_service_pb2.ListMessagesRequest(conversation_id=conversation_id, page_size=page_size)
    found = []
    while True:
        page = await client.registry.ListMessages(request)
        assert page.ByteSize() <= 3 * MIB + 1024
        found.append(list(page.messages))
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return found


async def test_messages_are_paged_by_count(store: str) -> None:
    """Every message once, in order; the last page has no token, also when it is full; the default is 100."""
    async with scripted(lambda _: says("Hello."), store) as (client, _):
        request = step("0")
        for n in range(1, 6):
            request.input_messages.add(text=str(n))
        conversation_id = (await client.agent.Step(request)).run.conversation_id
        await client.ask("6", conversation_id=conversation_id)
        whole = await all_messages(client, conversation_id)
        assert [m.position for m in whole] == list(range(1, 10))
        for size, expected in ((1, [1] * 9), (3, [3, 3, 3]), (4, [4, 4, 1]), (9, [9]), (1000, [9]), (0, [9])):
            found = await pages(client, conversation_id, size)
            assert [len(page) for page in found] == expected
            assert [message for page in found for message in page] == whole
        big = step("x", conversation_id=conversation_id)
        for n in range(100):
            big.input_messages.add(text=str(n))
        await client.agent.Step(big)
        assert [len(page) for page in await pages(client, conversation_id)] == [100, 11]


async def test_messages_are_paged_by_bytes(store: str) -> None:
    """A page is bounded, however large the messages are and whatever page size is asked for."""
    async with scripted(lambda _: says("Hello."), store) as (client, _):
        conversation_id = ""
        for _round in range(6):
            asked = await client.ask("\U0001f600" * (MIB // 4), conversation_id=conversation_id)
            conversation_id = asked.run.conversation_id
        assert len(await all_messages(client, conversation_id, 1000)) == 12
        assert len(await pages(client, conversation_id, 1000)) > 2


async def test_a_page_of_the_largest_messages_can_be_delivered(store: str) -> None:
    """Text and output of one return at their limits, behind messages that almost fill a page."""
    async with scripted([calls(("take", "{}")), says("a" * 960_000, chunks=20), says("Hm.")], store) as (client, _):
        run = (await client.ask("b" * 900_000, ANYTHING)).run
        most = "c" * (MIB + 60_000)
        huge = returned(run.pending_tool_calls[0], most, stdout=most)
        done = await client.answer(run.run_id, huge)
        assert done.messages_truncated and kinds(done.messages) == ["assistant"]
        request = agent_registry_service_pb2.ListMessagesRequest(conversation_id=run.conversation_id)
        sizes: list[Any] = []
        while True:
            page = await client.registry.ListMessages(request)
            sizes.append((len(page.messages), page.ByteSize() < 4 * MIB))
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        assert sum(count for count, _ in sizes) == 4 and all(small for _, small in sizes)


@pytest.mark.parametrize("token", ["x", "after-", "after--1", "after-1x", "1", "after-٣", "after-" + "9" * 5000])
async def test_a_page_token_that_is_none_is_refused(store: str, token: str) -> None:
    """Only what the server gave is one."""
    async with scripted([says("Hello.")], store) as (client, _):
        conversation_id = (await client.ask("Hello?")).run.conversation_id
        request = agent_registry_service_pb2.ListMessagesRequest(conversation_id=conversation_id, page_token=token)
        refused = await refusal(client.registry.ListMessages(request))
        assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", ("page_token",))


@pytest.mark.parametrize("size", [-1, 1001])
async def test_a_page_size_out_of_bounds_is_refused(store: str, size: int) -> None:
    """With the bounds in the message; an unknown and an empty conversation are told apart."""
    async with scripted([], store) as (client, _):
        request = agent_registry_service_pb2.ListMessagesRequest(conversation_id="conv-9", page_size=size)
        refused = await refusal(client.registry.ListMessages(request))
        assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", ("page_size",))
        assert "1 to 1000" in refused.message
        request.page_size = 0
        refused = await refusal(client.registry.ListMessages(request))
        assert (refused.code, refused.reason) == ("NOT_FOUND", "CONVERSATION_NOT_FOUND")
        refused = await refusal(client.registry.ListMessages(agent_registry_service_pb2.ListMessagesRequest()))
        assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", ("conversation_id",))
