"""What happens when nobody answers in time: to a call, to a pause, to an interrupted run."""

from __future__ import annotations

from agent_service.domain.draft import Draft
from agent_service.domain.errors import Reason
from agent_service.domain.event import RunCause
from agent_service.domain.moves import abandon, close_calls, rest_or_go_on, resume, settle, stop
from agent_service.domain.run import Owner, RunError, RunStatus, StopReason
from agent_service.domain.tool import Call, CallState, OnTimeout, Outcome

NO_ANSWER = "No answer came in time. The outcome is unknown: the tool may have been executed."


def overdue(draft: Draft) -> bool:
    """Whether `expire` has something to do."""
    run = draft.run
    return bool(_due(draft)) or 0 < run.pause_expire_time <= draft.now


def expire(draft: Draft, owner: Owner) -> bool:
    """Does what is due by the clock of the store; True if `owner` has to go on with the run."""
    run = draft.run
    if 0 < run.pause_expire_time <= draft.now:
        _give_up(draft)
        return False
    due = _due(draft)
    if not due:
        return False
    for call in due:
        settle(draft, call, Outcome.EXPIRED, NO_ANSWER)
    failing = next((call for call in due if call.on_timeout is OnTimeout.FAIL_RUN), None)
    if failing is not None:
        close_calls(draft)
        message = f"{failing.tool_call_id} ({failing.name}) was not answered within {failing.timeout / 1e9:g} s"
        error = RunError(Reason.CALL_TIMED_OUT, message, metadata={"tool_call_id": failing.tool_call_id})
        stop(draft, StopReason.EXPIRED, error)
        return False
    return _go_on(draft, owner)


def _due(draft: Draft) -> list[Call]:
    if draft.run.status is not RunStatus.PAUSED:
        return []
    return [call for call in draft.batch if 0 < due_time(call) <= draft.now]


def due_time(call: Call) -> int:
    """When something has to be done about a call that is not answered; 0 for never."""
    waits = call.state is CallState.PENDING and call.on_timeout is not OnTimeout.KEEP_WAITING
    return call.deadline if waits else 0


def _give_up(draft: Draft) -> None:
    if draft.run.status is RunStatus.INTERRUPTED:
        abandon(draft)
        return
    for call in draft.batch:
        if call.state is CallState.PENDING:
            settle(draft, call, Outcome.EXPIRED, NO_ANSWER)
    close_calls(draft)
    stop(draft, StopReason.EXPIRED)


def _go_on(draft: Draft, owner: Owner) -> bool:
    """After the last answer that was waited for, the run goes on; before, it stays paused."""
    if any(call.state is CallState.PENDING for call in draft.batch):
        return False
    rest_or_go_on(draft)
    if draft.run.status.terminal:
        return False
    resume(draft, RunCause.DEADLINE, owner)
    return True
