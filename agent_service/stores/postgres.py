"""The store on a PostgreSQL database, which any number of processes on any number of hosts share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from agent_service.domain.draft import Change, Draft, NewId, RunState, Snapshot
from agent_service.domain.errors import AgentServiceError, StaleClaimError
from agent_service.domain.event import Event
from agent_service.domain.memory import BlockRecord
from agent_service.domain.memory_work import DueWork
from agent_service.domain.message import Message
from agent_service.domain.moves import abandon
from agent_service.domain.registry import CallFilter, Page, RunFilter, WaitingCall, run_active
from agent_service.domain.run import Claim, Owner, Pinned, RunStatus
from agent_service.domain.start import NewRun, Started, plan_queued
from agent_service.domain.values import replace
from agent_service.engine.store import Committed, Move, Publish, Standing, T
from agent_service.stores import postgres_block_rows as block_rows
from agent_service.stores import postgres_leases as leases
from agent_service.stores import postgres_lists as lists
from agent_service.stores import postgres_rows as rows
from agent_service.stores import postgres_work as work_rows
from agent_service.stores.errors import run_not_found
from agent_service.stores.postgres_batches import Batches, Job, Told
from agent_service.stores.postgres_database import POOL_SIZE, Connection, Database, Work
from agent_service.stores.postgres_hints import Hints
from agent_service.stores.postgres_rows import Found, Wanted, Written
from agent_service.stores.postgres_starts import Starts, load_conversation

W = TypeVar("W")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A move that is asked for. `claim` is that of the owner, None for a control move."""

    wanted: Wanted
    move: Move[Any]
    claim: Claim | None


class PostgresStore:
    """Implements RunStore."""

    name = "postgres"

    def __init__(
        self,
        database: Database,
        hints: Hints,
        *,
        publish: Publish,
        new_id: NewId,
        committed: Committed | None = None,
    ) -> None:
        self.database = database
        self.hints = hints
        self._publish = publish
        self._new_id = new_id
        self._starts = Starts(hints, new_id)
        self._moves = Batches(database, self._move_all, self._tell, hints.doubt, committed)
        self._begun = Batches(database, self._starts.start_all, self._tell, hints.doubt, committed)

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        publish: Publish,
        new_id: NewId,
        clock: Callable[[], int] | None = None,
        busy_seconds: float = 5.0,
        connections: int = POOL_SIZE,
        committed: Committed | None = None,
    ) -> PostgresStore:
        """A store on this database. Raises SchemaError if it cannot be used.

        A call waits at most `busy_seconds` for the database. The time is the database's own unless `clock` is given.
        """
        database = await Database.open(url, seconds=busy_seconds, size=connections)
        hints = Hints(url, busy_seconds, clock)
        await hints.synchronize()
        return cls(database, hints, publish=publish, new_id=new_id, committed=committed)

    @property
    def queued(self) -> int:
        """Starts and moves that wait for their turn."""
        return self._begun.waiting + self._moves.waiting

    def now(self) -> int:
        """The database's clock, as far as it is known here: within a round trip."""
        return self.hints.now()

    async def start(self, tenant: str, new: NewRun) -> Started:
        """See RunStore."""
        started: Started = await self._begun.put((tenant, new.run.conversation_id), (tenant, new))
        return started

    async def preview_start(self, tenant: str, new: NewRun) -> Started:
        """See RunStore."""
        return await self.database.read(lambda db: self._starts.preview(db, (tenant, new)))

    async def queued_runs(self, limit: int) -> tuple[tuple[str, str], ...]:
        """See RunStore."""
        return await leases.queued_runs(self.database, limit)

    async def begin(self, tenant: str, run_id: str, owner: Owner) -> Started | None:
        """See RunStore."""

        async def work(db: Connection) -> tuple[Started | None, list[Told]]:
            await rows.lock_runs(db, [Wanted(tenant, run_id)])
            found = await rows.load_state(db, Wanted(tenant, run_id), self.hints.clock)
            conversation = await load_conversation(db, found, self.hints.clock)
            plan = plan_queued(found.state, conversation, owner, self._new_id)
            if plan is None:
                return None, []
            for change in plan.changes:
                run = await rows.load_state(db, Wanted(tenant, change.run.run_id), None)
                await rows.write_changes(db, [_written(run, change)])
            return plan.started, [(tenant, c.run.run_id, c.events) for c in plan.changes]

        return await self._write(work)

    async def move(
        self, tenant: str, run_id: str, move: Move[T], *, call_ids: tuple[str, ...] = (), request_id: str = ""
    ) -> T:
        """See RunStore."""
        return await self._move(Wanted(tenant, run_id, call_ids, request_id), move, None)

    async def owner_move(self, claim: Claim, move: Move[T], *, block_ids: tuple[str, ...] = ()) -> T:
        """See RunStore."""
        return await self._move(Wanted(claim.tenant, claim.run_id, block_ids=block_ids), move, claim)

    async def preview(
        self, tenant: str, run_id: str, move: Move[T], *, call_ids: tuple[str, ...] = (), request_id: str = ""
    ) -> tuple[T, Change | None]:
        """See RunStore."""
        draft = await self._draft(Wanted(tenant, run_id, call_ids, request_id))
        return move(draft), draft.change()

    async def get_run(self, tenant: str, run_id: str) -> Snapshot:
        """See RunStore."""
        return (await self._draft(Wanted(tenant, run_id))).snapshot

    async def get_pinned(self, tenant: str, run_id: str) -> Pinned:
        """See RunStore."""
        return await rows.load_pinned(self.database, tenant, run_id)

    async def memory_blocks(self, tenant: str, block_ids: tuple[str, ...]) -> tuple[BlockRecord, ...]:
        """See RunStore."""
        return await block_rows.load_blocks(self.database, tenant, block_ids)

    async def events(self, tenant: str, run_id: str, after: int, limit: int) -> tuple[Event, ...]:
        """See RunStore."""
        return await rows.load_events(self.database, tenant, run_id, after, limit)

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
        return await rows.load_messages(
            self.database, tenant, conversation_id, after, limit, descending=descending, run_id=run_id
        )

    async def list_runs(self, tenant: str, which: RunFilter, page: Page) -> tuple[Snapshot, ...]:
        """See RunStore."""

        async def work(db: Connection) -> tuple[Snapshot, ...]:
            wanted = await lists.find_runs(db, tenant, which, page)
            found = await rows.load_states(db, wanted, self.hints.clock)
            return tuple(Draft(each.state, self._new_id).snapshot for each in found if each is not None)

        return await self.database.read(work)

    async def waiting_calls(self, tenant: str, which: CallFilter, page: Page) -> tuple[WaitingCall, ...]:
        """See RunStore."""
        return await lists.load_waiting(self.database, tenant, which, page)

    async def claim_calls(
        self, tenant: str, which: CallFilter, worker_id: str, lease: int, limit: int
    ) -> tuple[tuple[WaitingCall, str], ...]:
        """See RunStore."""
        claimer = lists.Claimer(tenant, which, worker_id, lease, self._new_id, self.hints.clock)

        async def work(db: Connection) -> tuple[tuple[tuple[WaitingCall, str], ...], list[Told]]:
            return await claimer.claim(db, limit), []

        return await self._write(work)

    async def delete_run(self, tenant: str, run_id: str) -> None:
        """See RunStore."""

        async def work(db: Connection) -> tuple[None, list[Told]]:
            await rows.lock_runs(db, [Wanted(tenant, run_id)])
            found = await rows.load_state(db, Wanted(tenant, run_id), self.hints.clock)
            run = found.state.run
            if run.status.active:
                raise run_active("run_id", run_id, run.status)
            told: list[Told] = []
            if run.status is RunStatus.INTERRUPTED:
                draft = Draft(found.state, self._new_id)
                abandon(draft)
                change = draft.change()
                assert change is not None
                await rows.write_changes(db, [_written(found, change)])
                told.append((tenant, run_id, change.events))
            await rows.delete_runs(db, [found.run_key], found.state.now)
            return None, told

        await self._write(work)

    async def renew(self, claims: Collection[Claim], lease: int) -> tuple[Claim, ...]:
        """See RunStore."""
        return await leases.renew(self.database, claims, lease, self.hints.clock)

    async def lost_runs(self, limit: int) -> tuple[tuple[str, str], ...]:
        """See RunStore."""
        return await leases.lost_runs(self.database, limit, self.hints.clock)

    async def due_runs(self, limit: int) -> tuple[tuple[str, str], ...]:
        """See RunStore."""
        return await leases.due_runs(self.database, limit, self.hints.clock)

    async def memory_work(self, limit: int) -> tuple[DueWork, ...]:
        """See RunStore."""
        return await work_rows.due_work(self.database, limit, self.hints.clock)

    async def postpone(self, due: DueWork) -> None:
        """See RunStore."""
        await work_rows.postpone(self.database, due, self.hints.clock)

    async def pending_calls(self) -> tuple[int, int]:
        """See RunStore."""
        return await self.database.read(lists.count_pending)

    async def trim_events(self, ended_before: int, limit: int) -> int:
        """See RunStore."""
        return await leases.trim_events(self.database, ended_before, limit)

    async def written_elsewhere(self) -> bool:
        """See RunStore."""
        return self.hints.changed()

    async def standing(self, runs: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], Standing]:
        """See RunStore."""
        found = await leases.standing(self.database, runs)
        # A commit of this process can be seen before its answer is here. It must be told before others hear of it.
        await self.database.told()
        return found

    async def close(self) -> None:
        """See RunStore."""
        await self._begun.close()
        await self._moves.close()
        await self.hints.close()
        await self.database.close()

    async def _draft(self, wanted: Wanted) -> Draft:
        """The run, read by one statement."""
        (found,) = await rows.load_states(self.database, [wanted], self.hints.clock)
        if found is None:
            raise run_not_found(wanted.run_id)
        return Draft(found.state, self._new_id)

    async def _move(self, wanted: Wanted, move: Move[T], claim: Claim | None) -> T:
        result: T = await self._moves.put((wanted.tenant, wanted.run_id), _Asked(wanted, move, claim))
        return result

    async def _move_all(self, db: Connection, jobs: Sequence[Job[_Asked]]) -> None:
        """At most one move for each run. Two runs of one conversation that both add messages would take the same place
        in it; the database refuses that, and they are moved one after the other."""
        wanted = [job.what.wanted for job in jobs]
        await rows.lock_runs(db, wanted)
        blocks = await _lock_blocks(db, wanted)
        writes = []
        for job, found in zip(jobs, await rows.load_states(db, wanted, self.hints.clock), strict=True):
            try:
                written = self._apply(job, found, blocks)
            except Exception as error:
                job.error = error
                continue
            if written is not None:
                writes.append(written)
                # The moves after it see its edits.
                blocks.update(_keyed(written))
        if writes:
            await rows.write_changes(db, writes)
        changed = {key: record for written in writes for key, record in _keyed(written)}
        if changed:
            await block_rows.update_blocks(db, [(tenant, record) for (tenant, _), record in changed.items()])

    def _apply(
        self, job: Job[_Asked], found: Found | None, blocks: Mapping[block_rows.BlockKey, BlockRecord]
    ) -> Written | None:
        """Makes the move; what is to be written, if anything is."""
        asked = job.what
        if found is None:
            raise run_not_found(asked.wanted.run_id)
        if asked.claim is not None and asked.claim.epoch != found.state.run.epoch:
            raise StaleClaimError(asked.claim)
        draft = Draft(_with_blocks(found.state, asked.wanted, blocks), self._new_id)
        job.result = asked.move(draft)
        change = draft.change()
        if change is None:
            return None
        job.told = [(found.tenant, asked.wanted.run_id, change.events)]
        return _written(found, change)

    async def _write(self, work: Work[tuple[W, list[Told]]]) -> W:
        """A transaction by itself, whose events are told when it is committed."""
        try:
            return (await self.database.write(work, lambda written: self._tell(written[1])))[0]
        except AgentServiceError:
            self.hints.doubt()
            raise

    def _tell(self, told: Sequence[Told]) -> None:
        self.hints.written()
        for tenant, run_id, events in told:
            self._publish(tenant, run_id, events)


async def _lock_blocks(db: Connection, wanted: Sequence[Wanted]) -> dict[block_rows.BlockKey, BlockRecord]:
    """The memory blocks of all moves of a batch, which mostly have none."""
    keys = [(each.tenant, block_id) for each in wanted for block_id in each.block_ids]
    return await block_rows.lock_blocks(db, keys) if keys else {}


def _with_blocks(state: RunState, wanted: Wanted, blocks: Mapping[block_rows.BlockKey, BlockRecord]) -> RunState:
    if not wanted.block_ids:
        return state
    keys = ((wanted.tenant, block_id) for block_id in wanted.block_ids)
    return replace(state, blocks=tuple(blocks[key] for key in keys if key in blocks))


def _keyed(written: Written) -> list[tuple[block_rows.BlockKey, BlockRecord]]:
    return [((written.tenant, record.block.memory_block_id), record) for record in written.change.blocks]


def _written(found: Found, change: Change) -> Written:
    return Written(found.tenant, found.run_key, found.conversation_key, change)
