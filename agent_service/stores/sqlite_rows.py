"""The SQL of the SQLite store: rows to values and back, each mapping once."""

from __future__ import annotations

import sqlite3

from agent_service.domain.draft import Change, Receipt, RunState
from agent_service.domain.event import Event
from agent_service.domain.message import Message
from agent_service.domain.run import Pinned, Run
from agent_service.domain.start import ConversationState
from agent_service.domain.tool import Call
from agent_service.engine.store import TOMBSTONE_SECONDS
from agent_service.stores import codec
from agent_service.stores.errors import PAGE_BYTES, conversation_not_found, run_not_found
from agent_service.stores.records import (
    EVENT_COLUMNS,
    MESSAGE_COLUMNS,
    call_columns,
    event_columns,
    event_of,
    message_columns,
    message_of,
    pin_columns,
    run_columns,
    run_of,
)
from agent_service.stores.sqlite_work import note_stop


def find_run(db: sqlite3.Connection, tenant: str, run_id: str) -> tuple[int, Run] | None:
    """The key and the value of a run."""
    row = db.execute(
        "SELECT run_key, lease_expire_time, codec, body FROM runs WHERE tenant = ? AND run_id = ?", (tenant, run_id)
    ).fetchone()
    return (row[0], run_of(*row[1:])) if row else None


def load_run(db: sqlite3.Connection, tenant: str, run_id: str) -> tuple[int, Run]:
    """The same; raises RUN_NOT_FOUND."""
    found = find_run(db, tenant, run_id)
    if found is None:
        raise run_not_found(run_id)
    return found


def load_calls(db: sqlite3.Connection, run_key: int, step: int, call_ids: tuple[str, ...] = ()) -> tuple[Call, ...]:
    """The calls of a step, and those named that belong to the run."""
    # One parameter, however many ids: SQLite bounds how many a statement may have.
    rows = db.execute(
        "SELECT codec, body FROM calls WHERE run_key = ?1 AND step = ?2 UNION ALL "
        "SELECT codec, body FROM (SELECT DISTINCT value FROM json_each(?3)) CROSS JOIN calls ON tool_call_id = value "
        "WHERE run_key = ?1 AND step <> ?2",
        (run_key, step, codec.encode(call_ids)),
    )
    return tuple(codec.decode_call(version, body) for version, body in rows)


def load_state(
    db: sqlite3.Connection, run_key: int, run: Run, now: int, call_ids: tuple[str, ...] = (), request_id: str = ""
) -> RunState:
    """What a move sees."""
    (position,) = db.execute(
        "SELECT next_position FROM conversations JOIN runs USING (conversation_key) WHERE run_key = ?", (run_key,)
    ).fetchone()
    calls = load_calls(db, run_key, run.steps_taken, call_ids)
    return RunState(run, calls, position, _load_receipt(db, run_key, request_id), now)


def _load_receipt(db: sqlite3.Connection, run_key: int, request_id: str) -> Receipt | None:
    if not request_id:
        return None
    row = db.execute(
        "SELECT codec, body FROM receipts WHERE run_key = ? AND request_id = ?", (run_key, request_id)
    ).fetchone()
    return codec.decode_receipt(*row) if row else None


def find_conversation(db: sqlite3.Connection, tenant: str, conversation_id: str) -> tuple[int, int, int] | None:
    """The key of a conversation, its next position, and when it was made."""
    row = db.execute(
        "SELECT conversation_key, next_position, create_time FROM conversations "
        "WHERE tenant = ? AND conversation_id = ?",
        (tenant, conversation_id),
    ).fetchone()
    return (row[0], row[1], row[2]) if row else None


def load_conversation(
    db: sqlite3.Connection, conversation_key: int, position: int, create_time: int, now: int
) -> ConversationState:
    """What a start sees: the run of the conversation that is not settled, if there is one."""
    row = db.execute(
        "SELECT run_key, lease_expire_time, codec, body FROM runs "
        "WHERE conversation_key = ? AND status IN ('running', 'paused', 'interrupted')",
        (conversation_key,),
    ).fetchone()
    queued = db.execute(
        "SELECT run_id FROM runs WHERE conversation_key = ? AND status = 'queued' ORDER BY run_key",
        (conversation_key,),
    )
    queue = tuple(run_id for (run_id,) in queued)
    current = load_state(db, row[0], run_of(*row[1:]), now) if row else None
    return ConversationState(position, current, queue, create_time)


def insert_conversation(db: sqlite3.Connection, tenant: str, conversation_id: str, now: int) -> int:
    """A new conversation's key."""
    cursor = db.execute(
        "INSERT INTO conversations (tenant, conversation_id, create_time) VALUES (?, ?, ?)",
        (tenant, conversation_id, now),
    )
    return _key(cursor)


def insert_run(db: sqlite3.Connection, tenant: str, run: Run, conversation_key: int, pin_key: int) -> int:
    """A new run's key."""
    cursor = db.execute(
        "INSERT INTO runs (tenant, run_id, conversation_key, pin_key, agent_id, create_time, parent_run_id, "
        "status, epoch, owner, lease_expire_time, pause_expire_time, last_sequence, codec, body) "
        "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (
            tenant,
            run.run_id,
            conversation_key,
            pin_key,
            run.agent_id,
            run.create_time,
            run.parent_run_id,
            *run_columns(run),
        ),
    )
    return _key(cursor)


def ensure_pin(db: sqlite3.Connection, tenant: str, pinned: Pinned) -> int:
    """The key of what a run is pinned to; equal ones are stored once."""
    digest, version, body = pin_columns(pinned)
    row = db.execute("SELECT pin_key FROM pins WHERE tenant = ? AND sha256 = ?", (tenant, digest)).fetchone()
    if row:
        return int(row[0])
    cursor = db.execute(
        "INSERT INTO pins (tenant, sha256, codec, body) VALUES (?, ?, ?, ?)",
        (tenant, digest, version, body),
    )
    return _key(cursor)


def load_pinned(db: sqlite3.Connection, tenant: str, run_id: str) -> Pinned:
    """What a run is pinned to; raises RUN_NOT_FOUND."""
    row = db.execute(
        "SELECT pins.codec, pins.body FROM runs JOIN pins USING (pin_key) WHERE runs.tenant = ? AND run_id = ?",
        (tenant, run_id),
    ).fetchone()
    if row is None:
        raise run_not_found(run_id)
    return codec.decode_pinned(*row)


def write_change(db: sqlite3.Connection, tenant: str, run_key: int, conversation_key: int, change: Change) -> None:
    """Writes everything a move did to one run.

    Its row comes last: the database refuses calls and events of a run that is over, and the end of a run whose calls
    have no outcome. A row that stays as it is is not written, because that of a run that is over cannot be.
    """
    db.executemany(
        "INSERT INTO calls (tenant, run_key, tool_call_id, step, pending_time, state, deadline, claim_expire_time, "
        "codec, body) VALUES (?,?,?,?,?,?,?,?,?,?) ON CONFLICT (tool_call_id) DO UPDATE SET state = excluded.state, "
        "deadline = excluded.deadline, claim_expire_time = excluded.claim_expire_time, codec = excluded.codec, "
        "body = excluded.body",
        [(tenant, run_key, *call_columns(call)) for call in change.calls],
    )
    if change.messages:
        db.executemany(
            "INSERT INTO messages VALUES (?,?,?,?,?,?,?,?,?)",
            [(conversation_key, *message_columns(m)) for m in change.messages],
        )
        db.execute(
            "UPDATE conversations SET next_position = ? WHERE conversation_key = ?",
            (change.next_position, conversation_key),
        )
    db.executemany("INSERT INTO events VALUES (?,?,?,?,?,?,?,?)", [(run_key, *event_columns(e)) for e in change.events])
    if change.receipt is not None:
        receipt = change.receipt
        db.execute(
            "INSERT INTO receipts VALUES (?,?,?,?)",
            (run_key, receipt.request_id, codec.CODEC_VERSION, codec.encode(receipt)),
        )
    columns = run_columns(change.run)
    db.execute(
        "UPDATE runs SET status = ?, epoch = ?, owner = ?, lease_expire_time = ?, pause_expire_time = ?, "
        "last_sequence = ?, codec = ?, body = ? WHERE run_key = ? AND body <> ?",
        (*columns, run_key, columns.body),
    )
    if change.memory_matters:
        note_stop(db, tenant, conversation_key, change)


def delete_run_rows(db: sqlite3.Connection, run_key: int) -> None:
    """Deletes a run and what belongs to it; its messages stay."""
    for table in ("receipts", "calls", "events", "runs"):
        db.execute(f"DELETE FROM {table} WHERE run_key = ?", (run_key,))


def ended_runs(db: sqlite3.Connection, before: int, limit: int) -> list[tuple[int]]:
    """The keys of runs that ended before that time and have their events still, the earliest first."""
    return db.execute(
        "SELECT run_key FROM events WHERE kind = 'run_stopped' AND instr(body, '\"final\":true') AND create_time < ? "
        "ORDER BY create_time LIMIT ?",
        (before, limit),
    ).fetchall()


def trim_events(db: sqlite3.Connection, before: int, limit: int) -> int:
    """Deletes the events of such runs; says of how many."""
    keys = ended_runs(db, before, limit)
    db.executemany("DELETE FROM events WHERE run_key = ?", keys)
    return len(keys)


def bury_run(db: sqlite3.Connection, tenant: str, run_id: str, now: int) -> None:
    """Keeps the id of a run that is deleted now from being used again for a while."""
    expire_time = now + TOMBSTONE_SECONDS * 10**9
    db.execute("INSERT OR REPLACE INTO tombstones VALUES (?, ?, ?)", (tenant, run_id, expire_time))


def is_buried(db: sqlite3.Connection, tenant: str, run_id: str, now: int) -> bool:
    """Whether a deleted run had the id not long ago."""
    row = db.execute(
        "SELECT 1 FROM tombstones WHERE tenant = ? AND run_id = ? AND expire_time > ?", (tenant, run_id, now)
    ).fetchone()
    return row is not None


def conversation_of(db: sqlite3.Connection, run_key: int) -> int:
    """The key of a run's conversation."""
    (key,) = db.execute("SELECT conversation_key FROM runs WHERE run_key = ?", (run_key,)).fetchone()
    return int(key)


def load_messages(
    db: sqlite3.Connection,
    tenant: str,
    conversation_id: str,
    after: int,
    limit: int,
    *,
    descending: bool = False,
    run_id: str = "",
) -> tuple[Message, ...]:
    """A page of messages; raises CONVERSATION_NOT_FOUND."""
    found = find_conversation(db, tenant, conversation_id)
    if found is None:
        raise conversation_not_found(conversation_id)
    beyond, order = ("<", "DESC") if descending else (">", "ASC")
    start = after or (found[1] if descending else 0)
    rows = db.execute(
        f"SELECT {MESSAGE_COLUMNS} FROM messages m JOIN conversations c USING (conversation_key) "
        f"WHERE m.conversation_key = ? AND m.position {beyond} ? AND (? = '' OR m.run_id = ?) "
        f"ORDER BY m.position {order} LIMIT ?",
        (found[0], start, run_id, run_id, limit),
    )
    page, size = [], 0
    for row in rows:
        page.append(message_of(*row))
        size += len(row[-1].encode())
        if size >= PAGE_BYTES:
            break
    return tuple(page)


def load_events(db: sqlite3.Connection, run_key: int, run_id: str, after: int, limit: int) -> tuple[Event, ...]:
    """A page of events."""
    rows = db.execute(
        f"SELECT {EVENT_COLUMNS} "
        "FROM events e JOIN runs er ON er.run_key = e.run_key "
        "LEFT JOIN messages m ON m.conversation_key = er.conversation_key AND m.position = e.position "
        "LEFT JOIN conversations c ON c.conversation_key = m.conversation_key "
        "WHERE e.run_key = ? AND e.sequence > ? ORDER BY e.sequence LIMIT ?",
        (run_key, after, limit),
    )
    page, size = [], 0
    for row in rows:
        page.append(event_of(run_id, *row))
        size += len((row[5] or row[-1]).encode())
        if size >= PAGE_BYTES:
            break
    return tuple(page)


def _key(cursor: sqlite3.Cursor) -> int:
    assert cursor.lastrowid is not None
    return cursor.lastrowid
