"""How values lie in the columns of a database, for all stores that speak SQL: each mapping once."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from agent_service.domain import expiry
from agent_service.domain.event import DurableBody, Event, MessageStored
from agent_service.domain.memory import BlockRecord
from agent_service.domain.message import Message
from agent_service.domain.run import Pinned, Run
from agent_service.domain.tool import Call
from agent_service.domain.values import replace
from agent_service.stores import codec

MESSAGE_COLUMNS = (
    "m.message_id, c.conversation_id, m.run_id, m.step_id, m.position, m.create_time, m.kind, m.codec, m.body"
)
"""What MessageRow holds, of messages `m` and conversations `c`."""
EVENT_COLUMNS = f"e.sequence, e.step_id, e.create_time, e.kind, e.codec, e.body, {MESSAGE_COLUMNS}"
"""What `event_of` takes, of events `e` and the message of each."""

WORK_COLUMNS = (
    "w.memory_agent_id, w.finished, w.through_position, w.due_position, w.parent_run_id, w.run_id, w.tries, "
    "w.not_before"
)
"""What MemoryWork holds, of memory_work `w`."""


class MessageRow(NamedTuple):
    """A message as it is stored."""

    message_id: str
    conversation_id: str
    run_id: str
    step_id: str
    position: int
    create_time: int
    kind: str
    codec: int
    body: str


class RunColumns(NamedTuple):
    """What changes in the row of a run."""

    status: str
    epoch: int
    owner: str
    lease_expire_time: int
    pause_expire_time: int
    last_sequence: int
    codec: int
    body: str


def run_columns(run: Run) -> RunColumns:
    """A run as it is stored."""
    return RunColumns(
        run.status.value,
        run.epoch,
        run.owner,
        run.lease_expire_time,
        run.pause_expire_time,
        run.last_sequence,
        codec.CODEC_VERSION,
        codec.encode(run),
    )


def run_of(lease_expire_time: int, version: int, body: str) -> Run:
    """A stored run; its lease is renewed in the column alone."""
    return replace(codec.decode_run(version, body), lease_expire_time=lease_expire_time)


def pin_columns(pinned: Pinned) -> tuple[str, int, str]:
    """Digest, codec and body of what a run is pinned to."""
    body = codec.encode(pinned)
    return hashlib.sha256(body.encode()).hexdigest(), codec.CODEC_VERSION, body


def event_columns(event: Event) -> tuple[int, str, int, str, int | None, int, str | None]:
    """Sequence, step_id, create_time, kind, position of the message, codec and body; one about a message: no body."""
    body = event.body
    kind = codec.body_kind(body)
    if isinstance(body, MessageStored):
        position: int | None = body.message.position
        text: str | None = None
    else:
        position, text = None, codec.encode(body)
    return (event.sequence, event.step_id, event.create_time, kind, position, codec.CODEC_VERSION, text)


def event_of(
    run_id: str,
    sequence: int,
    step_id: str,
    create_time: int,
    kind: str,
    version: int,
    body: str | None,
    *message: object,
) -> Event:
    """A stored event; `message` has the columns of its message."""
    if body is None:
        event_body: DurableBody = MessageStored(message_of(*message))
    else:
        event_body = codec.decode_body(version, kind, body)
    return Event(run_id, sequence, step_id, create_time, event_body)


def call_columns(call: Call) -> tuple[str, int, int, str, int, int, int, str]:
    """tool_call_id, step, pending_time, state, deadline, claim_expire_time, codec and body."""
    return (
        call.tool_call_id,
        call.step,
        call.pending_time,
        call.state.value,
        expiry.due_time(call),
        call.claim_expire_time,
        codec.CODEC_VERSION,
        codec.encode(call),
    )


def block_columns(record: BlockRecord) -> tuple[str, str, int, str]:
    """memory_block_id, label, codec and body."""
    block = record.block
    return block.memory_block_id, block.label, codec.CODEC_VERSION, codec.encode(record)


def message_columns(message: Message) -> tuple[int, str, str, str, int, str, int, str]:
    """Position, message_id, run_id, step_id, create_time, kind, codec and body."""
    return (
        message.position,
        message.message_id,
        message.run_id,
        message.step_id,
        message.create_time,
        message.type.value,
        codec.CODEC_VERSION,
        codec.encode(message.content),
    )


def message_of(*columns: object) -> Message:
    """A stored message, from MESSAGE_COLUMNS."""
    row = MessageRow(*columns)  # type: ignore[arg-type]  # the database has checked the types
    content = codec.decode_content(row.codec, row.kind, row.body)
    return Message(row.message_id, row.conversation_id, row.run_id, row.step_id, row.position, row.create_time, content)
