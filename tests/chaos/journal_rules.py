"""Rules about what clients were told: all of it is still there, and the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agentrpc.v1 import events_pb2

from tests.chaos.evidence import Evidence
from tests.chaos.journal import Journal, raw


def acknowledged_starts_are_there(journal: Journal, evidence: Evidence) -> Iterator[str]:
    """Each, in its conversation."""
    yield from evidence.missing
    for run_id, conversation_id in journal.starts.items():
        run = evidence.runs.get(run_id)
        if run is not None and conversation_id not in ("", run.conversation_id):
            yield f"{run_id} was started in {conversation_id} and is in {run.conversation_id}"


def events_seen_are_there(journal: Journal, evidence: Evidence) -> Iterator[str]:
    """Each durable event, byte for byte."""
    for run_id, seen in journal.events.items():
        stored = {event.sequence: raw(event) for event in evidence.events.get(run_id, ())}
        for number, data in seen.items():
            if stored.get(number) != data:
                yield f"{run_id}: event {number} was seen and is " + ("another" if number in stored else "lost")


def messages_seen_are_there(journal: Journal, evidence: Evidence) -> Iterator[str]:
    """Each message, byte for byte."""
    stored = {m.message_id: raw(m) for messages in evidence.messages.values() for m in messages}
    for message_id, data in journal.messages.items():
        if stored.get(message_id) != data:
            yield f"message {message_id} was seen and is " + ("another" if message_id in stored else "lost")


def receipts_are_there(journal: Journal, evidence: Evidence) -> Iterator[str]:
    """Each receipt that took something is its run's one event for that request_id; acknowledged answers are in one."""
    for (run_id, request_id), data in journal.receipts.items():
        stored = [raw(r) for r in _receipts(evidence, run_id) if r.request_id == request_id]
        took = events_pb2.ToolReturnsAccepted.FromString(data).accepted_tool_call_ids
        if stored != ([data] if took else []):
            yield f"{run_id}: a receipt for {request_id} was shown, and {len(stored)} are stored"
    for run_id, call_ids in journal.taken.items():
        accepted = {call_id for receipt in _receipts(evidence, run_id) for call_id in receipt.accepted_tool_call_ids}
        if call_ids - accepted:
            yield f"{run_id}: the answers to {sorted(call_ids - accepted)} were acknowledged, and no receipt has them"


def ended_runs_stay_as_they_were_shown(journal: Journal, evidence: Evidence) -> Iterator[str]:
    """A terminal run never changes again."""
    for run_id, data in journal.finals.items():
        run = evidence.runs.get(run_id)
        if run is not None and raw(run) != data:
            yield f"{run_id} was shown as over, and is now {run}"


def deltas_are_pieces_of_their_messages(journal: Journal, evidence: Evidence) -> Iterator[str]:
    """A delta of a message that was stored is a piece of it, at its offset."""
    stored = {m.message_id: m for messages in evidence.messages.values() for m in messages}
    for event in journal.deltas:
        delta: Any = getattr(event, str(event.WhichOneof("payload")))
        message = stored.get(delta.message_id)
        if message is None:
            continue
        if isinstance(delta, events_pb2.ToolCallArgumentsDelta):
            whole = message.tool_call.tool_calls[delta.index].arguments_json
        else:
            whole = message.assistant.text
        if whole[delta.offset : delta.offset + len(delta.text)] != delta.text:
            yield f"{event.run_id}: a delta of {delta.message_id} at {delta.offset} is not what was stored there"


def _receipts(evidence: Evidence, run_id: str) -> Iterator[events_pb2.ToolReturnsAccepted]:
    for event in evidence.events.get(run_id, ()):
        if event.HasField("tool_returns_accepted"):
            yield event.tool_returns_accepted


RULES = (
    acknowledged_starts_are_there,
    events_seen_are_there,
    messages_seen_are_there,
    receipts_are_there,
    ended_runs_stay_as_they_were_shown,
    deltas_are_pieces_of_their_messages,
)
