"""Rules about tool calls: one outcome each, the one that was accepted, and what server tools really did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from agentrpc.v1 import messages_pb2, tools_pb2

from tests.chaos.evidence import Evidence
from tests.chaos.journal import TERMINAL, Journal
from tests.scripted_openai.request import text

RETURNED = tools_pb2.TOOL_CALL_OUTCOME_RETURNED
CANCELLED = tools_pb2.TOOL_CALL_OUTCOME_CANCELLED
DENIED = tools_pb2.TOOL_CALL_OUTCOME_DENIED
_ONCE = ("charge", "refund")
"""Server tools that must not run twice."""


def each_call_has_one_outcome(_: Journal, evidence: Evidence) -> Iterator[str]:
    """Exactly one once the run is over, never two; and no outcome without a call."""
    for run_id, run in evidence.runs.items():
        messages = evidence.messages_of(run_id)
        calls = [call.tool_call_id for m in messages for call in m.tool_call.tool_calls]
        outcomes = Counter(m.tool_return.tool_call_id for m in messages if m.HasField("tool_return"))
        if len(calls) != len(set(calls)) or set(outcomes) - set(calls):
            yield f"{run_id} has the calls {calls} and outcomes for {sorted(outcomes)}"
        for call_id in calls:
            least = 1 if run.status in TERMINAL else 0
            if not least <= outcomes[call_id] <= 1:
                yield f"{run_id}: {call_id} has {outcomes[call_id]} outcomes"


def outcomes_are_those_accepted(journal: Journal, evidence: Evidence) -> Iterator[str]:
    """What a receipt accepted is what is stored; an approval leads to anything but a denial."""
    for found in _returns(evidence):
        accepted = journal.outcomes.get(found.tool_call_id)
        if accepted is None:
            continue
        if accepted == "approve":
            good = found.outcome != DENIED
        elif accepted.startswith("deny"):
            good = (found.outcome, found.text) == (DENIED, f"Denied: {accepted}")
        else:
            good = (found.outcome, found.text) == (RETURNED, accepted)
        if not good:
            yield f"{found.tool_call_id}: {accepted!r} was accepted and {found.text!r} is stored"


def accepted_once(_: Journal, evidence: Evidence) -> Iterator[str]:
    """No call is in two receipts."""
    for run_id, events in evidence.events.items():
        taken = Counter(call_id for e in events for call_id in e.tool_returns_accepted.accepted_tool_call_ids)
        for call_id, times in taken.items():
            if times > 1:
                yield f"{run_id}: {call_id} was accepted {times} times"


def server_tools_run_once(_: Journal, evidence: Evidence) -> Iterator[str]:
    """At most once unless idempotent."""
    for call_id, proofs in evidence.executions.items():
        if len(proofs) > 1 and proofs[0].split()[0] in _ONCE:
            yield f"{call_id} was executed {len(proofs)} times: {proofs}"


def server_tools_did_what_is_stored(_: Journal, evidence: Evidence) -> Iterator[str]:
    """A stored result is one that an execution gave; what was denied or cancelled before it began was not executed."""
    for found in _returns(evidence):
        proofs = evidence.executions.get(found.tool_call_id, [])
        if found.name not in ("ask", "memory_append") and found.outcome == RETURNED and found.text not in proofs:
            yield f"{found.tool_call_id}: {found.text!r} is stored, and the tool gave {proofs}"
        if found.outcome in (DENIED, CANCELLED) and proofs:
            yield f"{found.tool_call_id} was denied or cancelled, and executed"


def the_model_sees_the_stored_outcomes(_: Journal, evidence: Evidence) -> Iterator[str]:
    """In every request a call has the outcome that is stored for it."""
    stored = {found.tool_call_id: found.text for found in _returns(evidence)}
    for request in evidence.requests:
        for message in request.history:
            if message["role"] == "tool" and stored.get(message["tool_call_id"]) != text(message):
                yield f"request {request.number} has {text(message)!r} for {message['tool_call_id']}"


def _returns(evidence: Evidence) -> Iterator[messages_pb2.ToolReturnMessage]:
    for messages in evidence.messages.values():
        for message in messages:
            if message.HasField("tool_return"):
                yield message.tool_return


RULES = (
    each_call_has_one_outcome,
    outcomes_are_those_accepted,
    accepted_once,
    server_tools_run_once,
    server_tools_did_what_is_stored,
    the_model_sees_the_stored_outcomes,
)
