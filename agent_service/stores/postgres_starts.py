"""Starts of runs in PostgreSQL, many at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from agent_service.domain.draft import NewId
from agent_service.domain.memory_work import WorkTakenError
from agent_service.domain.run import Pinned
from agent_service.domain.start import ConversationState, NewRun, Started, StartPlan, plan_start
from agent_service.stores import postgres_rows as rows
from agent_service.stores.errors import run_id_deleted
from agent_service.stores.postgres_hints import CLOCK, Hints
from agent_service.stores.postgres_rows import Found, Wanted, Written, column, columns
from agent_service.stores.postgres_work import take
from agent_service.stores.records import pin_columns, run_columns, run_of

if TYPE_CHECKING:
    from agent_service.stores.postgres_batches import Job
    from agent_service.stores.postgres_database import Connection

Ask = tuple[str, NewRun]
"""Whose start it is, and the start."""

_LOCK = """
    SELECT c.conversation_key FROM unnest($1::text[], $2::text[]) AS w (tenant, conversation_id)
    JOIN conversations c USING (tenant, conversation_id) ORDER BY c.conversation_key FOR NO KEY UPDATE OF c"""

_QUEUE = "ARRAY(SELECT run_id FROM runs q WHERE q.conversation_key = {} AND status = 'queued' ORDER BY run_key)"
_UNSETTLED = "u.status IN ('running', 'paused', 'interrupted')"

_LOAD = f"""
    SELECT w.n::int, now, x.lease_expire_time, x.codec, x.body,
        EXISTS (SELECT FROM tombstones t WHERE t.tenant = w.tenant AND t.run_id = w.run_id AND t.expire_time > now),
        c.conversation_key, c.next_position, c.create_time, u.run_id, {_QUEUE.format("c.conversation_key")}
    FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS w (tenant, run_id, conversation_id, n)
    CROSS JOIN LATERAL (SELECT coalesce($4::bigint, {CLOCK}) AS now) AS clock
    LEFT JOIN runs x ON x.tenant = w.tenant AND x.run_id = w.run_id
    LEFT JOIN conversations c ON c.tenant = w.tenant AND c.conversation_id = w.conversation_id
    LEFT JOIN runs u ON u.conversation_key = c.conversation_key AND {_UNSETTLED}"""

_INSERT = """
    WITH made AS (
        INSERT INTO conversations (tenant, conversation_id, create_time)
        SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[])
        RETURNING conversation_key, tenant, conversation_id
    )
    INSERT INTO runs (tenant, run_id, conversation_key, pin_key, agent_id, create_time, labels, step, status, epoch,
        owner, lease_expire_time, pause_expire_time, last_sequence, codec, body, parent_run_id)
    SELECT tenant, run_id, coalesce(w.conversation_key, made.conversation_key), pin_key, agent_id, create_time,
        labels::jsonb, step, status, epoch, owner, lease_expire_time, pause_expire_time, last_sequence, codec, body,
        parent_run_id
    FROM unnest($4::text[], $5::text[], $6::text[], $7::bigint[], $8::text[], $9::bigint[], $10::text[], $11::int[],
        $12::text[], $13::bigint[], $14::text[], $15::bigint[], $16::bigint[], $17::bigint[], $18::int[], $19::text[],
        $20::text[], $21::bigint[]) AS w (tenant, run_id, conversation_id, conversation_key, agent_id, create_time,
        labels, step, status, epoch, owner, lease_expire_time, pause_expire_time, last_sequence, codec, body,
        parent_run_id, pin_key)
    LEFT JOIN made USING (tenant, conversation_id)
    RETURNING tenant, run_id, run_key, conversation_key"""


class _Seen(NamedTuple):
    """What a start sees: the run of its id, if there is one, and its conversation, if it exists."""

    now: int
    lease_expire_time: int
    codec: int
    body: str | None
    buried: bool
    key: int | None
    next_position: int
    create_time: int
    current_id: str | None
    queue: list[str]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What becomes of a start. `conversation_key` is None for a conversation that is made."""

    tenant: str
    new: NewRun
    plan: StartPlan
    conversation_key: int | None
    current: Found | None


class Starts:
    """Plans and stores starts."""

    def __init__(self, hints: Hints, new_id: NewId) -> None:
        self._hints = hints
        self._new_id = new_id

    async def preview(self, db: Connection, ask: Ask) -> Started:
        """What a start would do and say."""
        (plan,) = await self._plan_all(db, [ask], lock=False)
        if isinstance(plan, Exception):
            raise plan
        return plan.plan.started

    async def start_all(self, db: Connection, jobs: Sequence[Job[Ask]]) -> None:
        """Starts them, each in another conversation."""
        plans: list[_Plan] = []
        for job, plan in zip(jobs, await self._plan_all(db, [job.what for job in jobs], lock=True), strict=True):
            if isinstance(plan, Exception):
                job.error = plan
                continue
            if plan.new.run.memory_part is not None and not plan.plan.started.joined:
                try:
                    await take(db, plan.tenant, plan.new.run)
                except WorkTakenError as error:
                    job.error = error
                    continue
            job.result = plan.plan.started
            job.told = [(plan.tenant, change.run.run_id, change.events) for change in plan.plan.changes]
            if not plan.plan.started.joined:
                plans.append(plan)
        if not plans:
            return
        # Those that have to make room do so first: a conversation has one run that is running or paused.
        ended = [
            Written(plan.tenant, plan.current.run_key, plan.current.conversation_key, change)
            for plan in plans
            if plan.current is not None
            for change in plan.plan.changes[:-1]
        ]
        if ended:
            await rows.write_changes(db, ended)
        keys = await self._insert(db, plans)
        await rows.write_changes(
            db, [Written(p.tenant, *keys[p.tenant, p.new.run.run_id], p.plan.changes[-1]) for p in plans]
        )

    async def _plan_all(self, db: Connection, asks: Sequence[Ask], *, lock: bool) -> list[_Plan | Exception]:
        old = [(tenant, new.run.conversation_id) for tenant, new in asks if not new.new_conversation]
        if lock and old:
            await db.execute(_LOCK, *columns(old, 2))
        which = columns(((tenant, new.run.run_id, new.run.conversation_id) for tenant, new in asks), 3)
        found = {n: _Seen(*row) for n, *row in await db.fetch(_LOAD, *which, self._hints.clock)}
        wanted = [Wanted(asks[n - 1][0], seen.current_id) for n, seen in found.items() if seen.current_id is not None]
        if lock and wanted:
            await rows.lock_runs(db, wanted)
        states = await rows.load_states(db, wanted, self._hints.clock) if wanted else []
        current: dict[tuple[str, str | None], Found] = {
            (each.tenant, each.state.run.run_id): each for each in states if each is not None
        }
        return [
            self._plan(tenant, new, found[n], current.get((tenant, found[n].current_id)))
            for n, (tenant, new) in enumerate(asks, 1)
        ]

    def _plan(self, tenant: str, new: NewRun, seen: _Seen, current: Found | None) -> _Plan | Exception:
        state: ConversationState | None = None
        if seen.key is not None:
            busy = current.state if current else None
            state = ConversationState(seen.next_position, busy, tuple(seen.queue), seen.create_time)
        elif new.new_conversation:
            state = ConversationState(1, None)
        existing = None if seen.body is None else run_of(seen.lease_expire_time, seen.codec, seen.body)
        try:
            if seen.buried:
                raise run_id_deleted(new.run.run_id)
            return _Plan(tenant, new, plan_start(new, existing, state, seen.now, self._new_id), seen.key, current)
        except Exception as error:
            return error

    async def _insert(self, db: Connection, plans: Sequence[_Plan]) -> dict[tuple[str, str], tuple[int, int]]:
        """Makes the rows of these runs and of their new conversations; the keys of both."""
        pins = await _pin(db, [(plan.tenant, plan.new.pinned) for plan in plans])
        made = [
            (plan.tenant, plan.new.run.conversation_id, plan.plan.started.run.create_time)
            for plan in plans
            if plan.conversation_key is None
        ]
        inserted = [(*_run_row(plan), pin) for plan, pin in zip(plans, pins, strict=True)]
        result = await db.fetch(_INSERT, *columns(made, 3), *columns(inserted, 18))
        return {(tenant, run_id): (run_key, conversation_key) for tenant, run_id, run_key, conversation_key in result}


async def _pin(db: Connection, wanted: Sequence[tuple[str, Pinned]]) -> list[int]:
    """The keys of what runs are pinned to; equal ones are stored once.

    None is remembered: a database that fails over to an asynchronous standby, or is restored, may not have it, or
    have given its key to another one.
    """
    pins = [(tenant, *pin_columns(pinned)) for tenant, pinned in wanted]
    ids = columns((pin[:2] for pin in pins), 2)
    keys = await _found_pins(db, ids)
    missing = sorted({pin for pin in pins if pin[:2] not in keys})
    if missing:
        await db.execute(_INSERT_PINS, *columns(missing, 4))
        keys = await _found_pins(db, ids)
    return [keys[pin[:2]] for pin in pins]


async def _found_pins(db: Connection, ids: list[list[str]]) -> dict[tuple[str, str], int]:
    return {(tenant, digest): key for tenant, digest, key in await db.fetch(_FIND_PINS, *ids)}


_INSERT_PINS = """
    INSERT INTO pins (tenant, sha256, codec, body)
    SELECT * FROM unnest($1::text[], $2::text[], $3::int[], $4::text[]) ON CONFLICT (tenant, sha256) DO NOTHING"""

_FIND_PINS = """
    SELECT DISTINCT tenant, sha256, pin_key FROM unnest($1::text[], $2::text[]) AS w (tenant, sha256)
    JOIN pins USING (tenant, sha256)"""


async def load_conversation(db: Connection, of: Found, clock: int | None) -> ConversationState:
    """What the beginning of a queued run sees of its conversation, which is locked."""
    row = await db.fetchrow(
        f"SELECT {_QUEUE.format('$1')}, (SELECT run_id FROM runs u WHERE conversation_key = $1 AND {_UNSETTLED})",
        of.conversation_key,
    )
    assert row is not None
    queue, current_id = row
    current = await rows.load_state(db, Wanted(of.tenant, current_id), clock) if current_id is not None else None
    state = of.state
    return ConversationState(
        state.next_position, current.state if current else None, tuple(queue), state.run.conversation_time
    )


def _run_row(plan: _Plan) -> tuple[object, ...]:
    """The row of a new run, but for its pin."""
    run = plan.plan.started.run
    labels = json.dumps({key: column(value) for key, value in run.labels.items()})
    return (
        plan.tenant,
        run.run_id,
        run.conversation_id,
        plan.conversation_key,
        run.agent_id,
        run.create_time,
        labels,
        run.steps_taken,
        *run_columns(run),
        run.parent_run_id,
    )
