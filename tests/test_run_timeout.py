"""`run_timeout`: how long a run may be RUNNING, over all its pauses."""

from __future__ import annotations

import asyncio

import pytest
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import errors_pb2, runs_pb2
from google.protobuf.duration_pb2 import Duration

from agent_service.domain.draft import Draft, RunState
from agent_service.domain.event import RunCause
from agent_service.domain.message import UserContent
from agent_service.domain.moves import begin, cancel, fail, record_answer, rest_or_go_on, resume, settle
from agent_service.domain.run import Run, RunStatus, StopReason
from agent_service.domain.tool import Call, Outcome
from agent_service.domain.values import replace
from agent_service.engine.loop import moved
from agent_service.engine.store import Move
from tests.registry_contract import client, new_run, step
from tests.scripted_openai import Gate, Happening, calls, says, silent
from tests.service import SECRET, kinds, refusal, returned, scripted
from tests.service import step as start
from tests.store_contract import FIRST, GONE, Clock, counter

pytestmark = pytest.mark.anyio

CALL = calls(("get_secret_code", {"name": "Alice"}))
SHORT = Duration(nanos=400_000_000)
FAILED = (runs_pb2.RUN_STATUS_FAILED, runs_pb2.STOP_REASON_ERROR, errors_pb2.ERROR_REASON_RUN_TIMED_OUT)
SECOND = 10**9
executing = Happening("executions of wait_for_ever")


async def wait_for_ever() -> str:
    """A server tool that never returns."""
    executing.add()
    await asyncio.Event().wait()
    return "never"


def how(run: runs_pb2.Run) -> tuple[int, int, int]:
    """Status, stop reason and the reason of the error."""
    return run.status, run.stop_reason, run.error.reason


class Played:
    """One run, moved at times that the test says."""

    def __init__(self) -> None:
        self.run: Run = new_run("run-1").run
        self._calls: dict[str, Call] = {}
        self._position, self._new_id = 1, counter()

    def at(self, now: int, move: Move[object]) -> Run:
        """The run after a move at that time."""
        draft = Draft(RunState(self.run, tuple(self._calls.values()), self._position, None, now), self._new_id)
        move(draft)
        change = draft.change()
        if change is not None:
            self.run, self._position = change.run, change.next_position
            self._calls.update((call.tool_call_id, call) for call in change.calls)
        return self.run


def began(draft: Draft) -> None:
    """A start."""
    begin(draft, (UserContent("Hi"),), FIRST)


def answered(draft: Draft) -> None:
    """The caller's return of call_1, and the resume."""
    settle(draft, draft.batch[0], Outcome.RETURNED, "A-1")
    rest_or_go_on(draft)
    resume(draft, RunCause.SUBMIT, FIRST)


def test_only_the_time_of_running_counts() -> None:
    """From the start or a resume to the next stop, added up; pauses do not count, however long they are."""
    played = Played()
    run = played.at(1_000, began)
    assert (run.running_since, run.running_time) == (1_000, 0)
    run = played.at(1_300, moved(record_answer, step(client("call_1"))))
    assert (run.status, run.running_since, run.running_time) == (RunStatus.PAUSED, 0, 300)
    run = played.at(90_000, answered)
    assert (run.status, run.running_since, run.running_time) == (RunStatus.RUNNING, 90_000, 300)
    run = played.at(90_050, moved(record_answer, step(text="Done.")))
    assert (run.status, run.running_since, run.running_time) == (RunStatus.COMPLETED, 0, 350)


@pytest.mark.parametrize(
    ("stop", "status"),
    [
        (moved(cancel), RunStatus.CANCELLED),
        (moved(fail, StopReason.LLM_API_ERROR, GONE), RunStatus.INTERRUPTED),
        (moved(fail, StopReason.ERROR, replace(GONE, retryable=False)), RunStatus.FAILED),
    ],
)
def test_every_stop_ends_the_running_time(stop: Move[object], status: RunStatus) -> None:
    """A run that is not RUNNING has no time since when it is."""
    played = Played()
    played.at(1_000, began)
    run = played.at(1_700, stop)
    assert (run.status, run.running_since, run.running_time) == (status, 0, 700)


def test_a_pause_that_is_cancelled_adds_nothing() -> None:
    """The time of a pause counts in no way."""
    played = Played()
    played.at(1_000, began)
    played.at(1_100, moved(record_answer, step(client("call_1"))))
    run = played.at(99_000, moved(cancel))
    assert (run.status, run.running_time) == (RunStatus.CANCELLED, 100)


def test_a_clock_that_goes_back_takes_nothing_away() -> None:
    """The running time never shrinks."""
    played = Played()
    played.at(1_000, began)
    run = played.at(400, moved(record_answer, step(client("call_1"))))
    assert (run.running_time, run.running_since) == (0, 0)


@pytest.mark.parametrize("after", [0, 1])
async def test_a_silent_model_is_left_when_the_time_is_over(store: str, after: int) -> None:
    """The run FAILED with RUN_TIMED_OUT, the connection to the endpoint is closed, and the conversation goes on."""
    async with scripted([silent("Half an answer", after=after), says("Next.")], store) as (client_, upstream):
        run = (await client_.ask("Hi", run_timeout=SHORT)).run
        assert how(run) == FAILED
        assert run.error.message == "the run was running for longer than its timeout of 0.4 s"
        assert not run.error.retryable
        assert run.HasField("end_time")
        await upstream.disconnected.wait(timeout=1)
        assert kinds(await client_.messages(run.conversation_id)) == ["user"]
        events = await client_.watch(run.run_id)
        assert (events[-1].run_stopped.final, events[-1].run_stopped.error) == (True, run.error)
        answered = await client_.ask("Again", conversation_id=run.conversation_id)
        assert answered.messages[-1].assistant.text == "Next."


async def test_a_server_tool_is_left_when_the_time_is_over(store: str) -> None:
    """Its call gets an outcome of unknown effect, so that the next message can be sent to the model."""
    before = executing.count
    settings = {"tools": "tests.test_run_timeout:wait_for_ever"}
    async with scripted([calls(("wait_for_ever", {})), says("Next.")], store, **settings) as (client_, upstream):
        run = (await client_.ask("Hi", run_timeout=SHORT)).run
        assert (how(run), executing.count) == (FAILED, before + 1)
        messages = await client_.messages(run.conversation_id)
        assert "unknown" in messages[-1].tool_return.text
        await client_.ask("Again", conversation_id=run.conversation_id)
        upstream.check_histories()


async def test_a_run_that_ends_in_time_is_not_touched(store: str) -> None:
    """Also with the longest time that can be said."""
    async with scripted([CALL, says("Done.")], store) as (client_, _):
        longest = Duration(seconds=315_576_000_000)
        paused = await client_.ask("Hi", SECRET, run_timeout=longest)
        done = await client_.answer(paused.run.run_id, returned(paused.run.pending_tool_calls[0], "A-1"))
        assert done.run.status == runs_pb2.RUN_STATUS_COMPLETED


@pytest.mark.parametrize(
    "value",
    [Duration(), Duration(nanos=999_999), Duration(seconds=-1), Duration(nanos=-5)],
    ids=["zero", "short", "negative", "below zero"],
)
async def test_a_time_below_a_millisecond_is_refused(value: Duration) -> None:
    """INVALID_ARGUMENT naming run_timeout; in a stream with its path. Nothing is started."""
    async with scripted([], "memory") as (client_, _):
        request = start("Hi", run_timeout=value)
        refused = await refusal(client_.agent.Step(request))
        assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", ("run_timeout",))
        refused = await refusal(client_.agent.Stream(pb.StreamRequest(step=request)))
        assert refused.fields == ("step.run_timeout",)
        assert len((await client_.list_runs()).runs) == 0


async def test_a_repeated_start_must_have_the_same_timeout(store: str) -> None:
    """It is part of the request, as every other field that shapes the run."""
    async with scripted([says("Done.")], store) as (client_, _):
        await client_.ask("Hi", run_id="run-1", run_timeout=Duration(seconds=60))
        again = await client_.ask("Hi", run_id="run-1", run_timeout=Duration(seconds=60))
        assert again.run.status == runs_pb2.RUN_STATUS_COMPLETED
        refused = await refusal(client_.agent.Step(start("Hi", run_id="run-1", run_timeout=Duration(seconds=61))))
        assert (refused.code, refused.reason) == ("ALREADY_EXISTS", "RUN_ID_REUSED")


async def test_a_pause_uses_up_no_time(store: str, clock: Clock) -> None:
    """A run of ten seconds that was paused for an hour has what is left of them."""
    async with scripted([CALL, says("Done.")], store) as (client_, _):
        paused = await client_.ask("Hi", SECRET, run_timeout=Duration(seconds=10))
        clock.now += 3600 * SECOND
        done = await client_.answer(paused.run.run_id, returned(paused.run.pending_tool_calls[0], "A-1"))
        assert done.run.status == runs_pb2.RUN_STATUS_COMPLETED


async def test_the_time_before_a_pause_counts_after_it(store: str, clock: Clock) -> None:
    """Of a minute all but a moment was used before the pause: a silent model gets no more than that moment."""
    gate = Gate()
    held = calls(("get_secret_code", {"name": "Alice"}), gate=gate)
    async with scripted([held, silent()], store) as (client_, upstream):
        asking = asyncio.create_task(client_.ask("Hi", SECRET, run_timeout=Duration(seconds=60)))
        await upstream.wait_for_requests(1)
        clock.now += 60 * SECOND - SHORT.nanos
        gate.open()
        run = (await asking).run
        assert run.status == runs_pb2.RUN_STATUS_PAUSED
        async with asyncio.timeout(30):
            late = await client_.answer(run.run_id, returned(run.pending_tool_calls[0], "A-1"))
        assert how(late.run) == FAILED
        await upstream.disconnected.wait(timeout=1)


async def test_no_time_left_fails_at_the_resume_and_keeps_the_return(store: str, clock: Clock) -> None:
    """The submit is acknowledged with its receipt; the model is not asked any more, or not waited for."""
    gate = Gate()
    held = calls(("get_secret_code", {"name": "Alice"}), gate=gate)
    async with scripted([held, silent()], store) as (client_, upstream):
        asking = asyncio.create_task(client_.ask("Hi", SECRET, run_timeout=Duration(seconds=60)))
        await upstream.wait_for_requests(1)
        clock.now += 61 * SECOND
        gate.open()
        run = (await asking).run
        assert run.status == runs_pb2.RUN_STATUS_PAUSED
        late = await client_.answer(run.run_id, returned(run.pending_tool_calls[0], "A-1"))
        assert len(late.receipt.accepted_tool_call_ids) == 1
        assert how(late.run) == FAILED
        assert kinds(await client_.messages(run.conversation_id)) == ["user", "tool_call", "tool_return"]
