"""The move that takes the caller's answers: what it accepts, what it refuses and in which order it looks."""

from __future__ import annotations

import pytest

from agent_service.domain.errors import AgentServiceError, FieldViolation, Reason
from agent_service.domain.event import RunStopped, ToolReturnsAccepted
from agent_service.domain.message import ApprovalContent, ToolReturnContent
from agent_service.domain.moves import cancel, start_calls
from agent_service.domain.submit import CallAnswer
from agent_service.domain.tool import CallState, Outcome
from agent_service.domain.values import replace
from tests.played_run import Played
from tests.store_contract import approval, approves, client, denies, returns, server


def refusal_of(run: Played, *answers: CallAnswer, request_id: str = "req_x") -> AgentServiceError:
    """The error of a submit, which leaves the run as it was."""
    before = run.run, dict(run.calls), len(run.messages), dict(run.receipts)
    with pytest.raises(AgentServiceError) as refused:
        run.submits(*answers, request_id=request_id)
    assert (run.run, run.calls, len(run.messages), run.receipts) == before
    return refused.value


def test_a_return_is_the_calls_outcome() -> None:
    """Text, stdout and stderr are kept; an error return is a failed call, and the model goes on."""
    run = Played().answers(client("c1"), client("c2"))
    run.submits(returns("c1", "A", stdout="out", stderr="err"), returns("c2", "B", failed=True))
    assert [m.content for m in run.messages[2:]] == [
        ToolReturnContent("c1", "tool_c1", Outcome.RETURNED, "A", "out", "err"),
        ToolReturnContent("c2", "tool_c2", Outcome.FAILED, "B"),
    ]
    assert run.where == ("running", "")


def test_some_of_the_returns_are_taken_and_the_rest_is_named() -> None:
    """Each partial submit ends with a stop that lists what remains; the last one resumes and has none."""
    run = Played().answers(client("c1"), client("c2"), client("c3"))
    first = run.submits(returns("c2"), request_id="r1")
    assert (first.receipt.accepted, [c.tool_call_id for c in first.receipt.remaining]) == (("c2",), ["c1", "c3"])
    assert (run.where, run.run.epoch) == (("paused", "requires_approval"), 1)
    second = run.submits(returns("c3"), request_id="r2")
    third = run.submits(returns("c1"), request_id="r3")
    assert (first.resumed, second.resumed, third.resumed) == (False, False, True)
    assert [len(stop.remaining) for stop in run.stops] == [3, 2, 1]
    assert first.sequence < second.sequence < third.sequence
    assert [e.sequence for e in run.events if isinstance(e.body, ToolReturnsAccepted)] == [
        first.sequence,
        second.sequence,
        third.sequence,
    ]


def test_the_same_request_again_is_answered_by_its_receipt() -> None:
    """Also when other returns came meanwhile, and when the run is over; nothing is stored."""
    run = Played().answers(client("c1"), client("c2"))
    first = run.submits(returns("c1"), request_id="r1")
    run.submits(returns("c2"), request_id="r2")
    run.do(cancel)
    before = run.run
    again = run.submits(returns("c1"), request_id="r1")
    assert (again.receipt, again.sequence) == (first.receipt, first.sequence)
    assert (again.fresh, again.resumed) == (False, False)
    assert run.run is before


def test_the_same_outcomes_under_another_id_are_accepted_before() -> None:
    """The receipt says so and points to the one that took them; it is kept, so the new id is used up, too."""
    run = Played().answers(client("c1"), client("c2"), client("c3"))
    run.submits(returns("c1"), request_id="r1")
    second = run.submits(returns("c2"), request_id="r2")
    events = len(run.events)
    again = run.submits(returns("c1"), returns("c2"), request_id="r3")
    assert (again.receipt.accepted, again.receipt.already_settled) == ((), ("c1", "c2"))
    assert [call.tool_call_id for call in again.receipt.remaining] == ["c3"]
    assert (again.sequence, again.fresh, len(run.events)) == (second.sequence, False, events)
    assert refusal_of(run, returns("c3"), request_id="r3").reason is Reason.REQUEST_ID_REUSED
    assert run.submits(returns("c1"), returns("c2"), request_id="r3").receipt == again.receipt


def test_new_and_repeated_outcomes_may_come_together() -> None:
    """The receipt tells one from the other, and the new ones count."""
    run = Played().answers(client("c1"), client("c2"))
    run.submits(returns("c1"), request_id="r1")
    mixed = run.submits(returns("c1"), returns("c2"), request_id="r2")
    assert (mixed.receipt.accepted, mixed.receipt.already_settled) == (("c2",), ("c1",))
    assert (mixed.fresh, mixed.resumed) == (True, True)
    assert [name for name, _, _ in run.outcomes] == ["c1", "c2"]


def test_an_id_cannot_be_used_for_other_outcomes() -> None:
    """This is looked at first: even before whether the calls exist."""
    run = Played().answers(client("c1"))
    run.submits(returns("c1"), request_id="r1")
    for answers in ((returns("c1", "other"),), (returns("nothing"),), (returns("c1"), returns("c1"))):
        error = refusal_of(run, *answers, request_id="r1")
        assert (error.reason, error.metadata) == (Reason.REQUEST_ID_REUSED, {"request_id": "r1"})


def test_ids_are_looked_at_before_states() -> None:
    """Every unknown or repeated id is named with its place, and what does wait; the state of the others is not told."""
    run = Played().answers(client("c1"), client("c2"))
    run.submits(returns("c1"))
    error = refusal_of(run, returns("c1", "other"), returns("x1"), returns("c2"), returns("c2"), returns("x2"))
    assert error.reason is Reason.UNKNOWN_TOOL_CALL
    assert [violation.field for violation in error.violations] == [
        "answers[x1].tool_call_id",
        "answers[c2].tool_call_id",
        "answers[x2].tool_call_id",
    ]
    assert "'x1' is not a call of run_1; pending: c2" in error.message
    assert "'c2' is named twice" in error.message


def test_at_most_sixteen_unknown_ids_are_named() -> None:
    """And how many more there are."""
    run = Played().answers(client("c1"))
    error = refusal_of(run, *(returns(f"x{n}") for n in range(20)))
    assert len(error.violations) == 16
    assert "and 4 more" in error.message


def test_states_are_looked_at_before_schemas() -> None:
    """A violation counts only for a call that waits: what is settled is not judged again."""
    run = Played().answers(client("c1"), client("c2"))
    run.submits(returns("c1"))

    def against(answer: CallAnswer) -> CallAnswer:
        return replace(answer, violation=FieldViolation(f"{answer.path}.text", "is not what the schema says"))

    error = refusal_of(run, returns("c1", "other"), against(returns("c2")))
    assert error.reason is Reason.CALL_ALREADY_SETTLED
    error = refusal_of(run, against(returns("c1")), against(returns("c2")))
    assert (error.reason, [v.field for v in error.violations]) == (Reason.SCHEMA_VIOLATION, ["answers[c2].text"])
    assert not run.submits(against(returns("c1")), request_id="r2").fresh


@pytest.mark.parametrize("how", ["returned", "failed", "denied"])
def test_an_outcome_never_changes(how: str) -> None:
    """Another one for the same call is refused with the outcome and its time."""
    run = Played().answers(client("c1"), client("c2"))
    given = {"returned": returns("c1"), "failed": returns("c1", failed=True), "denied": denies("c1", "no")}
    run.now = 5_000
    run.submits(given[how])
    for name, other in given.items():
        if name == how:
            assert not run.submits(other, request_id=f"again_{name}").fresh
        else:
            error = refusal_of(run, returns("c2"), other)
            assert error.reason is Reason.CALL_ALREADY_SETTLED
            assert error.metadata == {"tool_call_id": "c1", "outcome": how.upper(), "time": "5000"}


@pytest.mark.parametrize(
    ("state", "reason"), [(CallState.EXPIRED, Reason.CALL_EXPIRED), (CallState.CANCELLED, Reason.CALL_CANCELLED)]
)
def test_an_answer_that_comes_too_late_is_told_so(state: CallState, reason: Reason) -> None:
    """The call ended without it: the error has the outcome and its time."""
    run = Played().answers(client("c1"), client("c2"))
    run.calls["c1"] = replace(run.calls["c1"], state=state, settle_time=7_000)
    error = refusal_of(run, returns("c2"), returns("c1"))
    assert error.reason is reason
    assert error.metadata == {"tool_call_id": "c1", "outcome": state.value.upper(), "time": "7000"}


def test_an_answer_after_a_cancel_is_refused() -> None:
    """What was accepted before the cancel is still answered alike."""
    run = Played().answers(client("c1"), client("c2"))
    run.submits(returns("c1"))
    run.do(cancel)
    assert refusal_of(run, returns("c2")).reason is Reason.CALL_CANCELLED
    assert not run.submits(returns("c1"), request_id="r2").fresh


def test_a_client_call_cannot_be_approved() -> None:
    """The caller executes it: it is told to send the return, or to deny."""
    run = Played().answers(client("c1"), approval("a1"))
    error = refusal_of(run, approves("a1"), approves("c1"))
    assert (error.reason, error.metadata) == (Reason.CALL_NEEDS_TOOL_RETURN, {"tool_call_id": "c1"})
    assert "send tool_returns" in error.message


def test_a_call_that_waits_for_a_decision_takes_no_return() -> None:
    """The server executes it: the caller is told to send an approval."""
    run = Played().answers(approval("a1"), client("c1"))
    error = refusal_of(run, returns("c1"), returns("a1"))
    assert (error.reason, error.metadata) == (Reason.CALL_NEEDS_APPROVAL, {"tool_call_id": "a1"})
    assert "send approvals" in error.message


def test_a_call_the_server_executes_by_itself_takes_nothing() -> None:
    """Neither before it starts nor while it runs."""
    run = Played().answers(server("s1"), client("c1"))
    assert refusal_of(run, returns("s1")).reason is Reason.CALL_NOT_PENDING
    run.do(start_calls, ("s1",))
    for answer in (returns("s1"), approves("s1"), denies("s1")):
        error = refusal_of(run, returns("c1"), answer)
        assert (error.reason, error.metadata["outcome"]) == (Reason.CALL_NOT_PENDING, "STARTED")


@pytest.mark.parametrize(("reason", "text"), [("", "Denied."), ("too risky", "Denied: too risky")])
def test_any_pending_call_may_be_denied(reason: str, text: str) -> None:
    """The decision is a message of its own, and the model is told, with the reason."""
    run = Played().answers(client("c1"), approval("a1"))
    assert run.submits(denies("c1", reason), denies("a1", reason)).resumed
    assert run.outcomes == [("c1", Outcome.DENIED, text), ("a1", Outcome.DENIED, text)]
    decisions = [m.content for m in run.messages if isinstance(m.content, ApprovalContent)]
    assert decisions == [ApprovalContent(name, False, "", reason) for name in ("c1", "a1")]


def test_an_approval_may_edit_the_arguments() -> None:
    """The call executes with the edited ones; what the model wrote is kept beside them; others use their own."""
    run = Played().answers(approval("a1", '{"to": "bob"}'), approval("a2", '{"n": 1}'))
    run.submits(approves("a1", '{"to": "alice"}', "not bob"), approves("a2"))
    first, second = run.calls["a1"], run.calls["a2"]
    assert (first.arguments_json, first.effective_arguments_json) == ('{"to": "bob"}', '{"to": "alice"}')
    assert second.effective_arguments_json == '{"n": 1}'
    decisions = [m.content for m in run.messages if isinstance(m.content, ApprovalContent)]
    assert decisions == [
        ApprovalContent("a1", True, '{"to": "alice"}', "not bob"),
        ApprovalContent("a2", True),
    ]
    assert run.runnable == ["a1", "a2"]


def test_a_decision_never_changes() -> None:
    """The same approval again is accepted before, also after the call has run; another decision is refused."""
    run = Played().answers(approval("a1"), approval("a2"))
    first = run.submits(approves("a1", note="go"), request_id="r1")
    again = run.submits(approves("a1", note="go"), request_id="r2")
    assert (again.fresh, again.sequence, again.receipt.already_settled) == (False, first.sequence, ("a1",))
    for other in (approves("a1"), approves("a1", "{}", "go"), denies("a1")):
        assert refusal_of(run, other).reason is Reason.CALL_ALREADY_SETTLED
    run.submits(approves("a2"), request_id="r3")
    run.executes("a1")
    assert not run.submits(approves("a1", note="go"), request_id="r4").fresh
    assert refusal_of(run, denies("a1")).metadata["outcome"] == "RETURNED"


def test_returns_of_earlier_steps_are_still_known() -> None:
    """Repeating one is answered by its receipt, and does not touch the step in hand."""
    run = Played().answers(client("c1"))
    first = run.submits(returns("c1"), request_id="r1")
    run.answers(client("c2"))
    again = run.submits(returns("c1"), request_id="r2")
    assert (again.sequence, again.fresh, again.resumed) == (first.sequence, False, False)
    assert [call.tool_call_id for call in again.receipt.remaining] == ["c2"]
    mixed = run.submits(returns("c1"), returns("c2"), request_id="r3")
    assert (mixed.receipt.accepted, mixed.resumed) == (("c2",), True)


def test_a_submit_to_a_run_that_is_over_names_nothing_to_wait_for() -> None:
    """It has no pending call."""
    run = Played().answers(text="Hi.")
    assert "pending: none" in refusal_of(run, returns("c1")).message
    assert isinstance(run.events[-1].body, RunStopped)
