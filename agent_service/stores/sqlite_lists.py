"""The SQL of lists: filters and pages."""

from __future__ import annotations

import json
import sqlite3

from agent_service.domain.claims import MAX_CLAIMED_BYTES, claimed
from agent_service.domain.draft import Draft, NewId, Snapshot
from agent_service.domain.registry import CallFilter, Conversation, Page, RunFilter, WaitingCall
from agent_service.domain.tool import PendingKind, pending_of
from agent_service.domain.values import replace
from agent_service.stores import codec
from agent_service.stores.sqlite_rows import load_state

_Values = list[str | int]
_EXECUTOR_OF = {PendingKind.CLIENT_EXECUTION: "client", PendingKind.APPROVAL: "server"}


def count_pending(db: sqlite3.Connection) -> tuple[int, int]:
    """See RunStore.pending_calls."""
    found: tuple[int, int] = db.execute(
        "SELECT count(*), coalesce(min(pending_time), 0) FROM calls WHERE state = 'pending'"
    ).fetchone()
    return found


class _Where:
    """Conditions that must all hold, and their values."""

    def __init__(self, condition: str, *values: str | int) -> None:
        self._conditions = [condition]
        self.values: _Values = list(values)

    def add(self, condition: str, *values: str | int) -> None:
        """One more condition."""
        self._conditions.append(condition)
        self.values.extend(values)

    def add_if(self, value: str | int, condition: str) -> None:
        """A condition on a value, unless that is empty."""
        if value:
            self.add(condition, value)

    def add_labels(self, column: str, labels: tuple[tuple[str, str], ...], within: str = "") -> None:
        """All these labels, which are the column or lie `within` it; keys hold no quotes."""
        path = f"$.{within}" if within else "$"
        for key, value in labels:
            self.add(f"json_extract({column}, ?) = ?", f'{path}."{key}"', value)

    def ordered(self, page: Page, time: str, row_id: str) -> str:
        """The rest of the statement: conditions, order and limit of a page."""
        beyond, order = ("<", "DESC") if page.descending else (">", "ASC")
        if page.id:
            self.add(f"({time}, {row_id}) {beyond} (?, ?)", page.time, page.id)
        self.values.append(page.limit)
        conditions = " AND ".join(self._conditions)
        return f"WHERE {conditions} ORDER BY {time} {order}, {row_id} {order} LIMIT ?"


def load_runs(
    db: sqlite3.Connection, tenant: str, which: RunFilter, page: Page, now: int, new_id: NewId
) -> tuple[Snapshot, ...]:
    """A page of runs."""
    where = _Where("r.tenant = ?", tenant)
    if which.statuses:
        marks = ",".join("?" * len(which.statuses))
        where.add(f"r.status IN ({marks})", *sorted(status.value for status in which.statuses))
    where.add_if(which.agent_id, "r.agent_id = ?")
    where.add_if(which.conversation_id, "c.conversation_id = ?")
    where.add_if(which.parent_run_id, "r.parent_run_id <> '' AND r.parent_run_id = ?")
    where.add_if(which.create_from, "r.create_time >= ?")
    where.add_if(which.create_before, "r.create_time < ?")
    where.add_labels("json_extract(r.body, '$.labels')", which.labels)
    rest = where.ordered(page, "r.create_time", "r.run_id")
    rows = db.execute(
        f"SELECT r.run_key, r.codec, r.body FROM runs r JOIN conversations c USING (conversation_key) {rest}",
        where.values,
    ).fetchall()
    return tuple(
        Draft(load_state(db, key, codec.decode_run(version, body), now), new_id).snapshot for key, version, body in rows
    )


def load_waiting(
    db: sqlite3.Connection, tenant: str, which: CallFilter, page: Page, claimable_at: int = 0
) -> tuple[WaitingCall, ...]:
    """A page of pending calls; with `claimable_at` those that a worker may have then, and not too much at once."""
    where = _Where("k.tenant = ? AND k.state = 'pending'", tenant)
    if claimable_at:
        where.add("k.claim_expire_time <= ?", claimable_at)
        where.add("(k.deadline = 0 OR k.deadline > ?)", claimable_at)
        where.add("(r.pause_expire_time = 0 OR r.pause_expire_time > ?)", claimable_at)
    where.add_if(which.agent_id, "r.agent_id = ?")
    where.add_if(which.conversation_id, "c.conversation_id = ?")
    where.add_if(which.tool_name, "json_extract(k.body, '$.name') = ?")
    where.add_labels("r.body", which.labels, "labels")
    where.add_if(which.pending_before, "k.pending_time < ?")
    if which.kind is not None:
        where.add("json_extract(k.body, '$.executor') = ?", _EXECUTOR_OF[which.kind])
    rest = where.ordered(page, "k.pending_time", "k.tool_call_id")
    rows = db.execute(
        "SELECT k.codec, k.body, r.run_id, c.conversation_id, r.agent_id FROM calls k "
        f"JOIN runs r USING (run_key) JOIN conversations c USING (conversation_key) {rest}",
        where.values,
    )
    waiting: list[WaitingCall] = []
    size = 0
    for version, body, run_id, conversation_id, agent_id in rows:
        call = codec.decode_call(version, body)
        size += len(call.arguments_json.encode())
        if claimable_at and waiting and size > MAX_CLAIMED_BYTES:
            break
        (pending,) = pending_of((call,))
        claim = (call.worker_id, call.claim_expire_time)
        waiting.append(WaitingCall(pending, run_id, conversation_id, agent_id, call.pending_time, *claim))
    return tuple(waiting)


def claim_calls(
    db: sqlite3.Connection,
    tenant: str,
    which: CallFilter,
    worker_id: str,
    now: int,
    lease: int,
    limit: int,
    new_id: NewId,
) -> tuple[tuple[WaitingCall, str], ...]:
    """Claims pending calls that nobody has."""
    result = []
    for waiting in load_waiting(db, tenant, which, Page(limit), now):
        token = new_id("claim")
        (version, body) = db.execute(
            "SELECT codec, body FROM calls WHERE tool_call_id = ?", (waiting.call.tool_call_id,)
        ).fetchone()
        call = claimed(codec.decode_call(version, body), worker_id, token, now + lease)
        db.execute(
            "UPDATE calls SET claim_expire_time = ?, codec = ?, body = ? WHERE tool_call_id = ?",
            (call.claim_expire_time, codec.CODEC_VERSION, codec.encode(call), call.tool_call_id),
        )
        result.append((replace(waiting, worker_id=worker_id, claim_expire_time=call.claim_expire_time), token))
    return tuple(result)


_CONVERSATION = (
    "SELECT c.conversation_id, c.create_time, c.labels, c.next_position - 1, coalesce((SELECT run_id FROM runs r "
    "WHERE r.conversation_key = c.conversation_key AND r.status IN ('running', 'paused')), '') FROM conversations c"
)


def load_conversation_value(db: sqlite3.Connection, tenant: str, conversation_id: str) -> Conversation | None:
    """A conversation."""
    row = db.execute(
        f"{_CONVERSATION} WHERE c.tenant = ? AND c.conversation_id = ?", (tenant, conversation_id)
    ).fetchone()
    return _conversation(row) if row else None


def load_conversations(
    db: sqlite3.Connection, tenant: str, labels: tuple[tuple[str, str], ...], page: Page
) -> tuple[Conversation, ...]:
    """A page of conversations."""
    where = _Where("c.tenant = ?", tenant)
    where.add_labels("c.labels", labels)
    rest = where.ordered(page, "c.create_time", "c.conversation_id")
    return tuple(_conversation(row) for row in db.execute(f"{_CONVERSATION} {rest}", where.values))


def _conversation(row: tuple[str, int, str, int, str]) -> Conversation:
    conversation_id, create_time, labels, count, active_run_id = row
    return Conversation(conversation_id, create_time, json.loads(labels), count, active_run_id)
