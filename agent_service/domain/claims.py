"""Claims of pending calls: who of many workers answers a call. A claim is lost when its time is over and another comes.

A claim changes neither the run nor its events; deadlines, cancels and ends of the run take no notice of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent_service.domain.draft import Draft
from agent_service.domain.errors import AgentServiceError, FieldViolation, Reason, invalid
from agent_service.domain.expiry import due_time
from agent_service.domain.run import Run
from agent_service.domain.tool import Call
from agent_service.domain.values import replace


@dataclass(frozen=True, slots=True)
class Extended:
    """What came of a heartbeat: the new end of the claim, and whether the call waits for nobody any more."""

    claim_expire_time: int
    cancel_requested: bool


MAX_CLAIMED_BYTES = 1024 * 1024
"""About how many bytes of arguments one claim gives out at most; one larger call is given out by itself."""


def claimable(run: Run, call: Call, now: int) -> bool:
    """Whether a worker may have the call: it waits, nobody has it, and an answer to it would be taken."""
    over = 0 < run.pause_expire_time <= now or _overdue(call, now)
    return call.pending and call.claim_expire_time <= now and not over


def claimed(call: Call, worker_id: str, token: str, until: int) -> Call:
    """The call, claimed."""
    return replace(call, worker_id=worker_id, claim_token=token, claim_expire_time=until)


def extend(draft: Draft, tool_call_id: str, token: str, lease: int) -> Extended:
    """Lets a claim last `lease` nanoseconds from now. Raises UNKNOWN_TOOL_CALL, CLAIM_LOST."""
    call = draft.call(tool_call_id)
    if call is None:
        text = f"'{tool_call_id}' is not a call of {draft.run.run_id}"
        raise invalid(FieldViolation("tool_call_id", text), reason=Reason.UNKNOWN_TOOL_CALL)
    if not call.claim_token or call.claim_token != token:
        raise claim_lost("claim_token", call)
    if not call.pending or _overdue(call, draft.now):
        return Extended(call.claim_expire_time, True)
    until = draft.now + lease
    draft.put_call(replace(call, claim_expire_time=until))
    return Extended(until, False)


def check_claim(call: Call, token: str, path: str, now: int) -> None:
    """Raises CLAIM_LOST for a stale token, CALL_CLAIMED for an answer without one to a call that a worker has."""
    if token:
        if token != call.claim_token:
            raise claim_lost(f"{path}.claim_token", call)
    elif call.claim_expire_time > now:
        raise AgentServiceError(
            Reason.CALL_CLAIMED,
            f"{path}: {call.tool_call_id} ({call.name}) is claimed by worker '{call.worker_id}'; "
            "send its claim_token, or wait until its claim is over",
            metadata={
                "tool_call_id": call.tool_call_id,
                "worker_id": call.worker_id,
                "claim_expire_time": str(call.claim_expire_time),
            },
        )


def _overdue(call: Call, now: int) -> bool:
    return 0 < due_time(call) <= now


def claim_lost(path: str, call: Call) -> AgentServiceError:
    """The token is not that of the call's last claim."""
    return AgentServiceError(
        Reason.CLAIM_LOST,
        f"{path}: the claim of {call.tool_call_id} ({call.name}) is lost; stop working on it",
        metadata={"tool_call_id": call.tool_call_id},
    )
