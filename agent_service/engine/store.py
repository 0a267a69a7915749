"""The port to the store of runs, with its guarantees in words. Each store passes the same suite of contract tests."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from agent_service.domain.draft import Change, Draft, Snapshot
from agent_service.domain.event import Event
from agent_service.domain.memory import BlockRecord
from agent_service.domain.memory_work import DueWork
from agent_service.domain.message import Message
from agent_service.domain.registry import CallFilter, Page, RunFilter, WaitingCall
from agent_service.domain.run import Claim, Owner, Pinned
from agent_service.domain.start import NewRun, Started

TOMBSTONE_SECONDS = 7 * 24 * 3600
"""How long the id of a deleted run cannot be used again."""

T = TypeVar("T")
Move = Callable[[Draft], T]
"""A pure edit of a run; may raise AgentServiceError, and then nothing is stored. It may run in any thread."""

Publish = Callable[[str, str, tuple[Event, ...]], None]
"""Told (tenant, run_id, events) in the event loop after each commit, in commit order per run."""

Committed = Callable[[int, float], None]
"""Told by a store, in any thread, of each commit: how many writes it held, and how many seconds it took."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a run is: the number of its last event, and its epoch."""

    last_sequence: int
    epoch: int


class RunStore(Protocol):
    """Keeps runs, their calls, events and receipts, and the messages of conversations.

    Each write is one transaction: the change and the events that tell it become visible together, or not at all. When
    a write returns, it survives a crash (memory: as long as the process). Moves of one run happen one after the other,
    each under the lock of the run's row. Raises AgentServiceError: RUN_NOT_FOUND, CONVERSATION_NOT_FOUND,
    STORE_UNAVAILABLE (the write may have happened), and what the move raises.
    """

    name: str
    """What kind of store: "memory", "sqlite" or "postgres"."""

    @property
    def queued(self) -> int:
        """Writes that wait for their turn; can be asked in any thread."""

    def now(self) -> int:
        """The store's clock: Unix time in nanoseconds."""

    async def start(self, tenant: str, new: NewRun) -> Started:
        """Stores a run and its input, or joins the run of an equal start with the same id.

        At most one run of a conversation is RUNNING or PAUSED; an INTERRUPTED one is settled as FAILED, and `on_busy`
        says what becomes of one of the others. A run that has to wait is QUEUED.

        A run with a `memory_part` takes the work of that part, if it is due, nobody has it and its memory agent has no
        other memory run under way; else WorkTakenError, and nothing is stored. The stop of a memory run settles its
        work, and the end of a run with a `memory_plan` counts for it, each in the transaction of the stop.
        """

    async def preview_start(self, tenant: str, new: NewRun) -> Started:
        """What `start` would do and say; stores nothing."""

    async def move(
        self, tenant: str, run_id: str, move: Move[T], *, call_ids: tuple[str, ...] = (), request_id: str = ""
    ) -> T:
        """Applies a control move, whoever owns the run. The draft holds the last step's calls, those named by
        `call_ids` (only calls of this run) and the receipt of `request_id`, if there is one."""

    async def owner_move(self, claim: Claim, move: Move[T], *, block_ids: tuple[str, ...] = ()) -> T:
        """Applies a move of the run's owner. Raises StaleClaimError if the run has another epoch.

        The draft holds those of these memory blocks that there are, in this order; nobody else changes them meanwhile,
        and its changes of them are part of the transaction.
        """

    async def preview(
        self, tenant: str, run_id: str, move: Move[T], *, call_ids: tuple[str, ...] = (), request_id: str = ""
    ) -> tuple[T, Change | None]:
        """What `move` would do; stores nothing."""

    async def get_run(self, tenant: str, run_id: str) -> Snapshot:
        """The run and the calls of its last step."""

    async def get_pinned(self, tenant: str, run_id: str) -> Pinned:
        """What the run was pinned to at its start."""

    async def memory_blocks(self, tenant: str, block_ids: tuple[str, ...]) -> tuple[BlockRecord, ...]:
        """Those of these memory blocks that there are, in this order, as they are now."""

    async def events(self, tenant: str, run_id: str, after: int, limit: int) -> tuple[Event, ...]:
        """At most `limit` durable events numbered above `after`, in order, without a gap; a page also ends after
        about 1 MiB. Empty only if there are none, or none any more."""

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
        """At most `limit` messages at positions above `after`, in order; pages end by size as in `events`.

        `descending`: below `after` (0 means from the newest), newest first. With `run_id` only that run's messages.
        """

    async def list_runs(self, tenant: str, which: RunFilter, page: Page) -> tuple[Snapshot, ...]:
        """Runs ordered by `(create_time, run_id)`."""

    async def waiting_calls(self, tenant: str, which: CallFilter, page: Page) -> tuple[WaitingCall, ...]:
        """Pending calls of all runs ordered by `(pending_time, tool_call_id)`."""

    async def claim_calls(
        self, tenant: str, which: CallFilter, worker_id: str, lease: int, limit: int
    ) -> tuple[tuple[WaitingCall, str], ...]:
        """Claims at most `limit` pending calls that no claim holds and whose time is not over, for `lease` nanoseconds
        from now; each with a new token. Of any number of workers that ask at once one gets a call. All together have
        at most about 1 MiB of arguments; one larger call is claimed by itself."""

    async def delete_run(self, tenant: str, run_id: str) -> None:
        """Forgets a run that is neither RUNNING nor PAUSED nor QUEUED (else RUN_ACTIVE). Its messages stay.

        An INTERRUPTED one is settled as FAILED first, so that every call in the messages has its outcome.
        Its id is refused to a start (RUN_ID_REUSED) for the next TOMBSTONE_SECONDS.
        """

    async def renew(self, claims: Collection[Claim], lease: int) -> tuple[Claim, ...]:
        """Lets these claims last `lease` nanoseconds from now; returns those that are stale."""

    async def lost_runs(self, limit: int) -> tuple[tuple[str, str], ...]:
        """Tenant and id of at most `limit` RUNNING runs whose lease is over, of all tenants, longest over first."""

    async def due_runs(self, limit: int) -> tuple[tuple[str, str], ...]:
        """Tenant and id of at most `limit` runs, of all tenants, of which a call or the pause itself is overdue."""

    async def queued_runs(self, limit: int) -> tuple[tuple[str, str], ...]:
        """Tenant and id of at most `limit` QUEUED runs, of all tenants, whose turn has come."""

    async def begin(self, tenant: str, run_id: str, owner: Owner) -> Started | None:
        """Begins a QUEUED run if its turn has come, else does nothing. The run before it may have been INTERRUPTED and
        is settled as FAILED then."""

    async def memory_work(self, limit: int) -> tuple[DueWork, ...]:
        """Work of memory agents, of all tenants, for which the time has come: what is due longest to each that has no
        memory run under way, for at most `limit` of them, longest due first; and at most `limit` whose run is
        INTERRUPTED."""

    async def postpone(self, due: DueWork) -> None:
        """Counts a failure of due work that could not begin, unless it is not as it was any more."""

    async def pending_calls(self) -> tuple[int, int]:
        """How many calls are pending, of all tenants, and since when the one does that waits longest; 0 without."""

    async def trim_events(self, ended_before: int, limit: int) -> int:
        """Forgets the events of at most `limit` runs, of all tenants, that ended before that time; says of how many.
        The runs and their messages stay."""

    async def written_elsewhere(self) -> bool:
        """Whether another process may have written since this was last asked."""

    async def standing(self, runs: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], Standing]:
        """How far these runs (tenant and id) are; those that are gone are left out."""

    async def close(self) -> None:
        """Finishes what was begun and closes. No call may follow."""
