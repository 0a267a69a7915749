"""The SQL of runs in PostgreSQL. Each statement is for many runs at once, whose values come as arrays.

Whoever writes locks conversations before runs, both by the conversations' keys. That leaves a rare circle of three (a
start that supersedes, a move, a heartbeat): the database ends one of them after a second, and it is done again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from agent_service.domain.draft import Change, RunState
from agent_service.domain.event import Event
from agent_service.domain.message import Message
from agent_service.domain.run import Pinned
from agent_service.engine.store import TOMBSTONE_SECONDS
from agent_service.stores import codec
from agent_service.stores.errors import PAGE_BYTES, conversation_not_found, run_not_found
from agent_service.stores.postgres_hints import CLOCK
from agent_service.stores.postgres_work import note_stops
from agent_service.stores.records import (
    EVENT_COLUMNS,
    MESSAGE_COLUMNS,
    call_columns,
    event_columns,
    event_of,
    message_columns,
    message_of,
    run_columns,
    run_of,
)

if TYPE_CHECKING:
    from agent_service.stores.postgres_database import Connection, Database

    Reader = Connection | Database

FINAL = "kind = 'run_stopped' AND strpos(body, '\"final\":true') > 0"
"""The condition of the final event of a run, as the indexes have it."""


class Wanted(NamedTuple):
    """Which run, what of it besides the calls of its last step, and which memory blocks."""

    tenant: str
    run_id: str
    call_ids: tuple[str, ...] = ()
    request_id: str = ""
    block_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """A run as a move sees it, and where it is kept."""

    tenant: str
    run_key: int
    conversation_key: int
    state: RunState


class Written(NamedTuple):
    """What a move did, and where it belongs."""

    tenant: str
    run_key: int
    conversation_key: int
    change: Change


def column(text: str) -> str:
    """A text that callers or models choose as a column has it, which cannot hold U+0000."""
    return text.replace("\0", "\ufffd")


def columns(rows: Iterable[Sequence[Any]], count: int) -> list[list[Any]]:
    """The rows as `count` arrays, one for each column."""
    result: list[list[Any]] = [[] for _ in range(count)]
    for row in rows:
        for values, value in zip(result, row, strict=True):
            values.append(value)
    return result


_LOCK = """
    SELECT r.run_id FROM unnest($1::text[], $2::text[]) AS w (tenant, run_id)
    JOIN runs r USING (tenant, run_id) JOIN conversations c USING (conversation_key)
    ORDER BY c.conversation_key, r.run_key FOR NO KEY UPDATE OF c, r"""

_STATES = f"""
    SELECT w.n::int, w.tenant, r.run_key, r.conversation_key, c.next_position, coalesce($6::bigint, {CLOCK}),
        t.codec, t.body, k.codecs, k.bodies, r.lease_expire_time, r.codec, r.body
    FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS w (tenant, run_id, request_id, n)
    JOIN runs r USING (tenant, run_id) JOIN conversations c USING (conversation_key)
    LEFT JOIN receipts t ON t.run_key = r.run_key AND t.request_id = w.request_id
    CROSS JOIN LATERAL (
        SELECT array_agg(codec) AS codecs, array_agg(body) AS bodies FROM (
            SELECT codec, body FROM calls WHERE run_key = r.run_key AND step = r.step
            UNION ALL
            SELECT codec, body FROM unnest($4::int[], $5::text[]) AS named (n, tool_call_id)
            JOIN calls USING (tool_call_id) WHERE named.n = w.n AND run_key = r.run_key AND step <> r.step) AS found
    ) AS k"""


async def lock_runs(db: Connection, wanted: Sequence[Wanted]) -> None:
    """Locks these runs and their conversations to the end of the transaction, so that what is read next stays true."""
    await db.execute(_LOCK, *columns(((each.tenant, each.run_id) for each in wanted), 2))


async def load_states(db: Reader, wanted: Sequence[Wanted], clock: int | None) -> list[Found | None]:
    """What moves of these runs see, each in its place; None for a run that is not there."""
    named = ((n, column(i)) for n, each in enumerate(wanted, 1) for i in dict.fromkeys(each.call_ids))
    which = columns(((each.tenant, each.run_id, each.request_id) for each in wanted), 3)
    result: list[Found | None] = [None] * len(wanted)
    for (
        n,
        tenant,
        run_key,
        conversation_key,
        position,
        now,
        *receipt,
        codecs,
        bodies,
        lease,
        version,
        body,
    ) in await db.fetch(_STATES, *which, *columns(named, 2), clock):
        calls = tuple(codec.decode_call(*each) for each in zip(codecs or (), bodies or (), strict=True))
        accepted = codec.decode_receipt(*receipt) if receipt[1] is not None else None
        state = RunState(run_of(lease, version, body), calls, position, accepted, now)
        result[n - 1] = Found(tenant, run_key, conversation_key, state)
    return result


async def load_state(db: Reader, wanted: Wanted, clock: int | None) -> Found:
    """What a move of this run sees. Raises RUN_NOT_FOUND."""
    (found,) = await load_states(db, [wanted], clock)
    if found is None:
        raise run_not_found(wanted.run_id)
    return found


# One statement: the triggers see all of it.
_WRITE = """
    WITH added_calls AS (
        INSERT INTO calls (tenant, run_key, name, executor, tool_call_id, step, pending_time, state, deadline,
            claim_expire_time, codec, body)
        SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::int[], $7::bigint[],
            $8::text[], $9::bigint[], $10::bigint[], $11::int[], $12::text[])
        ON CONFLICT (tool_call_id) DO UPDATE SET tenant = excluded.tenant, run_key = excluded.run_key,
            pending_time = excluded.pending_time, state = excluded.state, deadline = excluded.deadline,
            claim_expire_time = excluded.claim_expire_time, codec = excluded.codec, body = excluded.body
    ), added_messages AS (
        INSERT INTO messages (conversation_key, position, message_id, run_id, step_id, create_time, kind, codec, body)
        SELECT * FROM unnest($13::bigint[], $14::bigint[], $15::text[], $16::text[], $17::text[], $18::bigint[],
            $19::text[], $20::int[], $21::text[])
    ), moved_conversations AS (
        UPDATE conversations c SET next_position = w.next_position
        FROM unnest($22::bigint[], $23::bigint[]) AS w (conversation_key, next_position)
        WHERE c.conversation_key = w.conversation_key
    ), added_events AS (
        INSERT INTO events (run_key, sequence, step_id, create_time, kind, position, codec, body)
        SELECT * FROM unnest($24::bigint[], $25::bigint[], $26::text[], $27::bigint[], $28::text[], $29::bigint[],
            $30::int[], $31::text[])
    ), added_receipts AS (
        INSERT INTO receipts (run_key, request_id, codec, body)
        SELECT * FROM unnest($32::bigint[], $33::text[], $34::int[], $35::text[])
    )
    UPDATE runs r SET step = w.step, status = w.status, epoch = w.epoch, owner = w.owner,
        lease_expire_time = w.lease_expire_time, pause_expire_time = w.pause_expire_time,
        last_sequence = w.last_sequence, codec = w.codec, body = w.body
    FROM unnest($36::bigint[], $37::int[], $38::text[], $39::bigint[], $40::text[], $41::bigint[], $42::bigint[],
        $43::bigint[], $44::int[], $45::text[]) AS w (run_key, step, status, epoch, owner, lease_expire_time,
        pause_expire_time, last_sequence, codec, body)
    WHERE r.run_key = w.run_key AND r.body <> w.body"""


async def write_changes(db: Connection, writes: Sequence[Written]) -> None:
    """Writes what moves did, at most one for each run and each conversation. The runs are there, and are locked.

    A row of a run that stays as it is is not written, because that of a run that is over cannot be.
    """
    calls = [
        (tenant, key, column(call.name), call.executor.value, *call_columns(call))
        for tenant, key, _, change in writes
        for call in change.calls
    ]
    messages = [(key, *message_columns(message)) for _, _, key, change in writes for message in change.messages]
    positions = [(key, change.next_position) for _, _, key, change in writes if change.messages]
    events = [(key, *event_columns(event)) for _, key, _, change in writes for event in change.events]
    receipts = [
        (key, change.receipt.request_id, codec.CODEC_VERSION, codec.encode(change.receipt))
        for _, key, _, change in writes
        if change.receipt is not None
    ]
    runs = [(key, change.run.steps_taken, *run_columns(change.run)) for _, key, _, change in writes]
    parts = ((calls, 12), (messages, 9), (positions, 2), (events, 8), (receipts, 4), (runs, 10))
    await db.execute(_WRITE, *(values for rows, count in parts for values in columns(rows, count)))
    if of_memory := [each for each in writes if each.change.memory_matters]:
        await note_stops(db, of_memory)


async def load_pinned(database: Database, tenant: str, run_id: str) -> Pinned:
    """What a run is pinned to. Raises RUN_NOT_FOUND."""
    rows = await database.fetch(
        "SELECT p.codec, p.body FROM runs r JOIN pins p USING (pin_key) WHERE r.tenant = $1 AND run_id = $2",
        tenant,
        run_id,
    )
    if not rows:
        raise run_not_found(run_id)
    return codec.decode_pinned(*rows[0])


# The sizes are known without reading what is stored apart from its row. A limit is a number in the text, so that the
# plan is made for a few rows.
_EVENTS = f"""
    SELECT * FROM (
        SELECT {EVENT_COLUMNS}, sum(octet_length(coalesce(e.body, m.body))) OVER (ORDER BY e.sequence)
            - octet_length(coalesce(e.body, m.body)) AS bytes_before
        FROM runs r CROSS JOIN LATERAL (
            SELECT * FROM events WHERE run_key = r.run_key AND sequence > $3 ORDER BY sequence LIMIT {{limit:d}}) AS e
        LEFT JOIN messages m ON m.conversation_key = r.conversation_key AND m.position = e.position
        LEFT JOIN conversations c ON c.conversation_key = m.conversation_key
        WHERE r.tenant = $1 AND r.run_id = $2
    ) AS page WHERE bytes_before < {PAGE_BYTES} ORDER BY sequence"""


async def load_events(database: Database, tenant: str, run_id: str, after: int, limit: int) -> tuple[Event, ...]:
    """A page of events. Raises RUN_NOT_FOUND."""
    rows = await database.fetch(_EVENTS.format(limit=limit), tenant, run_id, after)
    if not rows and not await database.fetch("SELECT FROM runs WHERE tenant = $1 AND run_id = $2", tenant, run_id):
        raise run_not_found(run_id)
    return tuple(event_of(run_id, *columns) for *columns, _ in rows)


def _messages(order: str, beyond: str) -> str:
    return f"""
        SELECT {MESSAGE_COLUMNS} FROM (
            SELECT *, sum(octet_length(body)) OVER (ORDER BY position {order}) - octet_length(body) AS bytes_before
            FROM (
                SELECT * FROM messages
                WHERE conversation_key = $1 AND position {beyond} $2 AND ($3 = '' OR run_id = $3)
                ORDER BY position {order} LIMIT {{limit:d}}) AS page
        ) AS m JOIN conversations c USING (conversation_key)
        WHERE m.bytes_before < {PAGE_BYTES} ORDER BY m.position {order}"""


_ASCENDING, _DESCENDING = _messages("ASC", ">"), _messages("DESC", "<")


async def load_messages(
    database: Database, tenant: str, conversation_id: str, after: int, limit: int, *, descending: bool, run_id: str
) -> tuple[Message, ...]:
    """A page of messages. Raises CONVERSATION_NOT_FOUND."""
    found = await database.fetch(
        "SELECT conversation_key, next_position FROM conversations WHERE tenant = $1 AND conversation_id = $2",
        tenant,
        conversation_id,
    )
    if not found:
        raise conversation_not_found(conversation_id)
    ((key, next_position),) = found
    start = after or (next_position if descending else 0)
    page = (_DESCENDING if descending else _ASCENDING).format(limit=limit)
    rows = await database.fetch(page, key, start, run_id)
    return tuple(message_of(*row) for row in rows)


async def delete_runs(db: Connection, run_keys: Collection[int], now: int) -> None:
    """Deletes runs and what belongs to them, and keeps their ids from being used again for a while."""
    await db.execute(
        "INSERT INTO tombstones SELECT tenant, run_id, $2 FROM runs WHERE run_key = ANY($1::bigint[]) "
        "ON CONFLICT (tenant, run_id) DO UPDATE SET expire_time = excluded.expire_time",
        list(run_keys),
        now + TOMBSTONE_SECONDS * 10**9,
    )
    for table in ("receipts", "calls", "events", "runs"):
        await db.execute(f"DELETE FROM {table} WHERE run_key = ANY($1::bigint[])", list(run_keys))
