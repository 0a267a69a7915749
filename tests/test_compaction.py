"""Conversations that grow too long: what the model is shown then, what is stored, and what callers are told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from agentrpc.v1 import (
    agent_registry_service_pb2,
    agent_service_pb2,
    agents_pb2,
    errors_pb2,
    events_pb2,
    messages_pb2,
    runs_pb2,
    server_service_pb2,
    tools_pb2,
)

from agent_service.engine.compaction import CUT_MARK, SUMMARY_PROMPT
from agent_service.models.encoding import SUMMARY_MARK
from tests.modes import MODES, resume, start, story
from tests.scripted_openai import (
    Reply,
    Request,
    Rules,
    ScriptedOpenAI,
    breaks_off,
    calls,
    cut_by_length,
    error_in_stream,
    fails,
    says,
    silent,
)
from tests.service import SECRET, Client, event_kinds, kinds, returned, scripted, serving, step, submit
from tests.shown import strangers

pytestmark = pytest.mark.anyio

SMALL = agents_pb2.ContextPolicy(window_tokens=1000, threshold=0.5, keep=0.2, summary_prompt="Sum up.")
"""Five messages of `long` are too many, and one of them is kept."""
UNKNOWN = agents_pb2.ContextPolicy(summary_prompt="Sum up.")
"""For what the endpoint refuses by itself."""


def long(mark: str) -> str:
    """A text of about 200 tokens."""
    return f"{mark}:".ljust(800, "x")


def told(request: Request) -> list[str]:
    """What a request says after its system message, in short: roles, and the marks of long texts."""
    found = []
    for message in request.history:
        text = message.get("content") or ""
        if text.startswith(SUMMARY_MARK):
            found.append(f"summary {text.removeprefix(SUMMARY_MARK).strip()}")
        elif message.get("tool_calls"):
            found.append("calls " + " ".join(call["function"]["name"] for call in message["tool_calls"]))
        else:
            found.append(f"{message['role']} {text.split(':')[0]}")
    return found


async def compactions(client: Client, run_id: str) -> list[events_pb2.Compaction]:
    """What the events of a run tell of compactions."""
    return [event.compaction for event in await client.watch(run_id) if event.HasField("compaction")]


async def test_the_summary_takes_the_place_of_older_messages(store: str) -> None:
    """Before the request that would be too long the model writes a summary, and then sees it and the newest message."""
    script = [says("one"), says("two"), says("A and B were said."), says("three"), says("four")]
    async with scripted(script, store) as (client, upstream):
        policy = agents_pb2.ContextPolicy(window_tokens=1000, threshold=0.5, keep=0.2)
        await client.create_agent("keeper", context=policy)
        first = await client.ask(long("A"), agent_id="keeper")
        conversation = {"agent_id": "keeper", "conversation_id": first.run.conversation_id}
        await client.ask(long("B"), **conversation)
        third = await client.ask(long("C"), **conversation)
        await client.ask("D:", **conversation)
        assert [told(request) for request in upstream.requests] == [
            ["user A"],
            ["user A", "assistant one", "user B"],
            ["user The conversation"],
            ["summary A and B were said.", "user C"],
            ["summary A and B were said.", "user C", "assistant three", "user D"],
        ]
        asked = upstream.requests[2]
        assert asked.system == SUMMARY_PROMPT
        assert f"User: {long('A')}\n\nAssistant: one\n\nUser: {long('B')}\n\nAssistant: two" in asked.last["content"]
        messages = await client.messages(first.run.conversation_id)
        expected = ["user", "assistant", "user", "assistant", "user", "summary", "assistant", "user", "assistant"]
        assert kinds(messages) == expected
        assert [message.position for message in messages] == list(range(1, 10))
        summary = messages[5]
        assert summary.summary == messages_pb2.SummaryMessage(text="A and B were said.", through_position=4)
        (compaction,) = await compactions(client, third.run.run_id)
        assert compaction.strategy == agents_pb2.COMPACTION_STRATEGY_SUMMARY
        assert (compaction.message_id, compaction.position) == (summary.message_id, 6)
        assert (compaction.through_position, compaction.messages_left_out) == (4, 4)
        assert 500 < compaction.tokens_before <= 1000
        assert compaction.tokens_after < 300
        assert third.run.steps_taken == 1
        assert third.run.model_attempts == 2
        assert third.run.usage.completion_tokens > first.run.usage.completion_tokens


def asks_for_summary(request: Request) -> bool:
    """Whether this is a request for a summary."""
    return request.system in ("Sum up.", SUMMARY_PROMPT)


async def grown(client: Client, policy: agents_pb2.ContextPolicy = SMALL, *turns: str) -> dict[str, Any]:
    """A conversation of an agent with this policy, in which these turns were taken; fields for the next one."""
    await client.create_agent("keeper", context=policy)
    fields: dict[str, Any] = {"agent_id": "keeper"}
    for turn in turns:
        fields["conversation_id"] = (await client.ask(turn, **fields)).run.conversation_id
    return fields


async def long_run(store: str, mode: str) -> list[str]:
    """A run of nine answers with two calls each, answered in two submits, and one in text; the durable events."""
    summaries, turns = iter(range(1, 100)), iter(range(1, 11))

    def script(request: Request) -> Reply:
        if asks_for_summary(request):
            return says(f"Summary {next(summaries)}.")
        turn = next(turns)
        pair = [("get_secret_code", {"name": f"{turn} {index}"}) for index in range(2)]
        return calls(*pair, text=f"Turn {turn}.") if turn < 10 else says("Done.")

    async with scripted(script, store) as (client, upstream):
        await client.create_agent("keeper", context=SMALL)
        window = await start(client, mode, step("Codes?", SECRET, agent_id="keeper"))
        while window.run.status == runs_pb2.RUN_STATUS_PAUSED:
            run_id, taken = window.run.run_id, window.run.steps_taken
            first, second = window.run.pending_tool_calls
            await client.answer(run_id, returned(second, f"{taken} b".ljust(300, "y")), request_id=f"b-{taken}")
            rest = submit(run_id, returned(first, f"{taken} a".ljust(300, "y")), request_id=f"a-{taken}")
            window = await resume(client, mode, await client.run(run_id), rest)
        assert window.run.stop_reason == runs_pb2.STOP_REASON_END_TURN
        check_long_run(window.run, upstream.requests, await client.messages(window.run.conversation_id))
        events = await client.watch(window.run.run_id)
        check_compactions(events, len(upstream.requests) - 10)
        return story(events)


def check_long_run(run: runs_pb2.Run, requests: Sequence[Request], messages: Sequence[messages_pb2.Message]) -> None:
    """Every request shows the newest summary and all that came after; summaries tell those before them; all counts."""
    assert strangers([request for request in requests if not asks_for_summary(request)], messages) == []
    texts = [message.summary.text for message in messages if message.HasField("summary")]
    asked = [request.last["content"] for request in requests if asks_for_summary(request)]
    for before, request in zip(texts, asked[1:], strict=False):
        assert f"The summary of what was said before:\n\n{before}\n" in request
    assert len(texts) == len(asked) >= 3
    assert (run.steps_taken, run.model_attempts) == (10, len(requests))
    assert run.usage.prompt_tokens == 10 * len(requests)


def check_compactions(events: Sequence[events_pb2.RunEvent], count: int) -> None:
    """Each comes right after its message, when each call has its return, and cuts further than the one before."""
    found, pending = [], set()
    for before, event in pairwise(events):
        message = event.message_stored.message
        pending |= {call.tool_call_id for call in message.tool_call.tool_calls}
        pending -= {message.tool_return.tool_call_id}
        if event.HasField("compaction"):
            found.append(event.compaction)
            assert not pending
            assert before.message_stored.message.message_id == event.compaction.message_id
    assert len(found) == count
    assert [c.through_position for c in found] == sorted({c.through_position for c in found})
    assert all(c.tokens_after < c.tokens_before for c in found)


async def test_a_run_with_many_tool_calls_is_compacted_between_them(store: str) -> None:
    """Over pauses for client tools, while none of their calls waits. Each way to call tells the same durable events."""
    stories = [await long_run(store, mode) for mode in MODES]
    assert stories[1:] == stories[:1] * (len(MODES) - 1)


async def test_a_sliding_window_leaves_out_without_asking_anyone(store: str) -> None:
    """No request is made for it; the stored message has no text."""
    policy = agents_pb2.ContextPolicy(
        window_tokens=1000, threshold=0.5, keep=0.2, strategy=agents_pb2.COMPACTION_STRATEGY_SLIDING_WINDOW
    )
    async with scripted([says("one"), says("two"), says("three"), says("four")], store) as (client, upstream):
        fields = await grown(client, policy, long("A"), long("B"))
        third = await client.ask(long("C"), **fields)
        await client.ask(long("D"), **fields)
        assert [told(request) for request in upstream.requests[2:]] == [
            ["user C"],
            ["user C", "assistant three", "user D"],
        ]
        (compaction,) = await compactions(client, third.run.run_id)
        assert compaction.strategy == agents_pb2.COMPACTION_STRATEGY_SLIDING_WINDOW
        assert third.run.model_attempts == 1
        (summary,) = [m.summary for m in await client.messages(fields["conversation_id"]) if m.HasField("summary")]
        assert summary == messages_pb2.SummaryMessage(through_position=4)


async def test_summaries_have_a_prompt_and_a_model_of_their_own(store: str) -> None:
    """Where the agent names them; the run goes on with its own."""
    policy = agents_pb2.ContextPolicy()
    policy.CopyFrom(SMALL)
    policy.summary_prompt, policy.summary_model = "Be brief.", "small-model"
    async with scripted([says("one"), says("two"), says("S"), says("three")], store) as (client, upstream):
        fields = await grown(client, policy, long("A"), long("B"))
        await client.ask(long("C"), **fields)
        assert [request.model for request in upstream.requests] == [
            *["scripted-model"] * 2,
            "small-model",
            "scripted-model",
        ]
        assert upstream.requests[2].system == "Be brief."
        assert upstream.requests[2].tool_names == []


async def test_what_does_not_fit_into_one_request_is_summarised_part_by_part(store: str) -> None:
    """Each part with the summary so far; the last summary is stored, and all of it is counted."""
    parts = iter("123456789")

    def script(request: Request) -> Reply:
        return says(f"Part {next(parts)}.") if asks_for_summary(request) else says("ok")

    async with scripted(script, store) as (client, upstream):
        fields = await grown(client, agents_pb2.ContextPolicy(strategy=agents_pb2.COMPACTION_STRATEGY_NONE), "X" * 6000)
        keeper = agents_pb2.Agent(agent_id="small", context=SMALL)
        await client.registry.CreateAgent(agent_registry_service_pb2.CreateAgentRequest(agent=keeper))
        answer = await client.ask("Go on.", **fields | {"agent_id": "small"})
        asked = [request.last["content"] for request in upstream.requests if asks_for_summary(request)]
        assert len(asked) > 2
        assert all(len(text) < 4000 for text in asked)
        assert "".join(text.count("X") * "X" for text in asked) == "X" * 6000
        assert all(f"Part {number}." in text for number, text in enumerate(asked[1:], 1))
        assert told(upstream.requests[-1])[0] == f"summary Part {len(asked)}."
        assert answer.run.model_attempts == len(asked) + 1


async def test_a_summary_that_is_cut_says_so(store: str) -> None:
    """By the token limit of the endpoint: it is used, with a mark at its end."""
    script = [says("one"), says("two"), cut_by_length("A and"), says("three")]
    async with scripted(script, store) as (client, upstream):
        await client.ask(long("C"), **await grown(client, SMALL, long("A"), long("B")))
        assert upstream.requests[-1].history[0]["content"] == f"{SUMMARY_MARK}\n\nA and{CUT_MARK}"


async def test_an_empty_summary_is_no_summary(store: str) -> None:
    """The run fails as after any answer that cannot be used; nothing is left out, and the next run tries again."""
    script = [says("one"), says("two"), says(" ", reasoning="Hm."), says("S"), says("four")]
    async with scripted(script, store) as (client, upstream):
        fields = await grown(client, SMALL, long("A"), long("B"))
        failed = await client.ask(long("C"), **fields)
        assert failed.run.error.message == "while the conversation was summed up: the model wrote nothing"
        assert failed.run.status == runs_pb2.RUN_STATUS_FAILED
        assert (failed.run.model_attempts, failed.run.usage.prompt_tokens, failed.run.steps_taken) == (1, 10, 0)
        assert "summary" not in kinds(await client.messages(fields["conversation_id"]))
        await client.ask("D:", **fields)
        assert told(upstream.requests[-1]) == ["summary S", "user D"]


async def test_a_model_for_summaries_that_is_not_there_fails_the_run(store: str) -> None:
    """The error says that it was the summary: the caller's own model is there."""
    unknown = fails(404, "The model `gone` does not exist.", code="model_not_found")
    async with scripted([says("one"), says("two"), unknown], store) as (client, _):
        policy = agents_pb2.ContextPolicy()
        policy.CopyFrom(SMALL)
        policy.summary_model = "gone"
        failed = (await client.ask(long("C"), **await grown(client, policy, long("A"), long("B")))).run
        assert (failed.status, failed.error.reason) == (
            runs_pb2.RUN_STATUS_FAILED,
            errors_pb2.ERROR_REASON_LLM_REFUSED,
        )
        assert failed.error.message == (
            "while the conversation was summed up: the endpoint answered 404: The model `gone` does not exist."
        )
        assert failed.model_attempts == 1


async def test_a_failure_of_the_summary_interrupts_the_run_and_a_retry_goes_on(store: str) -> None:
    """Like any failure of the endpoint that may pass; what was asked before is asked anew."""
    script = [says("one"), says("two"), fails(503), says("S"), says("three")]
    async with scripted(script, store) as (client, upstream):
        fields = await grown(client, SMALL, long("A"), long("B"))
        interrupted = (await client.ask(long("C"), **fields)).run
        assert interrupted.status == runs_pb2.RUN_STATUS_INTERRUPTED
        await client.retry(interrupted.run_id)
        events = await client.watch(interrupted.run_id)
        assert events[-1].run_stopped.stop_reason == runs_pb2.STOP_REASON_END_TURN
        assert event_kinds(events).count("compaction") == 1
        assert told(upstream.requests[-1]) == ["summary S", "user C"]
        assert (await client.run(interrupted.run_id)).model_attempts == 3


async def test_a_summary_that_breaks_off_is_asked_for_again(store: str) -> None:
    """Nobody sees its pieces; each attempt counts."""
    script = [says("one"), says("two"), breaks_off(says("Wrong.")), says("S"), says("three")]
    async with scripted(script, store) as (client, upstream):
        fields = await grown(client, SMALL, long("A"), long("B"))
        request = agent_service_pb2.StreamRequest(step=step(long("C"), **fields), stream_tokens=True)
        events = [response.event async for response in client.agent.Stream(request)]
        assert "".join(event.text_delta.text for event in events) == "three"
        assert event_kinds(events).count("step_restarted") == 1
        assert told(upstream.requests[-1]) == ["summary S", "user C"]
        assert (await client.run(events[0].run_id)).model_attempts == 3


async def test_a_run_that_is_cancelled_while_the_summary_is_written_stores_none_of_it(store: str) -> None:
    """The request is closed, and counts as an attempt."""
    async with scripted([says("one"), says("two"), silent()], store) as (client, upstream):
        fields = await grown(client, SMALL, long("A"), long("B"))
        await client.ask(long("C"), run_id="run-3", background=True, **fields)
        await upstream.wait_for_requests(3)
        run = await client.cancel("run-3")
        await upstream.disconnected.reach(1)
        assert (run.status, run.model_attempts) == (runs_pb2.RUN_STATUS_CANCELLED, 1)
        assert kinds(await client.messages(fields["conversation_id"])) == [
            "user",
            "assistant",
            "user",
            "assistant",
            "user",
        ]
        assert await compactions(client, "run-3") == []


async def test_a_dry_run_says_that_a_compaction_comes_first(store: str) -> None:
    """Instead of a body that will not be sent; below the threshold it is the body that is sent."""
    async with scripted([says("one"), says("two"), says("S"), says("three"), says("four")], store) as (
        client,
        upstream,
    ):
        fields = await grown(client, SMALL, long("A"), long("B"))
        dry = agent_service_pb2.BuildRequestRequest(step=step(long("C"), **fields))
        built = await client.agent.BuildRequest(dry)
        assert built.not_buildable.message == "the conversation would be compacted first"
        await client.ask(long("C"), **fields)
        built = await client.agent.BuildRequest(agent_service_pb2.BuildRequestRequest(step=step("D:", **fields)))
        await client.ask("D:", **fields)
        assert built.request_json.encode() == upstream.requests[-1].raw


async def test_summaries_are_a_type_of_message_that_callers_choose(store: str) -> None:
    """Alone, or not at all; the event of the compaction is always shown."""
    async with scripted([says("one"), says("two"), says("S"), says("three")], store) as (client, _):
        fields = await grown(client, SMALL, long("A"), long("B"))
        only = {"include_return_message_types": [messages_pb2.MESSAGE_TYPE_SUMMARY]}
        answer = await client.ask(long("C"), run_id="run-3", **fields, **only)
        assert kinds(answer.messages) == ["summary"]
        without = await client.watch("run-3", include_return_message_types=[messages_pb2.MESSAGE_TYPE_ASSISTANT])
        assert kinds(event.message_stored.message for event in without if event.HasField("message_stored")) == [
            "assistant"
        ]
        assert "compaction" in event_kinds(without)


LARGE_TOOL = tools_pb2.ClientToolSchema(name="big", description="x" * 4200)


async def test_a_system_prompt_that_fills_the_window_fails_the_run(store: str) -> None:
    """Nothing is asked; the error says how much it is and what to do, and so does a dry run."""
    async with scripted([], store) as (client, _):
        await client.create_agent("keeper", context=SMALL)
        answer = await client.ask("Hi", LARGE_TOOL, agent_id="keeper")
        assert answer.run.stop_reason == runs_pb2.STOP_REASON_CONTEXT_WINDOW_OVERFLOW_IN_SYSTEM_PROMPT
        assert answer.run.status == runs_pb2.RUN_STATUS_FAILED
        assert int(answer.run.error.metadata["estimated_tokens"]) > 1000
        assert answer.run.error.metadata["window_tokens"] == "1000"
        dry = agent_service_pb2.BuildRequestRequest(step=step("Hi", LARGE_TOOL, agent_id="keeper"))
        built = await client.agent.BuildRequest(dry)
        assert built.not_buildable.message == f"the run would fail: {answer.run.error.message}"


@asynccontextmanager
async def narrow(store: str, script: Any, window: int, **settings: Any) -> AsyncIterator[tuple[Client, ScriptedOpenAI]]:
    """A service on an endpoint that refuses what is longer than its window, of which the service knows nothing."""
    rules = Rules(window_tokens=window)
    async with ScriptedOpenAI(script, rules=rules, allow_rejected=True) as upstream:
        async with serving(upstream, store, **settings) as client:
            yield client, upstream
        assert {rejection.code for rejection in upstream.rejected} <= {"context_length_exceeded"}


async def test_what_the_endpoint_refuses_as_too_long_is_compacted_and_asked_again(store: str) -> None:
    """Also where nobody said how large the window is; each of the requests counts."""
    script = [says("one"), says("two"), says("S"), says("three")]
    async with narrow(store, script, 700) as (client, upstream):
        fields = await grown(client, UNKNOWN, long("A"), long("B"))
        answer = await client.ask("C:".ljust(1200, "x"), **fields)
        assert answer.run.stop_reason == runs_pb2.STOP_REASON_END_TURN
        assert len(upstream.rejected) == 1
        assert told(upstream.requests[-1]) == ["summary S", "user C"]
        assert answer.run.model_attempts == 3
        assert len(await compactions(client, answer.run.run_id)) == 1


TOO_LONG = fails(400, "Your input exceeds the context window of this model.", code="context_length_exceeded")
"""Said without the size of the window."""


async def test_a_summary_that_the_endpoint_refuses_as_too_long_is_asked_for_in_smaller_parts(store: str) -> None:
    """Until they fit, also where the endpoint does not say how much that is."""
    refused = []

    def script(request: Request) -> Reply:
        if len(request.history) == 21 or (asks_for_summary(request) and len(request.raw) > 2400):
            refused.append(request)
            return TOO_LONG
        return says("S") if asks_for_summary(request) else says("ok")

    async with scripted(script, store) as (client, upstream):
        fields = await grown(client, UNKNOWN, *(long(mark * 3) for mark in "ABCDEFGHIJ"))
        answer = await client.ask("K:", **fields)
        assert answer.run.stop_reason == runs_pb2.STOP_REASON_END_TURN
        assert told(upstream.requests[-1])[0] == "summary S"
        assert len(refused) > 2
        assert answer.run.model_attempts == len(upstream.requests) - 10


async def test_a_step_is_compacted_once_after_a_refusal(store: str) -> None:
    """Also if more could be left out: the run fails when the endpoint refuses again."""
    script = [*[says("ok")] * 12, TOO_LONG, says("S"), TOO_LONG]
    async with scripted(script, store) as (client, upstream):
        answer = await client.ask("Z", **await grown(client, UNKNOWN, *"ABCDEFGHIJKL"))
        assert answer.run.error.reason == errors_pb2.ERROR_REASON_CONTEXT_TOO_LARGE
        assert len(await compactions(client, answer.run.run_id)) == 1
        assert len(upstream.requests[-1].history) > 2


async def test_a_refusal_in_the_middle_of_an_answer_voids_what_was_shown(store: str) -> None:
    """Some endpoints find out that it is too long while they answer."""
    late = error_in_stream("The context window is full.", code="context_length_exceeded", reply="Half of it.", after=2)
    answers = iter([says("one"), says("two"), late, says("three")])

    def script(request: Request) -> Reply:
        return says("S") if asks_for_summary(request) else next(answers)

    async with scripted(script, store) as (client, _):
        fields = await grown(client, UNKNOWN, long("A"), long("B"))
        answer = await client.ask("C", **fields)
        assert answer.run.stop_reason == runs_pb2.STOP_REASON_END_TURN
        told_of = event_kinds(await client.watch(answer.run.run_id))
        assert told_of[told_of.index("step_restarted") :][:3] == ["step_restarted", "message_stored", "compaction"]


async def test_a_policy_that_leaves_nothing_out_fails_where_the_endpoint_refuses(store: str) -> None:
    """With the endpoint's words, and a reason of its own."""
    policy = agents_pb2.ContextPolicy(strategy=agents_pb2.COMPACTION_STRATEGY_NONE, window_tokens=100)
    async with narrow(store, [says("one"), says("two")], 500) as (client, upstream):
        answer = await client.ask(long("C"), **await grown(client, policy, long("A"), long("B")))
        assert answer.run.status == runs_pb2.RUN_STATUS_FAILED
        assert answer.run.error.reason == errors_pb2.ERROR_REASON_CONTEXT_TOO_LARGE
        assert len(upstream.rejected) == 1


async def test_a_message_that_is_too_long_by_itself_is_asked_twice_at_most(store: str) -> None:
    """After the compaction the endpoint refuses it again."""
    script = [says("one"), says("S")]
    async with narrow(store, script, 700) as (client, upstream):
        answer = await client.ask("B" * 4000, **await grown(client, UNKNOWN, long("A")))
        assert answer.run.error.reason == errors_pb2.ERROR_REASON_CONTEXT_TOO_LARGE
        assert len(upstream.rejected) == 2
        assert answer.run.model_attempts == 3


async def test_a_system_prompt_that_the_endpoint_refuses_says_so(store: str) -> None:
    """By the window that the endpoint told, where no other is known."""
    async with narrow(store, [], 500) as (client, _):
        answer = await client.ask("Hi", system_prompt="x" * 4200)
        assert answer.run.stop_reason == runs_pb2.STOP_REASON_CONTEXT_WINDOW_OVERFLOW_IN_SYSTEM_PROMPT
        assert answer.run.error.metadata["window_tokens"] == "500"


async def test_the_window_of_the_server_counts_where_an_agent_has_none(store: str) -> None:
    """A run keeps the one it started with; GetServerInfo tells it."""

    def script(request: Request) -> Reply:
        return says("S") if asks_for_summary(request) else says("ok")

    async with scripted(script, store, context_window_tokens=600) as (client, upstream):
        info = await client.server.GetServerInfo(server_service_pb2.GetServerInfoRequest())
        assert info.limits.context_window_tokens == 600
        assert "compaction" in info.capabilities
        first = await client.ask(long("A"))
        fields = {"conversation_id": first.run.conversation_id}
        await client.ask(long("B"), **fields)
        await client.ask(long("C"), **fields)
        assert told(upstream.requests[-1]) == ["summary S", "user C"]


async def test_a_compaction_of_another_process_is_seen(shared_store: str) -> None:
    """Two servers take turns: each is shown what the other compacted, although it remembers what was before."""
    script = [says("one"), says("two"), says("S"), says("three"), says("four"), says("five")]
    async with ScriptedOpenAI(script) as upstream, serving(upstream, shared_store) as here:
        fields = await grown(here, SMALL, long("A"), long("B"))
        async with serving(upstream, shared_store) as there:
            await there.ask(long("C"), **fields)
            await here.ask("D:", **fields)
            await there.ask("E:", **fields)
        assert [told(request) for request in upstream.requests[-2:]] == [
            ["summary S", "user C", "assistant three", "user D"],
            ["summary S", "user C", "assistant three", "user D", "assistant four", "user E"],
        ]


async def test_a_server_without_a_cache_sends_the_same(store: str) -> None:
    """Also after a compaction in the middle of a run."""
    sent = []
    for size in (0, 1 << 20):
        script = [says("one"), says("two"), says("S"), says("three"), says("four")]
        async with scripted(script, store, limits={"context_cache_bytes": size}) as (client, upstream):
            fields = await grown(client, SMALL, long("A"), long("B"), long("C"))
            await client.ask("D:", **fields)
            sent.append([request.raw for request in upstream.requests])
    assert sent[0] == sent[1]
