"""The store on one SQLite file: WAL, synchronous=FULL, one writer thread that commits waiting writes together."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from agent_service.domain.draft import Change, Draft, NewId, Snapshot
from agent_service.domain.errors import AgentServiceError, Reason, StaleClaimError
from agent_service.domain.event import Event
from agent_service.domain.memory import BlockRecord
from agent_service.domain.memory_work import DueWork
from agent_service.domain.message import Message
from agent_service.domain.moves import abandon
from agent_service.domain.registry import CallFilter, Page, RunFilter, WaitingCall, run_active
from agent_service.domain.run import Claim, Owner, Pinned, Run, RunStatus
from agent_service.domain.start import ConversationState, NewRun, Started, StartPlan, plan_queued, plan_start
from agent_service.domain.values import replace
from agent_service.engine.store import Committed, Move, Publish, Standing, T
from agent_service.stores import sqlite_block_rows as block_rows
from agent_service.stores import sqlite_leases as leases
from agent_service.stores import sqlite_lists as lists
from agent_service.stores import sqlite_rows as rows
from agent_service.stores import sqlite_work as work_rows
from agent_service.stores.errors import run_id_deleted
from agent_service.stores.sqlite_presence import Presence
from agent_service.stores.sqlite_thread import BUSY_SECONDS, SqliteThread, Work, open_database, open_reader

W = TypeVar("W")


class Transact(Protocol):
    """Runs work on a connection."""

    def __call__(self, work: Work[W], /) -> Awaitable[W]:
        """Its result."""


_Published = tuple[str, str, tuple[Event, ...]]


class SqliteStore:
    """Implements RunStore. Make it inside the running event loop. Raises SchemaError if the file cannot be used.

    `busy_seconds` is how long a write waits for another process that holds the file.
    """

    name = "sqlite"

    def __init__(
        self,
        path: Path,
        *,
        publish: Publish,
        clock: Callable[[], int],
        new_id: NewId,
        busy_seconds: float = BUSY_SECONDS,
        committed: Committed | None = None,
    ) -> None:
        self._publish = publish
        self._clock = clock
        self._new_id = new_id
        database = open_database(path, busy_seconds)
        self._presence = Presence(path)
        if self._presence.alone:
            leases.end_all(database, clock())
        self._presence.share()
        self._data_version = 0
        self._writer = SqliteThread(database, "sqlite-writer", begin="BEGIN IMMEDIATE", committed=committed)
        self._reader = SqliteThread(open_reader(path, busy_seconds), "sqlite-reader", begin="BEGIN")

    @property
    def queued(self) -> int:
        """Writes that wait for their turn."""
        return self._writer.queued

    @property
    def write(self) -> Transact:
        """Runs work as a transaction of the writer."""
        return self._writer.run

    @property
    def read(self) -> Transact:
        """Runs work on the reader."""
        return self._reader.run

    def now(self) -> int:
        """The host's clock."""
        return self._clock()

    async def start(self, tenant: str, new: NewRun) -> Started:
        """See RunStore."""

        def work(db: sqlite3.Connection) -> tuple[Started, list[_Published]]:
            plan = self._plan_start(db, tenant, new)
            if not plan.started.joined:
                work_rows.take(db, tenant, plan.started.run)
                self._write_start(db, tenant, new, plan)
            return plan.started, [(tenant, c.run.run_id, c.events) for c in plan.changes]

        return await self._write(work)

    async def queued_runs(self, limit: int) -> tuple[tuple[str, str], ...]:
        """See RunStore."""
        return await self._reader.run(lambda db: leases.queued_runs(db, limit))

    async def begin(self, tenant: str, run_id: str, owner: Owner) -> Started | None:
        """See RunStore."""

        def work(db: sqlite3.Connection) -> tuple[Started | None, list[_Published]]:
            run_key, run = rows.load_run(db, tenant, run_id)
            now, key = self._clock(), rows.conversation_of(db, run_key)
            state = rows.load_state(db, run_key, run, now)
            conversation = rows.load_conversation(db, key, state.next_position, run.conversation_time, now)
            plan = plan_queued(state, conversation, owner, self._new_id)
            if plan is None:
                return None, []
            for change in plan.changes:
                rows.write_change(db, tenant, rows.load_run(db, tenant, change.run.run_id)[0], key, change)
            return plan.started, [(tenant, c.run.run_id, c.events) for c in plan.changes]

        return await self._write(work)

    async def preview_start(self, tenant: str, new: NewRun) -> Started:
        """See RunStore."""
        return (await self._reader.run(lambda db: self._plan_start(db, tenant, new))).started

    async def move(
        self, tenant: str, run_id: str, move: Move[T], *, call_ids: tuple[str, ...] = (), request_id: str = ""
    ) -> T:
        """See RunStore."""
        return await self._move(tenant, run_id, move, call_ids, request_id, None)

    async def owner_move(self, claim: Claim, move: Move[T], *, block_ids: tuple[str, ...] = ()) -> T:
        """See RunStore."""
        return await self._move(claim.tenant, claim.run_id, move, (), "", claim, block_ids)

    async def preview(
        self, tenant: str, run_id: str, move: Move[T], *, call_ids: tuple[str, ...] = (), request_id: str = ""
    ) -> tuple[T, Change | None]:
        """See RunStore."""

        def work(db: sqlite3.Connection) -> tuple[T, Change | None]:
            run_key, run = rows.load_run(db, tenant, run_id)
            draft = self._draft(db, run_key, run, call_ids, request_id)
            return move(draft), draft.change()

        return await self._reader.run(work)

    async def get_run(self, tenant: str, run_id: str) -> Snapshot:
        """See RunStore."""

        def work(db: sqlite3.Connection) -> Snapshot:
            run_key, run = rows.load_run(db, tenant, run_id)
            return self._draft(db, run_key, run).snapshot

        return await self._reader.run(work)

    async def get_pinned(self, tenant: str, run_id: str) -> Pinned:
        """See RunStore."""
        return await self._reader.run(lambda db: rows.load_pinned(db, tenant, run_id))

    async def memory_blocks(self, tenant: str, block_ids: tuple[str, ...]) -> tuple[BlockRecord, ...]:
        """See RunStore."""
        return await self._reader.run(lambda db: block_rows.load_blocks(db, tenant, block_ids))

    async def events(self, tenant: str, run_id: str, after: int, limit: int) -> tuple[Event, ...]:
        """See RunStore."""

        def work(db: sqlite3.Connection) -> tuple[Event, ...]:
            run_key, _ = rows.load_run(db, tenant, run_id)
            return rows.load_events(db, run_key, run_id, after, limit)

        return await self._reader.run(work)

    async def messages(
        self,
        tenant: str,
        conversation_id: str,
        after: int,
        limit: int,
        *,
        descending: bool = False,
        run_id: str = "",
    ) -> tuple[Message, ...]:
        """See RunStore."""
        return await self._reader.run(
            lambda db: rows.load_messages(
                db, tenant, conversation_id, after, limit, descending=descending, run_id=run_id
            )
        )

    async def list_runs(self, tenant: str, which: RunFilter, page: Page) -> tuple[Snapshot, ...]:
        """See RunStore."""
        return await self._reader.run(lambda db: lists.load_runs(db, tenant, which, page, self._clock(), self._new_id))

    async def waiting_calls(self, tenant: str, which: CallFilter, page: Page) -> tuple[WaitingCall, ...]:
        """See RunStore."""
        return await self._reader.run(lambda db: lists.load_waiting(db, tenant, which, page))

    async def claim_calls(
        self, tenant: str, which: CallFilter, worker_id: str, lease: int, limit: int
    ) -> tuple[tuple[WaitingCall, str], ...]:
        """See RunStore."""

        def work(db: sqlite3.Connection) -> tuple[tuple[tuple[WaitingCall, str], ...], list[_Published]]:
            return lists.claim_calls(db, tenant, which, worker_id, self._clock(), lease, limit, self._new_id), []

        return await self._write(work)

    async def delete_run(self, tenant: str, run_id: str) -> None:
        """See RunStore."""

        def work(db: sqlite3.Connection) -> tuple[None, list[_Published]]:
            run_key, run = rows.load_run(db, tenant, run_id)
            if run.status.active:
                raise run_active("run_id", run_id, run.status)
            told = self._settle(db, tenant, run_key, run) if run.status is RunStatus.INTERRUPTED else []
            rows.delete_run_rows(db, run_key)
            rows.bury_run(db, tenant, run_id, self._clock())
            return None, told

        await self._write(work)

    async def renew(self, claims: Collection[Claim], lease: int) -> tuple[Claim, ...]:
        """See RunStore."""
        return await self._writer.run(lambda db: leases.renew(db, claims, self._clock() + lease))

    async def lost_runs(self, limit: int) -> tuple[tuple[str, str], ...]:
        """See RunStore."""
        return await self._reader.run(lambda db: leases.lost_runs(db, self._clock(), limit))

    async def due_runs(self, limit: int) -> tuple[tuple[str, str], ...]:
        """See RunStore."""
        return await self._reader.run(lambda db: leases.due_runs(db, self._clock(), limit))

    async def memory_work(self, limit: int) -> tuple[DueWork, ...]:
        """See RunStore."""
        return await self._reader.run(lambda db: work_rows.due_work(db, self._clock(), limit))

    async def postpone(self, due: DueWork) -> None:
        """See RunStore."""
        await self._writer.run(lambda db: work_rows.postpone(db, due, self._clock()))

    async def pending_calls(self) -> tuple[int, int]:
        """See RunStore."""
        return await self._reader.run(lists.count_pending)

    async def trim_events(self, ended_before: int, limit: int) -> int:
        """See RunStore."""

        def work(db: sqlite3.Connection) -> tuple[int, list[_Published]]:
            return rows.trim_events(db, ended_before, limit), []

        found = await self._reader.run(lambda db: rows.ended_runs(db, ended_before, 1))
        return await self._write(work) if found else 0

    async def written_elsewhere(self) -> bool:
        """See RunStore. The writer's connection counts the commits of others only."""
        version = await self._writer.run_outside(leases.data_version)
        changed, self._data_version = version != self._data_version, version
        return changed

    async def standing(self, runs: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], Standing]:
        """See RunStore."""
        return await self._reader.run(lambda db: leases.standing(db, runs))

    async def close(self) -> None:
        """See RunStore."""
        await self._reader.close()
        await self._writer.close()
        self._presence.close()

    async def _move(
        self,
        tenant: str,
        run_id: str,
        move: Move[T],
        call_ids: tuple[str, ...],
        request_id: str,
        claim: Claim | None,
        block_ids: tuple[str, ...] = (),
    ) -> T:
        def work(db: sqlite3.Connection) -> tuple[T, list[_Published]]:
            run_key, run = rows.load_run(db, tenant, run_id)
            if claim is not None and claim.epoch != run.epoch:
                raise StaleClaimError(claim)
            state = rows.load_state(db, run_key, run, self._clock(), call_ids, request_id)
            if block_ids:
                state = replace(state, blocks=block_rows.load_blocks(db, tenant, block_ids))
            draft = Draft(state, self._new_id)
            result = move(draft)
            change = draft.change()
            if change is None:
                return result, []
            rows.write_change(db, tenant, run_key, rows.conversation_of(db, run_key), change)
            if change.blocks:
                block_rows.put_blocks(db, tenant, change.blocks)
            return result, [(tenant, run_id, change.events)]

        return await self._write(work)

    async def _write(self, work: Work[tuple[W, list[_Published]]]) -> W:
        """A transaction, whose events are told when it is committed."""
        try:
            return (await self._writer.run(work, self._tell))[0]
        except AgentServiceError as error:
            if error.reason is Reason.STORE_UNAVAILABLE:
                # It may be committed all the same, and nobody was told: look, as if another process had written.
                self._data_version = 0
            raise

    def _settle(self, db: sqlite3.Connection, tenant: str, run_key: int, run: Run) -> list[_Published]:
        """Ends an interrupted run, so that none of its calls is left without outcome."""
        draft = self._draft(db, run_key, run)
        abandon(draft)
        change = draft.change()
        assert change is not None
        rows.write_change(db, tenant, run_key, rows.conversation_of(db, run_key), change)
        return [(tenant, run.run_id, change.events)]

    def _draft(
        self, db: sqlite3.Connection, run_key: int, run: Run, call_ids: tuple[str, ...] = (), request_id: str = ""
    ) -> Draft:
        return Draft(rows.load_state(db, run_key, run, self._clock(), call_ids, request_id), self._new_id)

    def _plan_start(self, db: sqlite3.Connection, tenant: str, new: NewRun) -> StartPlan:
        now = self._clock()
        if rows.is_buried(db, tenant, new.run.run_id, now):
            raise run_id_deleted(new.run.run_id)
        existing = rows.find_run(db, tenant, new.run.run_id)
        found = rows.find_conversation(db, tenant, new.run.conversation_id)
        if found is not None:
            state: ConversationState | None = rows.load_conversation(db, *found, now)
        else:
            state = ConversationState(1, None) if new.new_conversation else None
        return plan_start(new, existing[1] if existing else None, state, now, self._new_id)

    def _write_start(self, db: sqlite3.Connection, tenant: str, new: NewRun, plan: StartPlan) -> None:
        run = plan.started.run
        found = rows.find_conversation(db, tenant, run.conversation_id)
        key = found[0] if found else rows.insert_conversation(db, tenant, run.conversation_id, run.create_time)
        for change in plan.changes[:-1]:
            settled_key, _ = rows.load_run(db, tenant, change.run.run_id)
            rows.write_change(db, tenant, settled_key, key, change)
        run_key = rows.insert_run(db, tenant, run, key, rows.ensure_pin(db, tenant, new.pinned))
        rows.write_change(db, tenant, run_key, key, plan.changes[-1])

    def _tell(self, written: tuple[object, list[_Published]]) -> None:
        for tenant, run_id, events in written[1]:
            self._publish(tenant, run_id, events)
