"""How a run goes on after its owner was lost, or after a failure that may have passed."""

from __future__ import annotations

from agent_service.domain.draft import Draft, Receipt
from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.domain.event import RunCause
from agent_service.domain.moves import (
    UNKNOWN_OUTCOME,
    count_broken_request,
    count_running_time,
    rest_or_go_on,
    resume,
    settle,
    stop,
)
from agent_service.domain.run import Owner, Pinned, RunError, RunStatus, StopReason
from agent_service.domain.tool import CallState, Outcome
from agent_service.domain.values import replace

MAX_LOSSES = 3
"""A run that loses so many owners without progress is set aside: it may be what kills them."""
_RETRY = "retry"


def hand_over(draft: Draft) -> None:
    """The owner gives a running run up in good order; whoever looks next takes it at once, and no loss is counted."""
    if draft.run.status is RunStatus.RUNNING:
        count_broken_request(draft)
        count_running_time(draft, draft.now)
        draft.run = replace(draft.run, lease_expire_time=0)


def recover(draft: Draft, pinned: Pinned, owner: Owner) -> bool:
    """Takes a running run whose lease is over; True if `owner` has to go on with it.

    A run that stopped, or whose lease was renewed or taken meanwhile, stays as it is.
    """
    run = draft.run
    if run.status is not RunStatus.RUNNING or run.lease_expire_time > draft.now:
        return False
    if run.lease_expire_time:
        count_broken_request(draft)
        count_running_time(draft, run.lease_expire_time)
        draft.run = replace(draft.run, losses=run.losses + 1)
    if draft.run.losses >= MAX_LOSSES:
        draft.run = replace(draft.run, epoch=run.epoch + 1)
        message = f"{MAX_LOSSES} server processes in a row were lost while they worked on this run; it may be the cause"
        stop(draft, StopReason.ERROR, RunError(Reason.RUN_LOST_REPEATEDLY, message, retryable=True))
        return False
    return _go_on(draft, RunCause.RECOVERY, pinned, owner)


def retry(draft: Draft, request_id: str, pinned: Pinned, owner: Owner) -> bool:
    """Takes an interrupted run; True if `owner` has to go on with it. False for a repeat of an earlier retry."""
    run = draft.run
    if draft.receipt is not None:
        if draft.receipt.digest != _RETRY:
            raise AgentServiceError(
                Reason.REQUEST_ID_REUSED,
                f"request_id: '{request_id}' was used in {run.run_id} for something else; "
                "send that again, or a new request_id",
                metadata={"request_id": request_id},
            )
        return False
    if run.status is not RunStatus.INTERRUPTED:
        raise AgentServiceError(
            Reason.RUN_NOT_INTERRUPTED,
            f"run_id: {run.run_id} is {run.status.value.upper()}; only an INTERRUPTED run can be retried",
            metadata={"run_id": run.run_id, "status": run.status.value.upper()},
        )
    if request_id:
        draft.keep_receipt(Receipt(request_id, _RETRY, run.last_sequence + 1, None))
    draft.run = replace(run, losses=0)
    return _go_on(draft, RunCause.RETRY, pinned, owner)


def _go_on(draft: Draft, cause: RunCause, pinned: Pinned, owner: Owner) -> bool:
    """From the last stored point. Of a started call only the one of an idempotent tool may start again."""
    resume(draft, cause, owner)
    for call in draft.batch:
        if call.state is not CallState.STARTED:
            continue
        tool = pinned.tool(call.name)
        if tool is not None and tool.idempotent:
            draft.put_call(replace(call, state=CallState.APPROVED if call.answer_digest else CallState.PROPOSED))
        else:
            settle(draft, call, Outcome.FAILED, UNKNOWN_OUTCOME)
    rest_or_go_on(draft)
    return draft.run.status is RunStatus.RUNNING
