"""The SQL of lists in PostgreSQL: filters, pages and claims."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_service.domain.claims import MAX_CLAIMED_BYTES, claimed
from agent_service.domain.draft import NewId
from agent_service.domain.registry import CallFilter, Conversation, Page, RunFilter, WaitingCall
from agent_service.domain.tool import PendingKind, pending_of
from agent_service.domain.values import replace
from agent_service.stores import codec
from agent_service.stores.postgres_hints import CLOCK
from agent_service.stores.postgres_rows import Wanted, column, columns, lock_runs

if TYPE_CHECKING:
    import asyncpg

    from agent_service.stores.postgres_database import Connection
    from agent_service.stores.postgres_rows import Reader

_EXECUTOR_OF = {PendingKind.CLIENT_EXECUTION: "client", PendingKind.APPROVAL: "server"}


async def count_pending(db: Connection) -> tuple[int, int]:
    """See RunStore.pending_calls."""
    row = await db.fetchrow("SELECT count(*), coalesce(min(pending_time), 0) FROM calls WHERE state = 'pending'")
    assert row is not None
    return row[0], row[1]


class _Where:
    """Conditions that must all hold, and their values. In a condition `{}` stands for its value."""

    def __init__(self, condition: str, *values: object) -> None:
        self._conditions: list[str] = []
        self.values: list[object] = []
        self.add(condition, *values)

    def add(self, condition: str, *values: object) -> None:
        """One more condition."""
        self._conditions.append(condition.format(*(self._place(value) for value in values)))

    def add_if(self, value: str | int, condition: str) -> None:
        """A condition on a value, unless that is empty."""
        if value:
            self.add(condition, column(value) if isinstance(value, str) else value)

    def add_labels(self, condition: str, labels: tuple[tuple[str, str], ...]) -> None:
        """All these labels."""
        if labels:
            self.add(condition, json.dumps({key: column(value) for key, value in labels}))

    def ordered(self, page: Page, time: str, row_id: str) -> str:
        """The rest of the statement: conditions, order and limit of a page."""
        beyond, order = ("<", "DESC") if page.descending else (">", "ASC")
        if page.id:
            self.add(f"({time}, {row_id}) {beyond} ({{}}::bigint, {{}})", page.time, page.id)
        conditions = " AND ".join(self._conditions)
        # A number, so that the plan is made for a few rows: for an unknown number it might sort all of them.
        return f"WHERE {conditions} ORDER BY {time} {order}, {row_id} {order} LIMIT {page.limit:d}"

    def _place(self, value: object) -> str:
        self.values.append(value)
        return f"${len(self.values)}"


async def find_runs(db: Connection, tenant: str, which: RunFilter, page: Page) -> list[Wanted]:
    """The runs of a page."""
    where = _Where("r.tenant = {}", tenant)
    if which.statuses:
        where.add("r.status = ANY({}::text[])", sorted(status.value for status in which.statuses))
    where.add_if(which.agent_id, "r.agent_id = {}")
    where.add_if(which.conversation_id, "c.conversation_id = {}")
    where.add_if(which.parent_run_id, "r.parent_run_id <> '' AND r.parent_run_id = {}")
    where.add_if(which.create_from, "r.create_time >= {}")
    where.add_if(which.create_before, "r.create_time < {}")
    where.add_labels("r.labels @> {}::jsonb", which.labels)
    rest = where.ordered(page, "r.create_time", "r.run_id")
    found = await db.fetch(
        f"SELECT r.run_id FROM runs r JOIN conversations c USING (conversation_key) {rest}", *where.values
    )
    return [Wanted(tenant, run_id) for (run_id,) in found]


def _pending(tenant: str, which: CallFilter) -> _Where:
    where = _Where("k.tenant = {} AND k.state = 'pending'", tenant)
    where.add_if(which.agent_id, "r.agent_id = {}")
    where.add_if(which.conversation_id, "c.conversation_id = {}")
    where.add_if(which.tool_name, "k.name = {}")
    where.add_labels("r.labels @> {}::jsonb", which.labels)
    where.add_if(which.pending_before, "k.pending_time < {}")
    if which.kind is not None:
        where.add("k.executor = {}", _EXECUTOR_OF[which.kind])
    return where


_OF_CALLS = "FROM calls k JOIN runs r USING (run_key) JOIN conversations c USING (conversation_key)"
_CALL = "k.codec, k.body, r.run_id, c.conversation_id, r.agent_id"


async def load_waiting(db: Reader, tenant: str, which: CallFilter, page: Page) -> tuple[WaitingCall, ...]:
    """A page of pending calls."""
    where = _pending(tenant, which)
    rest = where.ordered(page, "k.pending_time", "k.tool_call_id")
    return tuple(_waiting(await db.fetch(f"SELECT {_CALL} {_OF_CALLS} {rest}", *where.values)))


def _waiting(found: Iterable[asyncpg.Record]) -> Iterable[WaitingCall]:
    for version, body, run_id, conversation_id, agent_id in found:
        call = codec.decode_call(version, body)
        (pending,) = pending_of((call,))
        claim = (call.worker_id, call.claim_expire_time)
        yield WaitingCall(pending, run_id, conversation_id, agent_id, call.pending_time, *claim)


_CLAIMABLE = (
    "k.state = 'pending' AND k.claim_expire_time <= {0} AND (k.deadline = 0 OR k.deadline > {0}) "
    "AND (r.pause_expire_time = 0 OR r.pause_expire_time > {0})"
)


@dataclass(frozen=True, slots=True)
class Claimer:
    """Claims pending calls of a tenant for a worker, for `lease` nanoseconds."""

    tenant: str
    which: CallFilter
    worker_id: str
    lease: int
    new_id: NewId
    clock: int | None

    async def claim(self, db: Connection, limit: int) -> tuple[tuple[WaitingCall, str], ...]:
        """At most `limit` calls that nobody has, each with the token of its claim."""
        # Those who claim do so one after the other, so that each finds what the others have left.
        await db.execute("SELECT pg_advisory_xact_lock(hashtextextended('claims of ' || $1, 0))", self.tenant)
        now = self.clock if self.clock is not None else await db.fetchval(f"SELECT {CLOCK}")
        ids, runs = await self._candidates(db, now, limit)
        await lock_runs(db, sorted({Wanted(self.tenant, run_id) for run_id in runs}))
        found = await db.fetch(
            f"SELECT {_CALL} {_OF_CALLS} WHERE k.tool_call_id = ANY($1::text[]) AND {_CLAIMABLE.format('$2')} "
            "ORDER BY k.pending_time, k.tool_call_id",
            ids,
            now,
        )
        return await self._take(db, found, now + self.lease)

    async def _candidates(self, db: Connection, now: int, limit: int) -> tuple[list[str], list[str]]:
        """The ids of the calls that may be claimed and of their runs: about as many as may be given out together."""
        where = _pending(self.tenant, self.which)
        where.add(_CLAIMABLE.replace("{0}", "{0}::bigint"), now)
        rest = where.ordered(Page(limit), "k.pending_time", "k.tool_call_id")
        found = await db.fetch(
            "SELECT tool_call_id, run_id FROM (SELECT *, sum(size) OVER (ORDER BY pending_time, tool_call_id) - size "
            "AS before FROM (SELECT k.pending_time, k.tool_call_id, r.run_id, octet_length(k.body) AS size "
            f"{_OF_CALLS} {rest}) AS page) AS sized WHERE before < {MAX_CLAIMED_BYTES}",
            *where.values,
        )
        return [tool_call_id for tool_call_id, _ in found], [run_id for _, run_id in found]

    async def _take(
        self, db: Connection, found: list[asyncpg.Record], until: int
    ) -> tuple[tuple[WaitingCall, str], ...]:
        result: list[tuple[WaitingCall, str]] = []
        taken: list[tuple[str, int, int, str]] = []
        size = 0
        for (version, body, *_), waiting in zip(found, _waiting(found), strict=True):
            size += len(waiting.call.arguments_json.encode())
            if result and size > MAX_CLAIMED_BYTES:
                break
            token = self.new_id("claim")
            call = claimed(codec.decode_call(version, body), self.worker_id, token, until)
            taken.append((call.tool_call_id, until, codec.CODEC_VERSION, codec.encode(call)))
            result.append((replace(waiting, worker_id=self.worker_id, claim_expire_time=until), token))
        await db.execute(
            "UPDATE calls k SET claim_expire_time = w.claim_expire_time, codec = w.codec, body = w.body "
            "FROM unnest($1::text[], $2::bigint[], $3::int[], $4::text[]) "
            "AS w (tool_call_id, claim_expire_time, codec, body) WHERE k.tool_call_id = w.tool_call_id",
            *columns(taken, 4),
        )
        return tuple(result)


_CONVERSATION = (
    "SELECT c.conversation_id, c.create_time, c.labels, c.next_position - 1, coalesce((SELECT run_id FROM runs r "
    "WHERE r.conversation_key = c.conversation_key AND r.status IN ('running', 'paused')), '') FROM conversations c"
)


async def load_conversation_value(db: Reader, tenant: str, conversation_id: str) -> Conversation | None:
    """A conversation."""
    found = await db.fetch(
        f"{_CONVERSATION} WHERE c.tenant = $1 AND c.conversation_id = $2", tenant, column(conversation_id)
    )
    return _conversation(found[0]) if found else None


async def load_conversations(
    db: Reader, tenant: str, labels: tuple[tuple[str, str], ...], page: Page
) -> tuple[Conversation, ...]:
    """A page of conversations."""
    where = _Where("c.tenant = {}", tenant)
    where.add_labels("c.labels @> {}::jsonb", labels)
    rest = where.ordered(page, "c.create_time", "c.conversation_id")
    return tuple(_conversation(row) for row in await db.fetch(f"{_CONVERSATION} {rest}", *where.values))


def _conversation(row: asyncpg.Record) -> Conversation:
    conversation_id, create_time, labels, count, active_run_id = row
    return Conversation(conversation_id, create_time, json.loads(labels), count, active_run_id)
