"""The move that takes the caller's answers to pending calls: all of them or none, each exactly once."""

from __future__ import annotations

from dataclasses import dataclass

from agent_service.domain.claims import check_claim
from agent_service.domain.content import Parts
from agent_service.domain.draft import Draft, Receipt, Snapshot
from agent_service.domain.errors import MAX_NAMED, AgentServiceError, FieldViolation, Reason, invalid
from agent_service.domain.event import RunCause, ToolReturnsAccepted
from agent_service.domain.message import ApprovalContent
from agent_service.domain.moves import emit_stopped, rest_or_go_on, resume, settle
from agent_service.domain.run import Owner, RunStatus
from agent_service.domain.tool import Call, CallState, Executor, Outcome, PendingCall, pending_of
from agent_service.domain.values import replace


@dataclass(frozen=True, slots=True)
class ReturnAnswer:
    """The caller executed the tool."""

    text: str
    failed: bool = False
    stdout: str = ""
    stderr: str = ""
    parts: Parts = ()


@dataclass(frozen=True, slots=True)
class ApproveAnswer:
    """The caller lets a server tool run."""

    edited_arguments_json: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class DenyAnswer:
    """The caller refuses a call."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class CallAnswer:
    """One answer: `path` is its place in the request, `digest` tells the same answer from another one.

    `violation` is set when the answer is against a schema of its tool; it counts only while the call is pending.
    `claim_token` is that of the worker who answers, empty if the call was not claimed.
    """

    tool_call_id: str
    path: str
    answer: ReturnAnswer | ApproveAnswer | DenyAnswer
    digest: str
    violation: FieldViolation | None = None
    claim_token: str = ""


@dataclass(frozen=True, slots=True)
class Submission:
    """A whole submit; `digest` is over all its answers."""

    request_id: str
    digest: str
    answers: tuple[CallAnswer, ...]


@dataclass(frozen=True, slots=True)
class Submitted:
    """The receipt, where its window begins, and the run after it; `resumed`: the submitter now owns the run.

    `fresh` is False when nothing was stored that had not been stored before.
    """

    receipt: ToolReturnsAccepted
    sequence: int
    fresh: bool
    resumed: bool
    snapshot: Snapshot


def submit(draft: Draft, submission: Submission, owner: Owner) -> Submitted:
    """Takes the answers. Order of checks: receipt, then ids, then each call's state, then schemas."""
    if draft.receipt is not None:
        return _replay(draft, draft.receipt, submission)
    _check_ids(draft, submission)
    fresh = [answer for answer in submission.answers if _is_fresh(draft, answer)]
    violations = tuple(answer.violation for answer in fresh if answer.violation)
    if violations:
        raise invalid(*violations, reason=Reason.SCHEMA_VIOLATION)
    already = tuple(a.tool_call_id for a in submission.answers if a not in fresh)
    if not fresh:
        return _nothing_new(draft, submission, already)
    return _take(draft, submission, fresh, already, owner)


def _replay(draft: Draft, receipt: Receipt, submission: Submission) -> Submitted:
    if receipt.digest != submission.digest:
        raise AgentServiceError(
            Reason.REQUEST_ID_REUSED,
            f"request_id: '{submission.request_id}' was used in {draft.run.run_id} for something else; "
            "send that again, or a new request_id",
            metadata={"request_id": submission.request_id},
        )
    assert receipt.body is not None  # only a retry has none, and its digest is no submission's
    return Submitted(receipt.body, receipt.sequence, False, False, draft.snapshot)


def _nothing_new(draft: Draft, submission: Submission, already: tuple[str, ...]) -> Submitted:
    """All calls have these outcomes: the answer is the window of the receipt that took the last of them."""
    sequence = max(_call(draft, answer).answer_sequence for answer in submission.answers)
    body = ToolReturnsAccepted(submission.request_id, (), already, pending_of(draft.batch))
    draft.keep_receipt(Receipt(submission.request_id, submission.digest, sequence, body))
    return Submitted(body, sequence, False, False, draft.snapshot)


def _take(
    draft: Draft, submission: Submission, fresh: list[CallAnswer], already: tuple[str, ...], owner: Owner
) -> Submitted:
    accepted = tuple(answer.tool_call_id for answer in fresh)
    remaining = tuple(call for call in pending_of(draft.batch) if call.tool_call_id not in accepted)
    body = ToolReturnsAccepted(submission.request_id, accepted, already, remaining)
    sequence = draft.emit(body).sequence
    draft.run = replace(draft.run, losses=0)
    draft.keep_receipt(Receipt(submission.request_id, submission.digest, sequence, body))
    for answer in fresh:
        _apply(draft, answer, sequence)
    resumed = _go_on(draft, remaining, owner)
    return Submitted(body, sequence, True, resumed, draft.snapshot)


def _go_on(draft: Draft, remaining: tuple[PendingCall, ...], owner: Owner) -> bool:
    """What the answers lead to; True if the run now belongs to `owner`."""
    status = draft.run.status
    if remaining or status is RunStatus.INTERRUPTED:
        emit_stopped(draft)
        return False
    if status is not RunStatus.PAUSED:
        return False
    rest_or_go_on(draft)
    if draft.run.status.terminal:
        return False
    resume(draft, RunCause.SUBMIT, owner)
    return True


def _apply(draft: Draft, answer: CallAnswer, sequence: int) -> None:
    call = replace(_call(draft, answer), answer_digest=answer.digest, answer_sequence=sequence)
    match answer.answer:
        case ReturnAnswer(text, failed, stdout, stderr, parts):
            outcome = Outcome.FAILED if failed else Outcome.RETURNED
            settle(draft, call, outcome, text, stdout=stdout, stderr=stderr, parts=parts)
        case ApproveAnswer(edited, note):
            draft.put_call(replace(call, state=CallState.APPROVED, edited_arguments_json=edited))
            draft.add_message(ApprovalContent(call.tool_call_id, True, edited, note), call.step_id)
        case DenyAnswer(reason):
            draft.add_message(ApprovalContent(call.tool_call_id, False, "", reason), call.step_id)
            settle(draft, call, Outcome.DENIED, f"Denied: {reason}" if reason else "Denied.")


def _check_ids(draft: Draft, submission: Submission) -> None:
    pending = ", ".join(call.tool_call_id for call in pending_of(draft.batch)[:MAX_NAMED]) or "none"
    seen: set[str] = set()
    violations = []
    for answer in submission.answers:
        field = f"{answer.path}.tool_call_id"
        if draft.call(answer.tool_call_id) is None:
            text = f"'{answer.tool_call_id}' is not a call of {draft.run.run_id}; pending: {pending}"
            violations.append(FieldViolation(field, text))
        elif answer.tool_call_id in seen:
            violations.append(FieldViolation(field, f"'{answer.tool_call_id}' is named twice; answer a call once"))
        seen.add(answer.tool_call_id)
    if violations:
        raise invalid(*violations, reason=Reason.UNKNOWN_TOOL_CALL)


def _is_fresh(draft: Draft, answer: CallAnswer) -> bool:
    """True: the call waits for this answer. False: it has it already. Anything else is an error."""
    call = _call(draft, answer)
    if call.state is not CallState.PENDING:
        if call.answer_digest == answer.digest:
            return False
        raise _not_pending(call, answer)
    check_claim(call, answer.claim_token, answer.path, draft.now)
    if call.executor is Executor.CLIENT and isinstance(answer.answer, ApproveAnswer):
        raise AgentServiceError(
            Reason.CALL_NEEDS_TOOL_RETURN,
            f"{answer.path}: {call.tool_call_id} ({call.name}) is executed by the client; "
            "send tool_returns (or deny it)",
            metadata={"tool_call_id": call.tool_call_id},
        )
    if call.executor is Executor.SERVER and isinstance(answer.answer, ReturnAnswer):
        raise AgentServiceError(
            Reason.CALL_NEEDS_APPROVAL,
            f"{answer.path}: {call.tool_call_id} ({call.name}) is executed by the server and waits for a decision; "
            "send approvals",
            metadata={"tool_call_id": call.tool_call_id},
        )
    return True


_SETTLED_REASONS = {
    CallState.EXPIRED: Reason.CALL_EXPIRED,
    CallState.CANCELLED: Reason.CALL_CANCELLED,
    CallState.RETURNED: Reason.CALL_ALREADY_SETTLED,
    CallState.FAILED: Reason.CALL_ALREADY_SETTLED,
    CallState.DENIED: Reason.CALL_ALREADY_SETTLED,
}


def _not_pending(call: Call, answer: CallAnswer) -> AgentServiceError:
    where = f"{answer.path}.tool_call_id: {call.tool_call_id} ({call.name})"
    metadata = {"tool_call_id": call.tool_call_id, "outcome": call.state.value.upper()}
    if call.settled:
        metadata["time"] = str(call.settle_time)
        reason = _SETTLED_REASONS[call.state]
        text = f"{where} is already settled as {call.state.value.upper()}"
        if reason is Reason.CALL_ALREADY_SETTLED:
            text += " with another content; an outcome never changes"
        return AgentServiceError(reason, text, metadata=metadata)
    if call.answer_digest:
        text = f"{where} was already approved, with other arguments or another note; a decision never changes"
        return AgentServiceError(Reason.CALL_ALREADY_SETTLED, text, metadata=metadata)
    return AgentServiceError(
        Reason.CALL_NOT_PENDING, f"{where} is executed by the server by itself; nothing to send", metadata=metadata
    )


def _call(draft: Draft, answer: CallAnswer) -> Call:
    call = draft.call(answer.tool_call_id)
    if call is None:
        raise ValueError(answer.tool_call_id)
    return call
