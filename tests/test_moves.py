"""The pure moves of a run: what each one makes of it, without any store."""

from __future__ import annotations

import pytest

from agent_service.domain.errors import Reason
from agent_service.domain.event import RunCause, RunResumed, StepRestarted
from agent_service.domain.message import (
    AssistantContent,
    ReasoningContent,
    ToolCallsContent,
)
from agent_service.domain.moves import (
    CANCELLED_BEFORE,
    CANCELLED_UNANSWERED,
    CUT_ARGUMENTS,
    UNKNOWN_OUTCOME,
    CallResult,
    Stop,
    abandon,
    cancel,
    fail,
    finish_calls,
    restart_step,
    start_calls,
)
from agent_service.domain.run import RunError, RunStatus, StopReason, Usage, status_of
from agent_service.domain.tool import Outcome
from agent_service.domain.values import replace
from tests.played_run import Played
from tests.store_contract import (
    GONE,
    approval,
    approves,
    client,
    denies,
    refused,
    returns,
    server,
)

LOST = RunError(Reason.LLM_UNAVAILABLE, "the endpoint is down", retryable=True, retry_after=3.0)
REFUSED = RunError(Reason.LLM_REFUSED, "the endpoint refused the request")


_RETRYABLE = {
    StopReason.LLM_API_ERROR,
    StopReason.INSUFFICIENT_CREDITS,
    StopReason.ERROR,
    StopReason.INVALID_LLM_RESPONSE,
    StopReason.INVALID_TOOL_CALL,
    StopReason.NO_TOOL_CALL,
    StopReason.CONTEXT_WINDOW_OVERFLOW_IN_SYSTEM_PROMPT,
}
_FIXED = {
    StopReason.END_TURN: RunStatus.COMPLETED,
    StopReason.MAX_STEPS: RunStatus.COMPLETED,
    StopReason.MAX_TOKENS_EXCEEDED: RunStatus.COMPLETED,
    StopReason.REQUIRES_APPROVAL: RunStatus.PAUSED,
    StopReason.CANCELLED: RunStatus.CANCELLED,
    StopReason.SUPERSEDED: RunStatus.CANCELLED,
}
_BY_ERROR = {StopReason.EXPIRED: RunStatus.EXPIRED, StopReason.TOOL_RULE: RunStatus.COMPLETED}


@pytest.mark.parametrize("reason", StopReason)
def test_each_stop_reason_has_its_status(reason: StopReason) -> None:
    """Ends and pauses by their reason alone, failures by whether a repeat may help, expiry and tool rules by having an
    error."""
    if reason in _FIXED:
        assert {status_of(reason, error) for error in (None, LOST, REFUSED)} == {_FIXED[reason]}
    elif reason in _BY_ERROR:
        assert status_of(reason, None) is _BY_ERROR[reason]
        assert status_of(reason, REFUSED) is RunStatus.FAILED
    else:
        assert reason in _RETRYABLE
        assert status_of(reason, LOST) is RunStatus.INTERRUPTED
        assert status_of(reason, REFUSED) is RunStatus.FAILED


def test_statuses_that_end_a_run_and_those_that_are_active() -> None:
    """Four are final; queued, running and paused runs are active; an interrupted run is neither."""
    assert {s.value for s in RunStatus if s.terminal} == {"completed", "failed", "cancelled", "expired"}
    assert {s.value for s in RunStatus if s.active} == {"queued", "running", "paused"}


def test_a_start_begins_to_run_at_once() -> None:
    """With its input stored, under its first owner, and the model is asked next."""
    run = Played()
    assert (run.where, run.run.epoch, run.run.owner) == (("running", ""), 1, "process_1")
    assert run.asks


def test_an_answer_without_calls_ends_the_run() -> None:
    """Reasoning and text are a message each, in this order, with the ids their deltas carried."""
    run = Played().answers(text="Hi.", text_message_id="t1", reasoning="Hm.", reasoning_message_id="r1")
    assert run.where == ("completed", "end_turn")
    assert [(m.message_id, m.content) for m in run.messages[1:]] == [
        ("r1", ReasoningContent("Hm.")),
        ("t1", AssistantContent("Hi.")),
    ]
    assert (run.run.owner, run.run.end_time) == ("", 1_000)
    assert [stop.final for stop in run.stops] == [True]
    assert run.next == Stop()


def test_an_answer_with_nothing_ends_the_run_without_a_message() -> None:
    """An empty answer is an answer."""
    run = Played().answers()
    assert (run.where, len(run.messages)) == (("completed", "end_turn"), 1)


def test_what_a_step_cost_is_summed() -> None:
    """Usage, attempts and steps add up over pauses; the time to the first token is that of the first step."""
    run = Played().answers(client("c1"), attempts=3, first_token_time=1_000)
    run.submits(returns("c1"))
    run.now = 1_090
    run.answers(text="Bye.", first_token_time=1_090)
    assert (run.run.usage, run.run.model_attempts, run.run.steps_taken) == (Usage(20, 10, 30), 4, 2)
    assert run.run.first_token_time == 1_000
    assert [stop.usage for stop in run.stops] == [Usage(10, 5, 15), Usage(20, 10, 30)]


@pytest.mark.parametrize(("told", "kept"), [(0, 0), (900, 1_000), (1_200, 1_200), (1_600, 1_500)])
def test_the_first_token_comes_between_the_start_and_its_answer(told: int, kept: int) -> None:
    """Also where the owner's idea of the store's clock is a little off."""
    run = Played()
    run.now = 1_500
    run.answers(text="Bye.", first_token_time=told)
    assert run.run.first_token_time == kept


def test_client_calls_pause_the_run() -> None:
    """The last message is the one with the calls, and the stop lists them in the model's order."""
    run = Played().answers(client("c2"), client("c1"), text="Let me see.")
    assert run.where == ("paused", "requires_approval")
    assert isinstance(run.messages[-1].content, ToolCallsContent)
    (stop,) = run.stops
    assert (stop.final, [call.tool_call_id for call in stop.remaining]) == (False, ["c2", "c1"])
    assert (run.run.owner, run.run.end_time, run.next) == ("", 0, Stop())


def test_server_calls_run_before_the_pause() -> None:
    """A mixed batch: the server executes what it can in order, and pauses when only callers can go on."""
    run = Played().answers(client("ask"), server("s1"), approval("send"), server("s2"))
    assert (run.where, run.runnable) == (("running", ""), ["s1", "s2"])
    run.executes("s1")
    assert (run.where, run.runnable) == (("running", ""), ["s2"])
    run.executes("s2", failed=True)
    assert run.where == ("paused", "requires_approval")
    assert [(call.tool_call_id, call.kind.value) for call in run.stops[0].remaining] == [
        ("ask", "client_execution"),
        ("send", "approval"),
    ]
    assert run.states == {"ask": "pending", "s1": "returned", "send": "pending", "s2": "failed"}


def test_approved_calls_wait_for_all_decisions_of_their_batch() -> None:
    """They start when no call of the batch is pending; then the model is asked."""
    run = Played().answers(approval("a1"), client("c1"), approval("a2"))
    assert not run.submits(approves("a1"), request_id="r1").resumed
    assert (run.where, run.states["a1"]) == (("paused", "requires_approval"), "approved")
    assert not run.submits(denies("a2", "too risky"), request_id="r2").resumed
    assert run.submits(returns("c1"), request_id="r3").resumed
    assert (run.where, run.runnable) == (("running", ""), ["a1"])
    run.executes("a1")
    assert run.asks
    assert [name for name, _, _ in run.outcomes] == ["a2", "c1", "a1"]


def test_a_call_approved_while_the_server_executes_waits_like_any_other() -> None:
    """It does not start as long as a caller owes an answer: the run pauses when the server is done."""
    run = Played().answers(server("s1"), approval("a1"), client("c1"))
    run.submits(approves("a1"))
    assert run.runnable == ["s1"]
    run.executes("s1")
    assert (run.where, run.states["a1"]) == (("paused", "requires_approval"), "approved")


def test_an_answer_given_while_the_server_executes_is_taken() -> None:
    """It depends on the call, not on the run's status: the owner stays, nobody resumes, and the run need not pause."""
    run = Played().answers(server("s1"), client("c1"), client("c2"))
    run.do(start_calls, ("s1",))
    assert not run.asks
    first = run.submits(returns("c1"), request_id="r1")
    assert (first.fresh, first.resumed, [c.tool_call_id for c in first.receipt.remaining]) == (True, False, ["c2"])
    second = run.submits(returns("c2"), request_id="r2")
    assert (second.resumed, run.where, run.run.epoch) == (False, ("running", ""), 1)
    assert not run.asks
    run.do(finish_calls, (CallResult("s1", "found"),))
    assert run.asks


def test_refused_calls_get_an_error_return_and_the_model_is_asked_again() -> None:
    """Nothing of them executes; the other calls of the answer are not affected."""
    run = Played().answers(refused("x1", "Error: no such tool."))
    assert (run.where, run.asks) == (("running", ""), True)
    assert run.outcomes == [("x1", Outcome.FAILED, "Error: no such tool.")]
    run.answers(refused("x2"), client("c1"))
    assert run.where == ("paused", "requires_approval")
    assert run.states == {"x1": "failed", "x2": "failed", "c1": "pending"}


def test_answers_with_nothing_but_refused_calls_end_the_run() -> None:
    """After so many in a row; one good call between them begins the count anew."""
    run = Played()
    for calls in ([refused("x1")], [refused("x2")], [refused("x3"), server("s1")]):
        run.answers(*calls, max_invalid_steps=3)
    run.executes("s1")
    run.answers(refused("x4")).answers(refused("x5"), refused("x6"))
    assert run.where == ("running", "")
    run.answers(refused("x7"))
    assert run.where == ("failed", "invalid_tool_call")
    assert run.run.error is not None
    assert (run.run.error.reason, run.run.error.retryable) == (Reason.INVALID_TOOL_CALLS, False)
    assert all(call.settled for call in run.calls.values())


def test_a_cut_answer_ends_the_run_and_executes_nothing() -> None:
    """Its text is kept; its calls get an error return, because their arguments may be incomplete."""
    run = Played().answers(client("c1"), server("s1"), approval("a1"), text="I will", cut=True)
    assert run.where == ("completed", "max_tokens_exceeded")
    assert run.outcomes == [(name, Outcome.FAILED, CUT_ARGUMENTS) for name in ("c1", "s1", "a1")]
    assert run.stops[-1].remaining == ()


def test_a_demanded_call_that_is_not_made_fails_the_run() -> None:
    """The answer is kept."""
    run = Played().answers(text="No.", call_required=True)
    assert run.where == ("failed", "no_tool_call")
    assert run.run.error is not None
    assert run.run.error.reason is Reason.NO_TOOL_CALL
    assert run.messages[-1].content == AssistantContent("No.")
    assert Played().answers(client("c1"), call_required=True).where == ("paused", "requires_approval")


@pytest.mark.parametrize("who", ["client", "server", "approved", "denied", "refused"])
def test_calls_of_the_last_step_are_still_answered(who: str) -> None:
    """The step limit is looked at before the next model request: the run then ends with all outcomes stored."""
    run = Played(max_steps=1)
    if who == "client":
        run.answers(client("c1"))
        assert run.where == ("paused", "requires_approval")
        accepted = run.submits(returns("c1"))
        assert (accepted.fresh, accepted.resumed) == (True, False)
    elif who == "server":
        run.answers(server("c1"))
        run.executes("c1")
    elif who == "approved":
        run.answers(approval("c1"))
        assert run.submits(approves("c1")).resumed
        run.executes("c1")
    elif who == "denied":
        run.answers(approval("c1"))
        run.submits(denies("c1"))
    else:
        run.answers(refused("c1"))
    assert (run.where, run.run.steps_taken) == (("completed", "max_steps"), 1)
    assert [name for name, _, _ in run.outcomes] == ["c1"]
    assert [stop.final for stop in run.stops][-1] is True


def test_a_final_answer_at_the_step_limit_is_an_ordinary_end() -> None:
    """The limit only matters when the model would be asked again."""
    assert Played(max_steps=1).answers(text="Hi.").where == ("completed", "end_turn")


def test_cancelling_closes_every_open_call() -> None:
    """A started one as unknown, one asked of the caller as perhaps executed, all others as not executed."""
    run = Played().answers(server("s1"), client("c1"), approval("a1"), server("s2"), client("c2"))
    run.do(start_calls, ("s1",))
    run.submits(returns("c2"))
    run.do(cancel)
    assert run.where == ("cancelled", "cancelled")
    assert run.outcomes == [
        ("c2", Outcome.RETURNED, "done"),
        ("s1", Outcome.FAILED, UNKNOWN_OUTCOME),
        ("c1", Outcome.CANCELLED, CANCELLED_UNANSWERED),
        ("a1", Outcome.CANCELLED, CANCELLED_BEFORE),
        ("s2", Outcome.CANCELLED, CANCELLED_BEFORE),
    ]
    assert (run.run.epoch, run.run.owner, run.run.error) == (2, "", None)
    assert (run.stops[-1].final, run.stops[-1].remaining) == (True, ())
    before = run.run
    run.do(cancel)
    assert run.run is before


def test_an_approved_call_is_cancelled_as_not_executed() -> None:
    """It had not begun."""
    run = Played().answers(approval("a1"), client("c1"))
    run.submits(approves("a1"))
    run.do(cancel, StopReason.SUPERSEDED)
    assert run.where == ("cancelled", "superseded")
    assert [outcome[1:] for outcome in run.outcomes] == [
        (Outcome.CANCELLED, CANCELLED_BEFORE),
        (Outcome.CANCELLED, CANCELLED_UNANSWERED),
    ]


def test_a_retryable_failure_interrupts_and_keeps_what_was_accepted() -> None:
    """It blocks nobody and is not the end; attempts are counted."""
    run = Played().answers(client("c1"))
    run.submits(returns("c1"))
    run.do(fail, StopReason.LLM_API_ERROR, LOST, 2)
    assert (run.where, run.run.error, run.run.model_attempts) == (("interrupted", "llm_api_error"), LOST, 3)
    assert (run.stops[-1].final, run.stops[-1].error, run.run.end_time) == (False, LOST, 0)
    run.do(abandon)
    assert run.where == ("failed", "llm_api_error")
    assert run.run.error == replace(LOST, retryable=False, retry_after=None)
    assert run.run.epoch == 3


def test_any_other_failure_ends_the_run_and_closes_its_calls() -> None:
    """What the endpoint said is in the run and in its stop."""
    run = Played().answers(server("s1"), client("c1"))
    run.do(start_calls, ("s1",))
    run.do(fail, StopReason.ERROR, REFUSED)
    assert (run.where, run.stops[-1].error) == (("failed", "error"), REFUSED)
    assert run.states == {"s1": "failed", "c1": "cancelled"}


def test_interrupting_keeps_open_calls_open() -> None:
    """An answer to one of them is still taken, tells where the run stands, and resumes nothing."""
    run = Played().answers(server("s1"), client("c1"), client("c2"))
    run.do(start_calls, ("s1",))
    run.do(fail, StopReason.LLM_API_ERROR, GONE)
    assert (run.where, run.run.epoch) == (("interrupted", "llm_api_error"), 1)
    assert run.states == {"s1": "started", "c1": "pending", "c2": "pending"}
    for name in ("c1", "c2"):
        accepted = run.submits(returns(name), request_id=name)
        assert (accepted.fresh, accepted.resumed) == (True, False)
        assert (run.where, run.stops[-1].status) == (("interrupted", "llm_api_error"), RunStatus.INTERRUPTED)
    assert [len(stop.remaining) for stop in run.stops] == [2, 1, 0]


@pytest.mark.parametrize("stopped", ["paused", "cancelled", "completed", "interrupted"])
def test_only_a_running_run_fails(stopped: str) -> None:
    """One that stopped meanwhile stays as it is."""
    run = Played()
    if stopped == "paused":
        run.answers(client("c1"))
    elif stopped == "completed":
        run.answers(text="Hi.")
    else:
        run.do(cancel) if stopped == "cancelled" else run.do(fail, StopReason.LLM_API_ERROR, LOST)
    before = run.run
    run.do(fail, StopReason.LLM_API_ERROR, GONE)
    assert run.run is before
    assert run.where[0] == stopped


def test_a_step_asked_again_says_which_attempt_it_is() -> None:
    """The model's attempts go on counting; no step is taken by it."""
    run = Played()
    run.do(restart_step, 2, "the answer broke off")
    assert run.events[-1].body == StepRestarted(3, "the answer broke off")
    assert (run.run.model_attempts, run.run.steps_taken, run.asks) == (2, 0, True)


def test_a_call_starts_once_and_ends_once() -> None:
    """Starting what cannot start, or ending what has ended, is a bug and raises."""
    run = Played().answers(server("s1"), client("c1"), approval("a1"))
    for name in ("c1", "a1", "nothing"):
        with pytest.raises(ValueError, match=name):
            run.do(start_calls, (name,))
    run.executes("s1")
    with pytest.raises(ValueError, match="s1"):
        run.do(start_calls, ("s1",))
    with pytest.raises(ValueError, match="already has outcome"):
        run.do(finish_calls, (CallResult("s1", "again"),))


def test_resuming_raises_the_epoch_and_says_why() -> None:
    """The submitter owns the run now; the receipt comes first, then the outcomes, then the resumption."""
    run = Played().answers(client("c1"))
    before = len(run.events)
    assert run.submits(returns("c1")).resumed
    assert (run.run.epoch, run.run.owner, run.run.stop_reason) == (2, "process_2", None)
    kinds = [type(event.body).__name__ for event in run.events[before:]]
    assert kinds == ["ToolReturnsAccepted", "MessageStored", "RunResumed"]
    assert run.events[-1].body == RunResumed(2, RunCause.SUBMIT)
