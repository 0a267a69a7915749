"""The use cases of runs: start, submit, watch, cancel. A run works in its own task; callers only look on."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable
from contextvars import Context

import structlog

from agent_service.domain.draft import Draft, Snapshot
from agent_service.domain.errors import AgentServiceError, Reason, StaleClaimError
from agent_service.domain.event import Event, RunStopped
from agent_service.domain.expiry import expire, overdue
from agent_service.domain.message import Message
from agent_service.domain.moves import AskModel, Execute, abandon, cancel, fail, next_of, time_out
from agent_service.domain.recovery import hand_over, recover, retry
from agent_service.domain.run import Claim, Owner, Pinned, Run, RunError, RunStatus, StopReason
from agent_service.domain.start import NewRun, Started
from agent_service.domain.submit import Submission, Submitted, submit
from agent_service.domain.tool import ToolCall, pending_of
from agent_service.engine.commands import Built
from agent_service.engine.compaction import Fit, counter_of
from agent_service.engine.leases import Leases
from agent_service.engine.loop import Loop, Parts, moved
from agent_service.engine.store import Move
from agent_service.engine.supervisor import Supervisor
from agent_service.engine.turn import model_request, next_turn
from agent_service.engine.watch import Follow, follow

log = structlog.get_logger()

MAX_TAKEN_OVER = 256
"""Lost runs that one look takes over at most."""

CANCEL_SECONDS = 1.0
"""Between two attempts to cancel a run whose caller is gone, while the store is away."""

MOVE_SECONDS = 5.0
"""How long moves in flight may take when the process ends."""

TakingMove = Move[tuple[bool, Snapshot]]
"""A move that says whether this process has to go on with the run, and how things stand."""


class Runs:
    """Starts runs and lets callers follow them. `owner` is this process; `heartbeat` is in seconds."""

    def __init__(self, parts: Parts, supervisor: Supervisor, *, owner: Owner, heartbeat: float) -> None:
        self.parts = parts
        self.owner = owner
        self.leases = Leases(parts.store, owner, supervisor.cancel)
        self._supervisor = supervisor
        self._heartbeat = heartbeat
        self._accepting = True
        self._working = True
        self._queues = False
        self._told: Callable[[Run], None] = lambda _: None

    @property
    def accepting(self) -> bool:
        """Whether the process is not shutting down."""
        return self._accepting

    def tell(self, told: Callable[[Run], None]) -> None:
        """From now on `told` hears of each run that stops while it is worked on here."""
        self._told = told

    async def begin(self, tenant: str, new: NewRun) -> None:
        """Stores and starts a run that no caller waits for. Raises what the store's `start` does."""
        self._admit()
        await self._supervisor.finish(self._start(tenant, new))

    async def give_up(self, tenant: str, run_id: str) -> None:
        """Settles a run as failed if it is interrupted."""

        def move(draft: Draft) -> None:
            if draft.run.status is RunStatus.INTERRUPTED:
                abandon(draft)

        await self._supervisor.finish(self.parts.store.move(tenant, run_id, move))

    async def start(
        self, tenant: str, new: NewRun, *, tokens: bool = False, max_wait: float | None = None
    ) -> AsyncGenerator[Event]:
        """Stores and starts the run, or joins it; yields its events from the first to its next stop."""
        self._admit()
        run_id = new.run.run_id
        with self.parts.hub.subscribe(tenant, run_id, deltas=tokens) as subscription:
            started = await self._supervisor.finish(self._start(tenant, new))
            what = self._follow(tenant, started.run, 0, fresh=not started.joined, max_wait=max_wait)
            async for event in follow(self.parts.store, subscription, what):
                yield event

    async def submit(
        self,
        tenant: str,
        run_id: str,
        submission: Submission,
        pinned: Pinned,
        *,
        tokens: bool = False,
        max_wait: float | None = None,
    ) -> AsyncGenerator[tuple[Submitted, Event]]:
        """Stores the answers; yields, with what was stored, the events from the receipt to the next stop."""
        self._admit()
        with self.parts.hub.subscribe(tenant, run_id, deltas=tokens) as subscription:
            submitted = await self._supervisor.finish(self._submit(tenant, run_id, submission, pinned))
            run, after = submitted.snapshot.run, submitted.sequence - 1
            what = self._follow(tenant, run, after, fresh=submitted.fresh, max_wait=max_wait)
            async for event in follow(self.parts.store, subscription, what):
                yield submitted, event

    async def watch(
        self, tenant: str, run_id: str, *, after: int, tokens: bool, next_stop: bool
    ) -> AsyncGenerator[Event]:
        """The run's events after a cursor. Raises RUN_NOT_FOUND, CURSOR_AHEAD."""
        run = (await self.parts.store.get_run(tenant, run_id)).run
        if after > run.last_sequence:
            raise AgentServiceError(
                Reason.CURSOR_AHEAD,
                f"after_sequence: {after} is ahead of {run_id}, whose last event is {run.last_sequence}; "
                "an older backup may have been restored: begin again from 0",
                metadata={"last_sequence": str(run.last_sequence)},
            )
        if run.status.terminal and after == run.last_sequence:
            return
        with self.parts.hub.subscribe(tenant, run_id, deltas=tokens) as subscription:
            beat = self._heartbeat
            what = Follow(tenant, run_id, after, next_stop, announce=True, heartbeat=beat, ended_at=_end(run))
            async for event in follow(self.parts.store, subscription, what):
                yield event

    async def get(self, tenant: str, run_id: str) -> Snapshot:
        """The run as it is now. Raises RUN_NOT_FOUND."""
        return await self.parts.store.get_run(tenant, run_id)

    def cancel_soon(self, tenant: str, run_id: str) -> None:
        """Cancels the run in the background; for a caller that is already gone. When the process ends it is the server
        that is gone, for its callers, and the run goes on elsewhere."""
        if self._working:
            self._supervisor.spawn(("cancel", run_id), self._insist_on_cancel(tenant, run_id))

    async def cancel(self, tenant: str, run_id: str) -> Snapshot:
        """Ends the run for good, and the model request it may be waiting for. A run that is over stays as it is."""
        return await self._supervisor.finish(self._cancel(tenant, run_id))

    async def retry(self, tenant: str, run_id: str, request_id: str) -> Snapshot:
        """Goes on with an interrupted run; the run as it is then. Raises RUN_NOT_INTERRUPTED, REQUEST_ID_REUSED."""
        pinned = await self.parts.store.get_pinned(tenant, run_id)

        def move(draft: Draft) -> tuple[bool, Snapshot]:
            return retry(draft, request_id, pinned, self.owner), draft.snapshot

        self._admit()
        return await self._supervisor.finish(self._go_on(tenant, run_id, pinned, move, request_id))

    async def take_over(self) -> int:
        """Goes on with runs whose owner was lost; says how many there were."""
        if not self._accepting:
            return 0
        found = await self.parts.store.lost_runs(MAX_TAKEN_OVER)
        # Not what is worked on here: after a leap of the clock, its lease only waits for the next heartbeat.
        held = {(claim.tenant, claim.run_id) for claim in self.leases.held}
        lost = [key for key in found if key not in held]
        await asyncio.gather(*(self._look_after(tenant, run_id, self._recovering) for tenant, run_id in lost))
        return len(lost)

    async def expire_due(self) -> int:
        """Does what is due by the clock to calls and pauses; says to how many runs."""
        if not self._accepting:
            return 0
        due = await self.parts.store.due_runs(MAX_TAKEN_OVER)
        await asyncio.gather(*(self._look_after(tenant, run_id, self._expiring) for tenant, run_id in due))
        return len(due)

    async def begin_queued(self) -> None:
        """Begins the queued runs whose turn has come."""
        if not self._accepting:
            return
        ready = await self.parts.store.queued_runs(MAX_TAKEN_OVER)
        await asyncio.gather(*(self._supervisor.finish(self._begin(tenant, run_id)) for tenant, run_id in ready))

    async def forget(self, tenant: str, conversation_id: str) -> None:
        """A conversation was deleted, and its runs with it: nothing of it stays cached, and who watches learns it."""
        self.parts.contexts.forget(tenant, conversation_id)
        watched = self.parts.hub.watched
        for key in set(watched) - (await self.parts.store.standing(watched)).keys():
            self.parts.hub.gone(*key)

    def observe(self, tenant: str, events: tuple[Event, ...]) -> None:
        """Told of what is committed: a run that is over may be what a queued one waits for. One that was queued by
        another process is found by the next look."""
        stop = next((event for event in events if isinstance(event.body, RunStopped)), None)
        if stop is None or not isinstance(stop.body, RunStopped):
            return
        self._log_stop(tenant, stop.run_id, stop.body)
        if self._queues and not stop.body.status.active:
            # Apart from the call that ended the run: the next one is not its doing.
            Context().run(self._supervisor.spawn, "begin queued runs", self._begin_next())

    def _log_stop(self, tenant: str, run_id: str, stop: RunStopped) -> None:
        """Whoever stopped it: the loop, a caller, or the clock."""
        told = {"status": stop.status.value, "stop_reason": stop.stop_reason.value}
        if stop.error is not None:
            told["error_reason"] = stop.error.reason.value
        if trace_id := self.parts.telemetry.trace_id(tenant, run_id):
            told["trace_id"] = trace_id
        log.info("run.stopped", run_id=run_id, **told)

    async def build_start(self, tenant: str, new: NewRun) -> Built:
        """The request that the start would lead to; fails as the start would."""
        started = await self.parts.store.preview_start(tenant, new)
        if started.joined:
            return Built(b"", f"run {started.run.run_id} was started before; a repeat joins it and asks nothing")
        if started.run.status is RunStatus.QUEUED:
            return Built(b"", "the run would wait for the one before it in the conversation")
        snapshot = Snapshot(started.run, (), started.last_position)
        return await self._built(tenant, snapshot, new.pinned, started.messages)

    async def build_submit(self, tenant: str, run_id: str, submission: Submission, pinned: Pinned) -> Built:
        """The request that the submit would lead to; fails as the submit would."""

        def move(draft: Draft) -> Submitted:
            if draft.receipt is None:
                expire(draft, self.owner)
            return submit(draft, submission, self.owner)

        submitted, change = await self.parts.store.preview(
            tenant,
            run_id,
            move,
            call_ids=tuple(answer.tool_call_id for answer in submission.answers),
            request_id=submission.request_id,
        )
        if not submitted.fresh:
            return Built(b"", "these outcomes were accepted before; a repeat asks nothing")
        messages = change.messages if change else ()
        return await self._built(tenant, submitted.snapshot, pinned, messages)

    async def shut_down(self, grace: float, hurried: asyncio.Event | None = None) -> None:
        """Takes nothing new, gives runs `grace` seconds, or until `hurried` is set, then leaves them to other processes
        or to the next start."""
        self._accepting = False
        await self._supervisor.settle_or(hurried or asyncio.Event(), grace)
        self._working = False
        left = self.leases.held
        for claim in left:
            self._supervisor.cancel(claim)
        # Moves in flight may be stored: what they give to this process is left to others, too.
        await self._supervisor.settle(MOVE_SECONDS)
        await asyncio.gather(*(self._hand_over(claim) for claim in {*left, *self.leases.held}))
        await self._supervisor.cancel_all()
        self.parts.hub.close()

    def _admit(self) -> None:
        if not self._accepting:
            raise AgentServiceError(
                Reason.SHUTTING_DOWN, "the server is shutting down; repeat with the same ids", retry_after=1.0
            )

    def _follow(self, tenant: str, run: Run, after: int, *, fresh: bool, max_wait: float | None) -> Follow:
        return Follow(
            tenant,
            run.run_id,
            after,
            next_stop=True,
            fresh=fresh,
            heartbeat=self._heartbeat,
            max_wait=max_wait,
            ended_at=_end(run),
        )

    async def _start(self, tenant: str, new: NewRun) -> Started:
        started = await self.parts.store.start(tenant, new)
        if started.joined:
            return started
        if started.run.status is RunStatus.QUEUED:
            self._queues = True
        else:
            self._began(tenant, new.pinned, started)
        return started

    def _began(self, tenant: str, pinned: Pinned, started: Started) -> None:
        """Works on a run that starts, and no more on the one that made room."""
        if started.ended is not None:
            self.leases.check(tenant, started.ended.run_id, started.ended.epoch)
        self._work(tenant, pinned, Snapshot(started.run, (), started.last_position, started.messages))

    async def _insist_on_cancel(self, tenant: str, run_id: str) -> None:
        """Nobody is there to ask again when the store is away."""
        while self._working:
            try:
                await self.cancel(tenant, run_id)
            except AgentServiceError as error:
                log.warning("run.not_cancelled", run_id=run_id, error=error.message)
                if error.reason is not Reason.STORE_UNAVAILABLE:
                    return
                await asyncio.sleep(error.retry_after or CANCEL_SECONDS)
            else:
                return

    async def _begin_next(self) -> None:
        try:
            await self.begin_queued()
        except AgentServiceError as error:  # The next look begins them.
            log.warning("runs.not_begun", error=error.message)

    async def _begin(self, tenant: str, run_id: str) -> None:
        try:
            pinned = await self.parts.store.get_pinned(tenant, run_id)
            started = await self.parts.store.begin(tenant, run_id, self.owner) if self._accepting else None
        except AgentServiceError as error:
            log.warning("run.not_begun", run_id=run_id, error=error.message)
            return
        except Exception:  # One run that cannot begin must not hold up the others.
            log.exception("run.not_begun", run_id=run_id)
            return
        if started is not None:
            self._began(tenant, pinned, started)

    async def _cancel(self, tenant: str, run_id: str) -> Snapshot:
        snapshot = await self.parts.store.move(tenant, run_id, moved(cancel))
        self.leases.check(tenant, run_id, snapshot.run.epoch)
        return snapshot

    async def _go_on(
        self, tenant: str, run_id: str, pinned: Pinned, move: TakingMove, request_id: str = ""
    ) -> Snapshot:
        """Makes a move that may give the run to this process, and then works on it."""
        ours, snapshot = await self.parts.store.move(tenant, run_id, move, request_id=request_id)
        if ours:
            self._work(tenant, pinned, snapshot)
        return snapshot

    async def _hand_over(self, claim: Claim) -> None:
        # A heartbeat after it would keep others away from a run that nobody works on.
        self.leases.drop(claim)
        try:
            await self.parts.store.owner_move(claim, hand_over)
        except StaleClaimError:
            log.info("run.taken_away", run_id=claim.run_id)
        except AgentServiceError as error:
            log.warning("run.not_handed_over", run_id=claim.run_id, error=error.message)

    async def _look_after(self, tenant: str, run_id: str, moving: Callable[[Pinned], TakingMove]) -> None:
        """Makes a move that nobody asked for; if it fails, the next look makes it."""
        try:
            pinned = await self.parts.store.get_pinned(tenant, run_id)
            if self._accepting:
                await self._supervisor.finish(self._go_on(tenant, run_id, pinned, moving(pinned)))
        except AgentServiceError as error:
            log.warning("run.not_looked_after", run_id=run_id, error=error.message)
        except Exception:  # One run that cannot be moved, or not be read by this program, must not hold up the others.
            log.exception("run.not_looked_after", run_id=run_id)

    def _recovering(self, pinned: Pinned) -> TakingMove:
        return lambda draft: (recover(draft, pinned, self.owner), draft.snapshot)

    def _expiring(self, pinned: Pinned) -> TakingMove:
        return lambda draft: (expire(draft, self.owner), draft.snapshot)

    async def _submit(self, tenant: str, run_id: str, submission: Submission, pinned: Pinned) -> Submitted:
        def move(draft: Draft) -> Submitted | tuple[bool, Snapshot]:
            if draft.receipt is None and overdue(draft):
                return expire(draft, self.owner), draft.snapshot
            return submit(draft, submission, self.owner)

        call_ids = tuple(answer.tool_call_id for answer in submission.answers)
        while True:
            done = await self.parts.store.move(
                tenant, run_id, move, call_ids=call_ids, request_id=submission.request_id
            )
            if isinstance(done, Submitted):
                break
            # What is overdue is stored, even if the submit is refused for it.
            ours, snapshot = done
            if ours:
                self._work(tenant, pinned, snapshot)
        if done.resumed:
            self._work(tenant, pinned, done.snapshot)
        return done

    def _work(self, tenant: str, pinned: Pinned, snapshot: Snapshot) -> None:
        run = snapshot.run
        claim = Claim(tenant, run.run_id, run.epoch)
        # Held before the task takes its first step: what comes between may end the claim already.
        self.leases.hold(claim)
        if not self._working:
            return
        task = self._supervisor.spawn(claim, self._drive(claim, pinned, snapshot))
        task.add_done_callback(lambda _: self.leases.drop(claim))

    async def _drive(self, claim: Claim, pinned: Pinned, snapshot: Snapshot) -> None:
        with (
            structlog.contextvars.bound_contextvars(run_id=claim.run_id),
            self.parts.telemetry.stretch(claim, snapshot, pinned),
        ):
            try:
                self._told(await self._drive_in_time(claim, pinned, snapshot))
            except StaleClaimError:
                log.info("run.taken_away")
            except AgentServiceError as error:
                # The store alone raises these here. Whether it has the write or not, the run goes on from what is
                # stored: in the process that takes it over when its lease is over.
                log.warning("run.let_go", reason=error.reason.value, error=error.message)
            except Exception:
                await self._crashed(claim)

    async def _drive_in_time(self, claim: Claim, pinned: Pinned, snapshot: Snapshot) -> Run:
        """Works on the run for as long as its timeout leaves."""
        run = snapshot.run
        left = (run.run_timeout - run.running_time) / 1e9 if run.run_timeout else None
        try:
            async with asyncio.timeout(left) as limit:
                return await Loop(self.parts, claim, pinned).drive(snapshot)
        except TimeoutError:
            if not limit.expired():
                raise
        message = f"the run was running for longer than its timeout of {run.run_timeout / 1e9:g} s"
        error = RunError(Reason.RUN_TIMED_OUT, message)
        return (await self.parts.store.owner_move(claim, moved(time_out, error))).run

    async def _crashed(self, claim: Claim) -> None:
        error_id = secrets.token_hex(6)
        log.exception("run.crashed", error_id=error_id)
        error = RunError(Reason.INTERNAL, f"internal error {error_id}; see the server's log")
        try:
            await self.parts.store.owner_move(claim, moved(fail, StopReason.ERROR, error))
        except StaleClaimError:
            log.info("run.taken_away")
        except AgentServiceError as refused:
            log.warning("run.let_go", reason=refused.reason.value, error=refused.message)

    async def _built(self, tenant: str, snapshot: Snapshot, pinned: Pinned, messages: tuple[Message, ...]) -> Built:
        overridden = pinned.overridden_tools
        match next_of(snapshot.run, snapshot.calls):
            case AskModel():
                pass
            case Execute(calls):
                server_calls = tuple(ToolCall(c.tool_call_id, c.name, c.arguments_json) for c in calls)
                return Built(b"", "server tools run first", (), server_calls, overridden)
            case _ if snapshot.run.status is RunStatus.RUNNING:
                return Built(b"", "a server tool is still running", pending_of(snapshot.calls), (), overridden)
            case _ if snapshot.run.status is RunStatus.PAUSED:
                return Built(b"", "calls would still be pending", pending_of(snapshot.calls), (), overridden)
            case _:
                return Built(b"", f"the run would stop with {snapshot.run.stop_reason}", (), (), overridden)
        block_ids = pinned.memory_block_ids
        blocks = await self.parts.store.memory_blocks(tenant, block_ids) if block_ids else ()
        turn = next_turn(snapshot.run, pinned, blocks)
        if turn.error is not None:
            return Built(b"", f"the run would fail: {turn.error.message}", (), (), overridden)
        model = self.parts.models[pinned.provider]
        stored = snapshot.last_position - len(messages)
        run = snapshot.run
        counter = await counter_of(pinned)
        history = await self.parts.contexts.peek(
            tenant, run.conversation_id, model, stored, run.conversation_time, messages, counter
        )
        fitting = Fit(turn.shown, history, counter)
        if fitting.error is not None:
            return Built(b"", f"the run would fail: {fitting.error.message}", (), (), overridden)
        if fitting.plan is not None:
            return Built(b"", "the conversation would be compacted first", (), (), overridden)
        body = model.build(model_request(snapshot, turn, history.pieces)).body
        return Built(body, overridden_tools=overridden)


def _end(run: Run) -> int:
    """The number of the last event of a run that is over, else 0."""
    return run.last_sequence if run.status.terminal else 0
