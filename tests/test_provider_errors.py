"""What the model endpoint does wrong, as a caller sees it: where the run stands, why, and whether to try again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import errors_pb2, runs_pb2, tools_pb2

from tests.scripted_openai import (
    Reply,
    breaks_off,
    calls,
    error_in_stream,
    fails,
    says,
    silent,
)
from tests.scripted_openai.replies import Delta, Ending, Raw
from tests.service import SECRET, Client, event_kinds, kinds, scripted, step

pytestmark = pytest.mark.anyio

IMPATIENT = {"model_silence_seconds": 0.4}
AZURE = says(["The code", " is", " AZ", "URE."])
QUOTA = "You exceeded your current quota, please check your plan and billing details."


@dataclass(frozen=True)
class Failure:
    """What the endpoint does, and what the caller sees of it. A retryable failure interrupts, any other one fails."""

    script: Sequence[Reply]
    reason: str
    says: str
    http_status: int = 0
    retry_after: float = 0.0
    stop_reason: str = "LLM_API_ERROR"
    retryable: bool = False
    attempts: int = 1
    settings: dict[str, Any] = field(default_factory=dict)


def down(*script: Reply, says: str, **more: Any) -> Failure:
    """It may pass."""
    return Failure(script, "LLM_UNAVAILABLE", says, retryable=True, **more)


def refuses(*script: Reply, says: str, **more: Any) -> Failure:
    """It would happen again."""
    return Failure(script, "LLM_REFUSED", says, **more)


def nonsense(*script: Reply, says: str) -> Failure:
    """It is no answer."""
    return Failure(script, "LLM_INVALID_RESPONSE", says, stop_reason="INVALID_LLM_RESPONSE")


FAILURES = {
    "rate limit": down(
        fails(429, "Rate limit reached.", retry_after=7), says="Rate limit reached.", http_status=429, retry_after=7.0
    ),
    "gateway page": down(fails(502, body="<html>Bad gateway</html>"), says="answered 502", http_status=502),
    "silent before the answer": down(silent(before_headers=True), says="no answer from", settings=IMPATIENT),
    "silent each time before the first token": down(
        *[silent()] * 3, says="broke the answer off", attempts=3, settings=IMPATIENT
    ),
    "breaks off each time before the first token": down(
        *[breaks_off(after=0)] * 3, says="broke the answer off", attempts=3
    ),
    "ends each time without finish reason": down(
        *[breaks_off(after=2, politely=True)] * 3, says="broke the answer off", attempts=3
    ),
    "silent each time after the first token": down(
        *[silent("Well, well.", after=1)] * 3, says="broke the answer off", attempts=3, settings=IMPATIENT
    ),
    "error in each stream": down(
        *[error_in_stream("Try again later.")] * 3, says="stopped the answer: Try again later.", attempts=3
    ),
    "not allowed": refuses(fails(403, "Country not supported."), says="Country not supported.", http_status=403),
    "no such model": refuses(
        fails(404, "The model 'x' does not exist.", code="model_not_found"), says="does not exist", http_status=404
    ),
    "refused in the stream": refuses(error_in_stream("Too many tokens.", code="400"), says="Too many tokens."),
    "refused in the stream before the first token": refuses(
        error_in_stream("Too many tokens.", code="400", after=0), says="Too many tokens."
    ),
    "no credit": Failure(
        [fails(429, QUOTA, code="insufficient_quota", kind="insufficient_quota")],
        "LLM_INSUFFICIENT_CREDITS",
        QUOTA,
        http_status=429,
        stop_reason="INSUFFICIENT_CREDITS",
        retryable=True,
    ),
    "no credit, told in the stream": Failure(
        [error_in_stream(QUOTA, code="insufficient_quota")],
        "LLM_INSUFFICIENT_CREDITS",
        QUOTA,
        stop_reason="INSUFFICIENT_CREDITS",
        retryable=True,
    ),
    "a page": nonsense(fails(200, body="<html>Welcome</html>"), says="text/html instead of a stream"),
}


def check(run: runs_pb2.Run, failure: Failure) -> None:
    """The run says what went wrong."""
    error = run.error
    assert runs_pb2.RunStatus.Name(run.status) == f"RUN_STATUS_{'INTERRUPTED' if failure.retryable else 'FAILED'}"
    assert runs_pb2.StopReason.Name(run.stop_reason) == f"STOP_REASON_{failure.stop_reason}"
    assert errors_pb2.ErrorReason.Name(error.reason) == f"ERROR_REASON_{failure.reason}"
    assert failure.says in error.message
    assert "\n" not in error.message
    assert error.retryable == failure.retryable
    assert error.retry_after.ToNanoseconds() / 1e9 == failure.retry_after
    assert error.HasField("retry_after") == bool(failure.retry_after)
    assert dict(error.metadata) == ({"http_status": str(failure.http_status)} if failure.http_status else {})
    assert run.model_attempts == failure.attempts
    assert run.steps_taken == 0


@pytest.mark.parametrize("name", FAILURES)
async def test_a_failure_of_the_endpoint_is_told_apart(name: str) -> None:
    """Status, stop reason, reason, retryable, delay and HTTP status tell it; nothing of the answer is stored, and the
    next message of the conversation goes on."""
    failure = FAILURES[name]
    async with scripted([*failure.script, says("Better now.")], "memory", **failure.settings) as (client, upstream):
        answer = await client.ask("Hello?")
        check(answer.run, failure)
        assert kinds(answer.messages) == ["user"]
        assert upstream.request_count == failure.attempts
        again = await client.ask("And now?", conversation_id=answer.run.conversation_id)
        assert again.messages[-1].assistant.text == "Better now."
        assert (await client.run(answer.run.run_id)).status == runs_pb2.RUN_STATUS_FAILED
        upstream.check_histories()


@pytest.mark.parametrize(
    ("broken", "settings"),
    [
        (breaks_off(AZURE, after=3), {}),
        (breaks_off(AZURE, after=3, politely=True), {}),
        (error_in_stream(reply=AZURE, after=3), {}),
        (silent(AZURE, after=3), IMPATIENT),
    ],
    ids=["reset", "no finish reason", "error object", "silence"],
)
async def test_an_answer_that_breaks_off_is_asked_for_again_and_told_once(
    broken: Reply, settings: dict[str, Any], store: str
) -> None:
    """StepRestarted comes between the attempts; what a reader puts together from the deltas after it is the message."""
    async with scripted([broken, says("The code is CRIMSON.")], store, **settings) as (client, upstream):
        events = await stream(client, "Code of Alice?")
        assert event_kinds(events).count("step_restarted") == 1
        restart = event_kinds(events).index("step_restarted")
        first, second = folded(events[:restart]), folded(events[restart:])
        assert list(first.values()) == ["The code is AZ"]
        (message_id,) = second
        assert message_id not in first
        assert second[message_id] == "The code is CRIMSON."
        (stored,) = [e.message_stored.message for e in events if e.message_stored.message.HasField("assistant")]
        assert (stored.message_id, stored.assistant.text) == (message_id, "The code is CRIMSON.")
        run = await client.run(events[0].run_id)
        assert (run.stop_reason, run.steps_taken, run.model_attempts) == (runs_pb2.STOP_REASON_END_TURN, 1, 2)
        assert upstream.requests[0].body == upstream.requests[1].body


async def test_calls_of_an_answer_that_broke_off_are_not_made(store: str) -> None:
    """A call whose answer broke off never existed: only the call of the next attempt is pending."""
    broken = breaks_off(calls(("get_secret_code", {"name": "Bob"})), after=2)
    async with scripted([broken, calls(("get_secret_code", {"name": "Alice"}))], store) as (client, _):
        run = (await client.ask("Code of Alice?", SECRET)).run
        assert [json.loads(call.arguments_json) for call in run.pending_tool_calls] == [{"name": "Alice"}]
        assert (run.steps_taken, run.model_attempts) == (1, 2)


async def test_a_call_written_as_json_that_broke_off_is_asked_for_again(store: str) -> None:
    """Also where nothing of it was shown, as it is told only when it is whole."""
    said = '{"tool": "get_secret_code", "arguments": {"name": "Alice"}}'
    script = [breaks_off(said, after=2), says(said)]
    required = tools_pb2.ToolChoice(mode=tools_pb2.TOOL_CHOICE_MODE_REQUIRED)
    async with scripted(script, store, tool_mode="json_schema") as (client, _):
        run = (await client.ask("Code of Alice?", SECRET, tool_choice=required)).run
        assert [json.loads(call.arguments_json) for call in run.pending_tool_calls] == [{"name": "Alice"}]
        assert (run.steps_taken, run.model_attempts) == (1, 2)


async def test_an_answer_without_the_announcement_of_its_end_is_whole(store: str) -> None:
    """Some endpoints leave out [DONE]: a finish reason suffices."""
    finish = Raw(json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
    unannounced = Reply((Delta({"content": "Hello."}), finish), ending=Ending.CLOSED)
    async with scripted([unannounced], store) as (client, _):
        answer = await client.ask("Hello?")
        assert answer.messages[-1].assistant.text == "Hello."
        assert answer.run.stop_reason == runs_pb2.STOP_REASON_END_TURN
        assert answer.run.model_attempts == 1


@pytest.mark.parametrize("status", [408, 409, 429, 503])
async def test_a_request_that_failed_before_its_answer_began_is_repeated(status: int) -> None:
    """As often as configured, after the pause the endpoint asks for; the caller sees only the count."""
    failure = fails(status, retry_after=0.001)
    async with scripted([failure, failure, says("Hello.")], "memory", model_max_retries=2) as (client, upstream):
        answer = await client.ask("Hello?")
        assert answer.messages[-1].assistant.text == "Hello."
        assert (answer.run.model_attempts, upstream.request_count) == (3, 3)
        assert "step_restarted" not in event_kinds(await client.watch(answer.run.run_id))


async def test_an_endpoint_that_asks_for_a_long_pause_is_not_asked_again() -> None:
    """Above two minutes the run is interrupted at once, and says how long to wait."""
    async with scripted([fails(429, "Slow down.", retry_after=121)], "memory", model_max_retries=2) as (
        client,
        upstream,
    ):
        run = (await client.ask("Hello?")).run
        check(run, down(says="Slow down.", http_status=429, retry_after=121.0))
        assert upstream.request_count == 1


@pytest.mark.parametrize("status", [400, 401, 404, 422])
async def test_a_refusal_is_not_repeated(status: int) -> None:
    """The same request would be refused again."""
    async with scripted([fails(status, "No.")], "memory", model_max_retries=2) as (client, upstream):
        run = (await client.ask("Hello?")).run
        assert (run.status, run.model_attempts) == (runs_pb2.RUN_STATUS_FAILED, 1)
        assert upstream.request_count == 1


async def stream(client: Client, text: str) -> list[Any]:
    """The events of a Stream with tokens that ends with OK."""
    request = pb.StreamRequest(step=step(text), stream_tokens=True)
    return [response.event async for response in client.agent.Stream(request)]


def folded(events: Sequence[Any]) -> dict[str, str]:
    """The texts that the deltas put together, by message."""
    texts: dict[str, str] = {}
    for event in events:
        if event.HasField("text_delta"):
            delta = event.text_delta
            texts[delta.message_id] = texts.get(delta.message_id, "")[: delta.offset] + delta.text
    return texts
