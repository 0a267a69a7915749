"""What becomes of a run when the model endpoint fails: nothing that was accepted is lost, and nobody is blocked."""

from __future__ import annotations

from datetime import timedelta

import pytest
from agentrpc.v1 import errors_pb2, run_service_pb2, runs_pb2

from tests.modes import MODES, messages_of, resume, start
from tests.scripted_openai import (
    Reply,
    ScriptedOpenAI,
    breaks_off,
    calls,
    content_filter,
    empty,
    error_in_stream,
    fails,
    garbage,
    hangs_up,
    says,
)
from tests.service import SECRET, durable, event_kinds, kinds, returned, scripted, serving, step, submit

pytestmark = pytest.mark.anyio

ASKS = calls(("get_secret_code", {"name": "Alice"}))
HALF = '{"error": {"message": "Bad \\ud83d request.\\n"}}'

FAILURES: dict[str, tuple[Reply, str, str, str]] = {
    "500": (fails(500), "INTERRUPTED", "LLM_API_ERROR", "LLM_UNAVAILABLE"),
    "429": (fails(429), "INTERRUPTED", "LLM_API_ERROR", "LLM_UNAVAILABLE"),
    "no answer": (hangs_up(), "INTERRUPTED", "LLM_API_ERROR", "LLM_UNAVAILABLE"),
    "400": (fails(400), "FAILED", "LLM_API_ERROR", "LLM_REFUSED"),
    "half of a pair": (fails(400, body=HALF), "FAILED", "LLM_API_ERROR", "LLM_REFUSED"),
    "401": (fails(401), "FAILED", "LLM_API_ERROR", "LLM_REFUSED"),
    "402": (fails(402), "INTERRUPTED", "INSUFFICIENT_CREDITS", "LLM_INSUFFICIENT_CREDITS"),
    "quota": (
        fails(429, code="insufficient_quota"),
        "INTERRUPTED",
        "INSUFFICIENT_CREDITS",
        "LLM_INSUFFICIENT_CREDITS",
    ),
    "garbage": (garbage(), "FAILED", "INVALID_LLM_RESPONSE", "LLM_INVALID_RESPONSE"),
    "no chunk": (garbage({"object": "list"}), "FAILED", "INVALID_LLM_RESPONSE", "LLM_INVALID_RESPONSE"),
    "empty": (empty(), "FAILED", "INVALID_LLM_RESPONSE", "LLM_INVALID_RESPONSE"),
    "filtered": (content_filter(), "FAILED", "LLM_API_ERROR", "LLM_REFUSED"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("failure", FAILURES)
async def test_a_failure_of_the_model_ends_in_the_run_not_in_the_call(store: str, mode: str, failure: str) -> None:
    """The call answers OK; the run says what happened and whether it may pass; the next message works at once."""
    reply, status, stop_reason, reason = FAILURES[failure]
    async with scripted([reply, says("Hello.")], store) as (client, upstream):
        failed = (await start(client, mode, step("Hello?"))).run
        assert runs_pb2.RunStatus.Name(failed.status) == f"RUN_STATUS_{status}"
        assert runs_pb2.StopReason.Name(failed.stop_reason) == f"STOP_REASON_{stop_reason}"
        assert errors_pb2.ErrorReason.Name(failed.error.reason) == f"ERROR_REASON_{reason}"
        assert failed.error.retryable == (status == "INTERRUPTED")
        assert failed.error.message and "\n" not in failed.error.message
        assert failed.HasField("end_time") == (status == "FAILED")
        assert (failed.steps_taken, failed.model_attempts) == (0, 1)
        later = await client.ask("Hello?", conversation_id=failed.conversation_id)
        assert later.messages[-1].assistant.text == "Hello."
        settled = await client.run(failed.run_id)
        assert settled.status == runs_pb2.RUN_STATUS_FAILED
        assert settled.error.reason == failed.error.reason and not settled.error.retryable
        stops = [e.run_stopped for e in await client.watch(failed.run_id) if e.HasField("run_stopped")]
        assert [stop.final for stop in stops] == [*[False] * (status == "INTERRUPTED"), True]
        assert [message["role"] for message in upstream.requests[-1].history] == ["user", "user"]


@pytest.mark.parametrize("mode", MODES)
async def test_a_return_is_kept_when_the_model_fails_right_after_it(store: str, mode: str) -> None:
    """The run is interrupted, retryable, and says how long to wait; the next message works at once, and the model
    reads the return."""
    script = [ASKS, fails(503, retry_after=7), says("The code was SECRET-42.")]
    async with scripted(script, store) as (client, upstream):
        paused = await start(client, mode, step("Code?", SECRET))
        request = submit(paused.run.run_id, returned(paused.run.pending_tool_calls[0], "SECRET-42"))
        interrupted = await resume(client, mode, paused.run, request)
        assert kinds(interrupted.messages) == ["tool_return"]
        run = interrupted.run
        assert run.status == runs_pb2.RUN_STATUS_INTERRUPTED
        assert run.stop_reason == runs_pb2.STOP_REASON_LLM_API_ERROR
        assert run.error.retryable and run.error.retry_after.ToTimedelta() == timedelta(seconds=7)
        assert run.error.metadata == {"http_status": "503"}
        assert not run.pending_tool_calls

        again = await resume(client, mode, paused.run, request)
        assert (again.run, again.messages) == (run, interrupted.messages)
        assert upstream.request_count == 2

        later = await start(client, mode, step("Well?", conversation_id=run.conversation_id))
        assert later.run.status == runs_pb2.RUN_STATUS_COMPLETED
        assert list(upstream.requests[-1].returns.values()) == ["SECRET-42"]
        settled = await client.run(run.run_id)
        assert (settled.status, settled.stop_reason) == (runs_pb2.RUN_STATUS_FAILED, run.stop_reason)
        assert not settled.error.HasField("retry_after")
        upstream.check_histories()


async def test_an_endpoint_that_fails_for_ever_is_asked_a_bounded_number_of_times(store: str) -> None:
    """The retries within one attempt count as attempts of the run."""
    async with scripted(lambda _: fails(500, retry_after=0.01), store, model_max_retries=2) as (client, upstream):
        run = (await client.ask("Hello?")).run
        assert run.status == runs_pb2.RUN_STATUS_INTERRUPTED
        assert run.model_attempts == upstream.request_count == 3


async def test_a_failure_that_passes_is_not_seen(store: str) -> None:
    """But in the attempts, which the provider may bill."""
    async with scripted([fails(500, retry_after=0.01), says("Hello.")], store, model_max_retries=1) as (client, _):
        run = (await client.ask("Hello?")).run
        assert (run.status, run.steps_taken, run.model_attempts) == (runs_pb2.RUN_STATUS_COMPLETED, 1, 2)
        assert not run.HasField("error")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("broken", [breaks_off("Broken text"), error_in_stream(reply="Broken text")])
async def test_an_answer_that_breaks_off_is_asked_for_again(store: str, mode: str, broken: Reply) -> None:
    """StepRestarted tells it, durably; the partial text is not kept, and the whole answer has an id of its own."""
    async with scripted([broken, says("Whole text.")], store) as (client, upstream):
        done = await start(client, mode, step("Hello?"))
        assert [m.assistant.text for m in done.messages[1:]] == ["Whole text."]
        assert (done.run.steps_taken, done.run.model_attempts) == (1, 2)
        log = await client.watch(done.run.run_id)
        (restarted,) = [e.step_restarted for e in log if e.HasField("step_restarted")]
        assert restarted.attempt == 2 and restarted.reason
        assert upstream.requests[0].raw == upstream.requests[1].raw
        if mode == "tokens":
            ids = [e.text_delta.message_id for e in done.events if e.HasField("text_delta")]
            attempts = {e.text_delta.attempt for e in done.events if e.HasField("text_delta")}
            assert attempts == {1, 2}
            assert ids[0] != done.messages[-1].message_id == ids[-1]
            assert durable(done.events) == durable(log)


@pytest.mark.parametrize("mode", MODES)
async def test_an_answer_that_always_breaks_off_interrupts_the_run(store: str, mode: str) -> None:
    """After three attempts; nothing of them is kept."""
    async with scripted(lambda _: breaks_off("Broken text"), store) as (client, upstream):
        stopped = await start(client, mode, step("Hello?"))
        assert stopped.run.status == runs_pb2.RUN_STATUS_INTERRUPTED
        assert stopped.run.stop_reason == runs_pb2.STOP_REASON_LLM_API_ERROR
        assert stopped.run.model_attempts == upstream.request_count == 3
        log = await client.watch(stopped.run.run_id, stop_at=run_service_pb2.STOP_AT_NEXT_STOP)
        assert event_kinds(log).count("step_restarted") == 2
        assert kinds(messages_of(log)) == ["user"]


async def test_a_refused_key_is_not_shown(store: str) -> None:
    """The error says what to check; the key is in no answer."""
    async with (
        ScriptedOpenAI([], api_key="right", allow_rejected=True) as upstream,
        serving(upstream, store, openai_api_key="sk-wrong-key") as client,
    ):
        run = (await client.ask("Hello?")).run
        assert run.status == runs_pb2.RUN_STATUS_FAILED
        assert run.error.metadata == {"http_status": "401"}
        assert "OPENAI_API_KEY" in run.error.message and "sk-wrong-key" not in str(run)


async def test_an_endpoint_that_is_not_there_interrupts_the_run(store: str) -> None:
    """As one that is down: it may come back."""
    async with ScriptedOpenAI([]) as gone:
        pass
    async with serving(gone, store) as client:
        run = (await client.ask("Hello?")).run
        assert (run.status, run.error.retryable) == (runs_pb2.RUN_STATUS_INTERRUPTED, True)
        assert gone.base_url.removesuffix("/v1") in run.error.message
