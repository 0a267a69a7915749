"""RetryRun: going on with a run that a failure interrupted, without sending anything again."""

from __future__ import annotations

import asyncio

import pytest
from agentrpc.v1 import events_pb2, run_service_pb2, runs_pb2

from tests.modes import MODES, resume, start
from tests.scripted_openai import Gate, calls, fails, says
from tests.service import SECRET, event_kinds, kinds, refusal, returned, scripted, step, submit

pytestmark = pytest.mark.anyio

CALL = calls(("get_secret_code", {"name": "Alice"}))
RUNNING, PAUSED = runs_pb2.RUN_STATUS_RUNNING, runs_pb2.RUN_STATUS_PAUSED
INTERRUPTED, COMPLETED = runs_pb2.RUN_STATUS_INTERRUPTED, runs_pb2.RUN_STATUS_COMPLETED


@pytest.mark.parametrize("mode", MODES)
async def test_a_run_goes_on_after_the_model_failed_right_after_a_submit(store: str, mode: str) -> None:
    """The return was kept: the model reads it in the next request, and the caller sends nothing again."""
    async with scripted([CALL, fails(503, "Busy."), says("It is A-1.")], store) as (client, upstream):
        paused = await start(client, mode, step("Code?", SECRET))
        answers = submit(paused.run.run_id, returned(paused.run.pending_tool_calls[0], "A-1"), request_id="req-1")
        run = (await resume(client, mode, paused.run, answers)).run
        assert (run.status, run.error.retryable) == (INTERRUPTED, True)
        retried = await client.retry(run.run_id, "retry-1")
        assert (retried.status, retried.last_sequence) == (RUNNING, run.last_sequence + 1)
        assert not retried.HasField("error")
        events = await client.watch(run.run_id, run.last_sequence)
        assert [kind for kind in event_kinds(events) if kind != "live"] == [
            "run_resumed",
            "message_stored",
            "run_stopped",
        ]
        assert events[0].run_resumed.cause == events_pb2.RUN_CAUSE_RETRY
        assert events[-1].run_stopped.status == COMPLETED
        assert list(upstream.requests[-1].returns.values()) == ["A-1"]
        again = await client.agent.SubmitToolReturns(answers)
        assert again.run.status == COMPLETED
        assert upstream.request_count == 3
        upstream.check_histories()


async def test_a_retry_may_be_repeated_with_its_id(store: str) -> None:
    """While the run goes on and after its end: it is the run as it is by then, and the model is asked once."""
    gate = Gate()
    async with scripted([fails(503, "Busy."), says("Hello.", gate=gate)], store) as (client, upstream):
        run = (await client.ask("Hi")).run
        first, second = await asyncio.gather(*(client.retry(run.run_id, "retry-1") for _ in range(2)))
        assert first.status == second.status == RUNNING
        without_id = await refusal(client.runs.RetryRun(run_service_pb2.RetryRunRequest(run_id=run.run_id)))
        assert (without_id.code, without_id.reason) == ("FAILED_PRECONDITION", "RUN_NOT_INTERRUPTED")
        gate.open()
        assert (await client.watch(run.run_id))[-1].run_stopped.status == COMPLETED
        assert (await client.retry(run.run_id, "retry-1")).status == COMPLETED
        assert upstream.request_count == 2


async def test_of_many_retries_at_once_one_goes_on_with_the_run(store: str) -> None:
    """The others are told what it is by now."""
    async with scripted([fails(503, "Busy."), says("Hello.")], store) as (client, upstream):
        run = (await client.ask("Hi")).run
        racing = [client.runs.RetryRun(run_service_pb2.RetryRunRequest(run_id=run.run_id)) for _ in range(8)]
        results = await asyncio.gather(*racing, return_exceptions=True)
        assert [isinstance(result, BaseException) for result in results].count(False) == 1
        assert (await client.watch(run.run_id))[-1].run_stopped.status == COMPLETED
        assert upstream.request_count == 2


async def test_a_caller_that_repeats_its_start_after_a_retry_gets_its_first_answer(store: str) -> None:
    """The window of a start ends with the first stop, and the run as it is by now stands beside it."""
    async with scripted([fails(503, "Busy."), says("Hello.")], store) as (client, _):
        first = await client.ask("Hi", run_id="run-1")
        await client.retry("run-1")
        await client.watch("run-1")
        again = await client.ask("Hi", run_id="run-1")
        assert kinds(again.messages) == kinds(first.messages) == ["user"]
        assert again.run.status == COMPLETED


async def test_a_run_that_was_settled_by_the_next_message_cannot_be_retried(store: str) -> None:
    """It failed for good when the conversation went on."""
    async with scripted([fails(503, "Busy."), says("Hello.")], store) as (client, _):
        run = (await client.ask("Hi")).run
        await client.ask("Still there?", conversation_id=run.conversation_id)
        refused = await refusal(client.runs.RetryRun(run_service_pb2.RetryRunRequest(run_id=run.run_id)))
        assert (refused.reason, refused.metadata["status"]) == ("RUN_NOT_INTERRUPTED", "FAILED")


@pytest.mark.parametrize(("run_id", "request_id", "field"), [("", "", "run_id"), ("run-1", "no id", "request_id")])
async def test_a_retry_with_ids_that_cannot_be_is_refused(run_id: str, request_id: str, field: str) -> None:
    """INVALID_ARGUMENT naming the field; and a run that is not there is NOT_FOUND."""
    async with scripted([], "memory") as (client, _):
        request = run_service_pb2.RetryRunRequest(run_id=run_id, request_id=request_id)
        refused = await refusal(client.runs.RetryRun(request))
        assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", (field,))
        missing = await refusal(client.runs.RetryRun(run_service_pb2.RetryRunRequest(run_id="run-9")))
        assert (missing.code, missing.reason) == ("NOT_FOUND", "RUN_NOT_FOUND")
