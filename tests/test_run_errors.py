"""Every reason of a run that failed or was interrupted, provoked by what the model endpoint or the server does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from agentrpc.v1 import agent_service_pb2, errors_pb2, run_service_pb2, runs_pb2, tools_pb2
from google.protobuf.duration_pb2 import Duration

from scripts.errors_page import documented
from tests.scripted_openai import Reply, ScriptedOpenAI, calls, empty, fails, says, silent
from tests.service import SECRET, Client, returned, serving
from tests.stored import edit, lost_twice

pytestmark = pytest.mark.anyio

DOCUMENTED = documented()
AGED = agent_service_pb2.ResponseFormat(schema_json='{"properties": {"age": {"type": "integer"}}}')
REQUIRED = tools_pb2.ToolChoice(mode=tools_pb2.TOOL_CHOICE_MODE_REQUIRED)


@dataclass(frozen=True)
class Ending:
    """What the endpoint does, with which fields the run is started, and the metadata of its error."""

    script: Sequence[Reply]
    fields: dict[str, Any]
    metadata: dict[str, str]


def ends(*script: Reply, metadata: dict[str, str] | None = None, **fields: Any) -> Ending:
    """An ending."""
    return Ending(script, fields, metadata or {})


RUNS = {
    "LLM_UNAVAILABLE": ends(fails(503, "The server is overloaded."), metadata={"http_status": "503"}),
    "LLM_REFUSED": ends(fails(401, "Incorrect API key provided."), metadata={"http_status": "401"}),
    "LLM_INSUFFICIENT_CREDITS": ends(
        fails(429, "You exceeded your current quota.", code="insufficient_quota"), metadata={"http_status": "429"}
    ),
    "LLM_INVALID_RESPONSE": ends(empty()),
    "CONTEXT_TOO_LARGE": ends(
        fails(400, "This model's maximum context length is 8192 tokens.", code="context_length_exceeded"),
        metadata={"http_status": "400"},
    ),
    "SYSTEM_PROMPT_TOO_LARGE": ends(),
    "RESPONSE_SCHEMA_VIOLATION": ends(*[says('{"age": "x"}')] * 3, response_format=AGED),
    "INVALID_TOOL_CALLS": ends(*[calls(("get_secret_code", {"age": 7}))] * 3),
    "NO_TOOL_CALL": ends(says("No.", unruly=True), tool_choice=REQUIRED),
    "RUN_TIMED_OUT": ends(silent(), run_timeout=Duration(nanos=50_000_000)),
    "CALL_TIMED_OUT": ends(calls(("get_secret_code", {"name": "Alice"}))),
    "NO_ALLOWED_TOOLS": ends(),
    "INTERNAL": ends(calls(("get_secret_code", {"name": "Alice"}))),
    "RUN_LOST_REPEATEDLY": ends(silent()),
}
ELSEWHERE = ("INTERNAL", "RUN_LOST_REPEATEDLY", "CALL_TIMED_OUT", "NO_ALLOWED_TOOLS", "SYSTEM_PROMPT_TOO_LARGE")
ALONE = [reason for reason in RUNS if reason not in ELSEWHERE]


async def check(client: Client, run_id: str, reason: str, metadata: dict[str, str] | None = None) -> runs_pb2.Run:
    """The run stopped as the contract documents the reason, and so does its last event tell."""
    run, promised = await client.run(run_id), DOCUMENTED[reason]
    status = runs_pb2.RunStatus.Name(run.status).removeprefix("RUN_STATUS_")
    assert f"{status} with {runs_pb2.StopReason.Name(run.stop_reason)}" == promised.run
    assert errors_pb2.ErrorReason.Name(run.error.reason) == f"ERROR_REASON_{reason}"
    said = re.sub(r"error [0-9a-f]{12};", "error 4e8b151c3e75;", run.error.message)
    assert re.sub(r"call_[0-9a-f]{24}", "call_1a", said) == promised.message
    assert run.error.retryable == (status == "INTERRUPTED")
    assert dict(run.error.metadata) == (metadata or RUNS[reason].metadata)
    assert run.error.metadata.keys() == set(promised.metadata_keys)
    (last,) = await client.watch(run_id, run.last_sequence - 1, stop_at=run_service_pb2.STOP_AT_NEXT_STOP)
    assert (last.run_stopped.error, last.run_stopped.final) == (run.error, status == "FAILED")
    return run


@pytest.mark.parametrize("reason", ALONE)
async def test_a_run_that_goes_wrong_says_why(reason: str, store: str) -> None:
    """Status, stop reason, message and metadata are those of the contract; the call itself is answered with OK."""
    ending = RUNS[reason]
    async with ScriptedOpenAI(ending.script, expect_all_used=True) as upstream, serving(upstream, store) as client:
        answer = await client.ask("Go.", SECRET, **ending.fields)
        run = await check(client, answer.run.run_id, reason)
        assert answer.run == run


async def test_a_run_that_lost_its_server_again_and_again_is_set_aside(shared_store: str) -> None:
    """The next server on the same store does not go on with it, and a new message of the conversation is answered."""
    async with ScriptedOpenAI(RUNS["RUN_LOST_REPEATEDLY"].script) as upstream:
        async with serving(upstream, shared_store) as client:
            await client.ask("Go.", run_id="run_8f", background=True)
            await upstream.wait_for_requests(1)
        upstream.add(says("Here I am."))
        await lost_twice(shared_store)
        async with serving(upstream, shared_store) as client:
            run = await check(client, "run_8f", "RUN_LOST_REPEATEDLY")
            answer = await client.ask("Are you there?", conversation_id=run.conversation_id)
            assert answer.messages[-1].assistant.text == "Here I am."


async def test_a_run_that_a_call_ends_because_nobody_answered_it(store: str) -> None:
    """Its tool says that its timeout ends the run."""
    strict = tools_pb2.ClientToolSchema()
    strict.CopyFrom(SECRET)
    strict.timeout.FromMilliseconds(50)
    strict.on_timeout = tools_pb2.ON_TIMEOUT_FAIL_RUN
    async with ScriptedOpenAI(RUNS["CALL_TIMED_OUT"].script) as upstream, serving(upstream, store) as client:
        paused = (await client.ask("Go.", strict, run_id="run_8f")).run
        await client.watch("run_8f")
        (call,) = paused.pending_tool_calls
        await check(client, "run_8f", "CALL_TIMED_OUT", {"tool_call_id": call.tool_call_id})


async def test_a_run_whose_tool_rules_allow_no_tool(store: str) -> None:
    """Its agent begins with a client tool that was not sent."""
    rules = [{"run_first": {"tool_name": "get_secret_code"}}]
    async with ScriptedOpenAI(RUNS["NO_ALLOWED_TOOLS"].script) as upstream, serving(upstream, store) as client:
        await client.create_agent("keeper", tool_rules=rules)
        answer = await client.ask("Go.", agent_id="keeper")
        assert answer.run == await check(client, answer.run.run_id, "NO_ALLOWED_TOOLS")


async def test_a_run_whose_system_prompt_fills_the_window(store: str) -> None:
    """Its agent says how large the window is."""
    async with ScriptedOpenAI([]) as upstream, serving(upstream, store) as client:
        await client.create_agent("keeper", context={"window_tokens": 200})
        answer = await client.ask("Go.", agent_id="keeper", system_prompt="x" * 4052)
        metadata = {"estimated_tokens": "1017", "window_tokens": "200"}
        assert answer.run == await check(client, answer.run.run_id, "SYSTEM_PROMPT_TOO_LARGE", metadata)


async def test_a_run_that_trips_over_the_unforeseen_fails_without_telling_inner_text(shared_store: str) -> None:
    """A message is gone from the store, so that no request can be built: the error holds an id for the log, no more."""
    async with ScriptedOpenAI(RUNS["INTERNAL"].script) as upstream:
        async with serving(upstream, shared_store) as client:
            paused = (await client.ask("Go.", SECRET, run_id="run_8f")).run
        forget = ("DELETE FROM messages WHERE kind = 'tool_call'", "DELETE FROM events WHERE position = 2")
        await edit(shared_store, *forget)
        async with serving(upstream, shared_store) as client:
            (call,) = paused.pending_tool_calls
            answer = await client.answer("run_8f", returned(call, "AZURE"))
            assert answer.run.status == runs_pb2.RUN_STATUS_FAILED
            assert answer.run.error.message.startswith("internal error ")
            await check(client, "run_8f", "INTERNAL")
