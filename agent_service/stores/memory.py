"""The store for one process that may forget: dictionaries, moved by the same pure functions as the durable stores."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from agent_service.domain.claims import MAX_CLAIMED_BYTES, claimable, claimed
from agent_service.domain.draft import Change, Draft, NewId, Receipt, RunState, Snapshot
from agent_service.domain.errors import StaleClaimError
from agent_service.domain.event import Event
from agent_service.domain.expiry import overdue
from agent_service.domain.memory import BlockRecord
from agent_service.domain.memory_work import DueWork
from agent_service.domain.message import Message
from agent_service.domain.moves import abandon
from agent_service.domain.registry import CallFilter, Page, RunFilter, WaitingCall, run_active
from agent_service.domain.run import Claim, Owner, Pinned, Run, RunStatus
from agent_service.domain.start import ConversationState, NewRun, Started, StartPlan, plan_queued, plan_start
from agent_service.domain.tool import Call, pending_of
from agent_service.domain.values import replace
from agent_service.engine.store import TOMBSTONE_SECONDS, Move, Publish, Standing, T
from agent_service.stores import codec
from agent_service.stores.errors import PAGE_BYTES, conversation_not_found, run_id_deleted, run_not_found
from agent_service.stores.memory_work import Works

Row = TypeVar("Row", Event, Message)


@dataclass(slots=True)
class StoredConversation:
    """A conversation, with its messages."""

    create_time: int
    labels: dict[str, str] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    last_run_id: str = ""
    queue: list[str] = field(default_factory=list)


@dataclass(slots=True)
class StoredRun:
    """A run, with all that belongs to it."""

    run: Run
    pinned: Pinned
    calls: dict[str, Call] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    receipts: dict[str, Receipt] = field(default_factory=dict)

    def state(self, next_position: int, now: int, call_ids: tuple[str, ...] = (), request_id: str = "") -> RunState:
        step = self.run.steps_taken
        calls = tuple(call for call in self.calls.values() if call.step == step or call.tool_call_id in call_ids)
        return RunState(self.run, calls, next_position, self.receipts.get(request_id), now)

    def waiting(self) -> Iterator[WaitingCall]:
        """Its calls that wait for the caller."""
        for call in self.calls.values():
            for pending in pending_of((call,)):
                run = self.run
                yield WaitingCall(
                    pending,
                    run.run_id,
                    run.conversation_id,
                    run.agent_id,
                    call.pending_time,
                    call.worker_id,
                    call.claim_expire_time,
                )


class MemoryStore:
    """Implements RunStore. Nothing here awaits, so each call is a transaction of the event loop."""

    name = "memory"

    def __init__(self, *, publish: Publish, clock: Callable[[], int], new_id: NewId) -> None:
        self._publish = publish
        self._clock = clock
        self._new_id = new_id
        self.runs: dict[tuple[str, str], StoredRun] = {}
        self.conversations: dict[tuple[str, str], StoredConversation] = {}
        self.works = Works(lambda tenant, conversation_id: self.conversations[tenant, conversation_id].create_time)
        self.blocks: dict[tuple[str, str], BlockRecord] = {}
        self._tombstones: dict[tuple[str, str], int] = {}

    @property
    def queued(self) -> int:
        """None ever: each is done at once."""
        return 0

    def now(self) -> int:
        """The store's clock."""
        return self._clock()

    async def start(self, tenant: str, new: NewRun) -> Started:
        """See RunStore."""
        plan = self._plan_start(tenant, new)
        if not plan.started.joined:
            run = plan.started.run
            self.works.take(tenant, run)
            self.conversations.setdefault((tenant, run.conversation_id), StoredConversation(run.create_time))
            self.runs[tenant, run.run_id] = StoredRun(run, new.pinned)
            conversation = self.conversations[tenant, run.conversation_id]
            for change in plan.changes:
                self._write(tenant, change)
            if run.status is RunStatus.QUEUED:
                conversation.queue.append(run.run_id)
            else:
                conversation.last_run_id = run.run_id
        return plan.started

    async def queued_runs(self, limit: int) -> tuple[tuple[str, str], ...]:
        """See RunStore."""
        found = []
        for (tenant, conversation_id), conversation in self.conversations.items():
            state = self._state_of(tenant, conversation_id) if conversation.queue else None
            if state is not None and state.queue and not state.busy:
                found.append((tenant, state.queue[0]))
        return tuple(found[:limit])

    async def begin(self, tenant: str, run_id: str, owner: Owner) -> Started | None:
        """See RunStore."""
        stored = self._stored(tenant, run_id)
        conversation_id = stored.run.conversation_id
        plan = plan_queued(stored.state(0, self._clock()), self._state_of(tenant, conversation_id), owner, self._new_id)
        if plan is None:
            return None
        for change in plan.changes:
            self._write(tenant, change)
        self.conversations[tenant, conversation_id].last_run_id = run_id
        return plan.started

    async def preview_start(self, tenant: str, new: NewRun) -> Started:
        """See RunStore."""
        return self._plan_start(tenant, new).started

    async def move(
        self, tenant: str, run_id: str, move: Move[T], *, call_ids: tuple[str, ...] = (), request_id: str = ""
    ) -> T:
        """See RunStore."""
        return self._apply(tenant, Draft(self._state(tenant, run_id, call_ids, request_id), self._new_id), move)

    async def owner_move(self, claim: Claim, move: Move[T], *, block_ids: tuple[str, ...] = ()) -> T:
        """See RunStore."""
        if self._stored(claim.tenant, claim.run_id).run.epoch != claim.epoch:
            raise StaleClaimError(claim)
        state = replace(self._state(claim.tenant, claim.run_id), blocks=self._blocks(claim.tenant, block_ids))
        return self._apply(claim.tenant, Draft(state, self._new_id), move)

    async def preview(
        self, tenant: str, run_id: str, move: Move[T], *, call_ids: tuple[str, ...] = (), request_id: str = ""
    ) -> tuple[T, Change | None]:
        """See RunStore."""
        draft = Draft(self._state(tenant, run_id, call_ids, request_id), self._new_id)
        return move(draft), draft.change()

    async def get_run(self, tenant: str, run_id: str) -> Snapshot:
        """See RunStore."""
        return Draft(self._state(tenant, run_id), self._new_id).snapshot

    async def get_pinned(self, tenant: str, run_id: str) -> Pinned:
        """See RunStore."""
        return self._stored(tenant, run_id).pinned

    async def memory_blocks(self, tenant: str, block_ids: tuple[str, ...]) -> tuple[BlockRecord, ...]:
        """See RunStore."""
        return self._blocks(tenant, block_ids)

    async def events(self, tenant: str, run_id: str, after: int, limit: int) -> tuple[Event, ...]:
        """See RunStore."""
        return _page(self._stored(tenant, run_id).events[after : after + limit])

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
        conversation = self.conversations.get((tenant, conversation_id))
        if conversation is None:
            raise conversation_not_found(conversation_id)
        found = conversation.messages
        found = found[: after - 1 if after else None][::-1] if descending else found[after:]
        if run_id:
            found = [message for message in found if message.run_id == run_id]
        return _page(found[:limit])

    async def list_runs(self, tenant: str, which: RunFilter, page: Page) -> tuple[Snapshot, ...]:
        """See RunStore."""
        runs = [s for (t, _), s in self.runs.items() if t == tenant and _matches(s.run, which)]
        chosen = in_page(runs, page, lambda stored: (stored.run.create_time, stored.run.run_id))
        return tuple([await self.get_run(tenant, stored.run.run_id) for stored in chosen])

    async def waiting_calls(self, tenant: str, which: CallFilter, page: Page) -> tuple[WaitingCall, ...]:
        """See RunStore."""
        runs = [s for (t, _), s in self.runs.items() if t == tenant and has_labels(s.run.labels, which.labels)]
        waiting = [w for stored in runs for w in stored.waiting() if _wanted(w, which)]
        return tuple(in_page(waiting, page, lambda call: (call.pending_time, call.call.tool_call_id)))

    async def claim_calls(
        self, tenant: str, which: CallFilter, worker_id: str, lease: int, limit: int
    ) -> tuple[tuple[WaitingCall, str], ...]:
        """See RunStore."""
        now = self._clock()
        result: list[tuple[WaitingCall, str]] = []
        size = 0
        for waiting in await self.waiting_calls(tenant, which, Page(sys.maxsize)):
            stored = self.runs[tenant, waiting.run_id]
            call = stored.calls[waiting.call.tool_call_id]
            if not claimable(stored.run, call, now):
                continue
            size += len(call.arguments_json.encode())
            if len(result) == limit or (result and size > MAX_CLAIMED_BYTES):
                break
            token = self._new_id("claim")
            call = stored.calls[call.tool_call_id] = claimed(call, worker_id, token, now + lease)
            result.append((replace(waiting, worker_id=worker_id, claim_expire_time=call.claim_expire_time), token))
        return tuple(result)

    async def delete_run(self, tenant: str, run_id: str) -> None:
        """See RunStore."""
        run = self._stored(tenant, run_id).run
        if run.status.active:
            raise run_active("run_id", run_id, run.status)
        if run.status is RunStatus.INTERRUPTED:
            await self.move(tenant, run_id, abandon)
        conversation = self.conversations[tenant, run.conversation_id]
        if conversation.last_run_id == run_id:
            conversation.last_run_id = ""
        self.forget(tenant, run_id)

    def forget(self, tenant: str, run_id: str) -> None:
        """Deletes a run, whose id cannot be used again for a while."""
        del self.runs[tenant, run_id]
        self._tombstones[tenant, run_id] = self._clock() + TOMBSTONE_SECONDS * 10**9

    async def renew(self, claims: Collection[Claim], lease: int) -> tuple[Claim, ...]:
        """See RunStore."""
        until, stale = self._clock() + lease, []
        for claim in claims:
            stored = self.runs.get((claim.tenant, claim.run_id))
            if stored is None or stored.run.epoch != claim.epoch or stored.run.status is not RunStatus.RUNNING:
                stale.append(claim)
            else:
                stored.run = replace(stored.run, lease_expire_time=until)
        return tuple(stale)

    async def lost_runs(self, limit: int) -> tuple[tuple[str, str], ...]:
        """See RunStore."""
        now = self._clock()
        running = ((key, s.run) for key, s in self.runs.items() if s.run.status is RunStatus.RUNNING)
        lost = [(run.lease_expire_time, key) for key, run in running if run.lease_expire_time <= now]
        return tuple(key for _, key in sorted(lost)[:limit])

    async def due_runs(self, limit: int) -> tuple[tuple[str, str], ...]:
        """See RunStore."""
        found: list[tuple[str, str]] = []
        for key, stored in self.runs.items():
            if stored.run.pause_expire_time and overdue(Draft(stored.state(0, self._clock()), self._new_id)):
                found.append(key)
        return tuple(found[:limit])

    async def memory_work(self, limit: int) -> tuple[DueWork, ...]:
        """See RunStore."""
        return self.works.due(limit, self._clock(), lambda tenant, run_id: self._stored(tenant, run_id).run)

    async def postpone(self, due: DueWork) -> None:
        """See RunStore."""
        self.works.postpone(due, self._clock())

    async def pending_calls(self) -> tuple[int, int]:
        """See RunStore."""
        since = [call.pending_time for stored in self.runs.values() for call in stored.calls.values() if call.pending]
        return len(since), min(since, default=0)

    async def trim_events(self, ended_before: int, limit: int) -> int:
        """See RunStore."""
        old = [s for s in self.runs.values() if s.events and 0 < s.run.end_time < ended_before][:limit]
        for stored in old:
            stored.events.clear()
        return len(old)

    async def written_elsewhere(self) -> bool:
        """Never: no other process can."""
        return False

    async def standing(self, runs: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], Standing]:
        """See RunStore."""
        found = {key: self.runs[key].run for key in runs if key in self.runs}
        return {key: Standing(run.last_sequence, run.epoch) for key, run in found.items()}

    async def close(self) -> None:
        """Nothing to finish."""

    def _blocks(self, tenant: str, block_ids: tuple[str, ...]) -> tuple[BlockRecord, ...]:
        return tuple(self.blocks[tenant, block_id] for block_id in block_ids if (tenant, block_id) in self.blocks)

    def _state(self, tenant: str, run_id: str, call_ids: tuple[str, ...] = (), request_id: str = "") -> RunState:
        stored = self._stored(tenant, run_id)
        position = self._next_position(tenant, stored.run.conversation_id)
        return stored.state(position, self._clock(), call_ids, request_id)

    def _apply(self, tenant: str, draft: Draft, move: Move[T]) -> T:
        result, change = move(draft), draft.change()
        if change is not None:
            self._write(tenant, change)
        return result

    def _stored(self, tenant: str, run_id: str) -> StoredRun:
        stored = self.runs.get((tenant, run_id))
        if stored is None:
            raise run_not_found(run_id)
        return stored

    def _next_position(self, tenant: str, conversation_id: str) -> int:
        return len(self.conversations[tenant, conversation_id].messages) + 1

    def _plan_start(self, tenant: str, new: NewRun) -> StartPlan:
        if self._tombstones.get((tenant, new.run.run_id), 0) > self._clock():
            raise run_id_deleted(new.run.run_id)
        existing = self.runs.get((tenant, new.run.run_id))
        state = self._conversation_state(tenant, new)
        return plan_start(new, existing.run if existing else None, state, self._clock(), self._new_id)

    def _conversation_state(self, tenant: str, new: NewRun) -> ConversationState | None:
        conversation = self.conversations.get((tenant, new.run.conversation_id))
        if conversation is None:
            return ConversationState(1, None) if new.new_conversation else None
        return self._state_of(tenant, new.run.conversation_id)

    def _state_of(self, tenant: str, conversation_id: str) -> ConversationState:
        conversation = self.conversations[tenant, conversation_id]
        position = len(conversation.messages) + 1
        last = self.runs.get((tenant, conversation.last_run_id))
        unsettled = last is not None and not last.run.status.terminal
        current = last.state(position, self._clock()) if last and unsettled else None
        conversation.queue = [
            run_id
            for run_id in conversation.queue
            if (tenant, run_id) in self.runs and self.runs[tenant, run_id].run.status is RunStatus.QUEUED
        ]
        return ConversationState(position, current, tuple(conversation.queue), conversation.create_time)

    def _write(self, tenant: str, change: Change) -> None:
        run = change.run
        stored = self.runs[tenant, run.run_id]
        stored.run = run
        stored.events.extend(change.events)
        stored.calls.update((call.tool_call_id, call) for call in change.calls)
        if change.receipt is not None:
            stored.receipts[change.receipt.request_id] = change.receipt
        self.conversations[tenant, run.conversation_id].messages.extend(change.messages)
        if change.memory_matters:
            self.works.note_stop(tenant, change)
        self.blocks.update(((tenant, record.block.memory_block_id), record) for record in change.blocks)
        self._publish(tenant, run.run_id, change.events)


def _page(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The first of these, up to about PAGE_BYTES."""
    size = 0
    for count, row in enumerate(rows, 1):
        size += len(codec.encode(row).encode())
        if size >= PAGE_BYTES:
            return tuple(rows[:count])
    return tuple(rows)


Item = TypeVar("Item")


def in_page(items: Sequence[Item], page: Page, key: Callable[[Item], tuple[int, str]]) -> list[Item]:
    """Those of a page, in order."""
    after = [item for item in items if page.takes(*key(item))]
    return sorted(after, key=key, reverse=page.descending)[: page.limit]


def has_labels(labels: dict[str, str], wanted: tuple[tuple[str, str], ...]) -> bool:
    """Whether all wanted labels are there."""
    return all(labels.get(key) == value for key, value in wanted)


def _matches(run: Run, which: RunFilter) -> bool:
    return (
        (not which.statuses or run.status in which.statuses)
        and which.agent_id in ("", run.agent_id)
        and which.conversation_id in ("", run.conversation_id)
        and has_labels(run.labels, which.labels)
        and which.parent_run_id in ("", run.parent_run_id)
        and which.create_from <= run.create_time
        and (not which.create_before or run.create_time < which.create_before)
    )


def _wanted(waiting: WaitingCall, which: CallFilter) -> bool:
    return (
        which.agent_id in ("", waiting.agent_id)
        and which.conversation_id in ("", waiting.conversation_id)
        and which.tool_name in ("", waiting.call.name)
        and which.kind in (None, waiting.call.kind)
        and (not which.pending_before or waiting.pending_time < which.pending_before)
    )
