"""Random interleavings of everything that can happen to runs, on each kind of store, against a small model of them.

The model knows the rules of runs in its own words; it shares no code with the moves it checks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from agent_service.domain.compaction import CompactionRecord, compact
from agent_service.domain.draft import Snapshot
from agent_service.domain.errors import AgentServiceError, Reason, StaleClaimError
from agent_service.domain.event import Compaction, Event, RunStopped
from agent_service.domain.message import (
    AssistantContent,
    Message,
    SummaryContent,
    ToolCallsContent,
    ToolReturnContent,
    UserContent,
)
from agent_service.domain.moves import (
    AskModel,
    CallResult,
    Execute,
    PlannedCall,
    cancel,
    fail,
    finish_calls,
    next_of,
    restart_step,
    start_calls,
)
from agent_service.domain.policy import Strategy
from agent_service.domain.recovery import recover
from agent_service.domain.run import Claim, RunError, StopReason, Usage
from agent_service.domain.start import OnBusy, Started
from agent_service.domain.submit import CallAnswer, Submitted
from agent_service.engine.loop import moved
from agent_service.stores.urls import is_postgres
from tests.believed_run import BelievedCall, BelievedRun
from tests.store_contract import (
    LEASE,
    PINNED,
    SECOND,
    TENANT,
    Kept,
    approval,
    approves,
    client,
    denies,
    opened,
    refused,
    repeatable,
    returns,
    server,
    submitted,
    timed,
)
from tests.stored import emptied

T = TypeVar("T")
CONVERSATION = "conv_run_1"
MAX_INVALID = 2
PLANS: dict[str, Callable[[str], PlannedCall]] = {
    "client": client,
    "timed": timed,
    "server": server,
    "repeatable": repeatable,
    "approval": approval,
    "refused": refused,
}
ANSWERS: dict[str, Callable[[str], CallAnswer]] = {
    "return": lambda name: returns(name, "A"),
    "other": lambda name: returns(name, "B"),
    "error": lambda name: returns(name, "A", failed=True),
    "approve": approves,
    "edit": lambda name: approves(name, '{"x": 1}'),
    "deny": lambda name: denies(name, "no"),
}


class Draw(Protocol):
    """Chooses one of several values, and may be told what for."""

    def __call__(self, strategy: st.SearchStrategy[T], label: Any = None) -> T: ...


@dataclass
class Asked:
    """A submit that was made, to be made again."""

    run: BelievedRun
    answers: tuple[CallAnswer, ...]
    kinds: tuple[str, ...]
    request_id: str


class RunMachine(RuleBasedStateMachine):
    """One conversation in memory and on a store that lasts, which must agree with each other and the model."""

    def __init__(self, store: str) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stack = AsyncExitStack()
        self.kept: list[Kept] = self.loop.run_until_complete(self._open(store))
        self.runs: list[BelievedRun] = []
        self.asked: list[Asked] = []
        self.messages: list[Message] = []
        self.numbers = 0

    async def _open(self, store: str) -> list[Kept]:
        both = ("memory", await emptied(store))
        return [await self.stack.enter_async_context(opened(setting)) for setting in both]

    def both(self, call: Callable[[Kept], Awaitable[Any]]) -> Any:
        """The result of a call on both stores, which is the same, or the error that both raise."""

        async def attempt(kept: Kept) -> Any:
            kept.clock.now += 1
            try:
                return await call(kept)
            except AgentServiceError as error:
                return error

        async def each() -> list[Any]:
            return [await attempt(kept) for kept in self.kept]

        first, second = self.loop.run_until_complete(each())
        if isinstance(first, AgentServiceError):
            assert isinstance(second, AgentServiceError), (first, second)
            assert (first.reason, first.message, first.metadata) == (second.reason, second.message, second.metadata)
        else:
            assert first == second
        return first

    def own(self, edit: Any, *args: Any) -> None:
        """A move of the present run's owner."""
        run = self.current
        claim = Claim(TENANT, run.run_id, run.epoch)
        self.both(lambda kept: kept.store.owner_move(claim, moved(edit, *args)))

    def look(self, run: BelievedRun) -> Snapshot:
        """The run as it is stored; notes the events and messages that came since the last look."""
        events, messages = len(run.events), len(self.messages)

        async def read(kept: Kept) -> tuple[Snapshot, tuple[Event, ...], tuple[Message, ...]]:
            return (
                await kept.store.get_run(TENANT, run.run_id),
                await kept.store.events(TENANT, run.run_id, events, 999),
                await kept.store.messages(TENANT, CONVERSATION, messages, 999),
            )

        snapshot, new_events, new_messages = self.both(read)
        assert isinstance(snapshot, Snapshot)
        run.events += new_events
        self.messages += new_messages
        return snapshot

    @property
    def current(self) -> BelievedRun:
        return self.runs[-1]

    def named(self, prefix: str) -> str:
        self.numbers += 1
        return f"{prefix}_{self.numbers}"

    @rule(data=st.data())
    def something_happens(self, data: st.DataObject) -> None:
        """One thing of those that can happen now; what makes runs go on is likelier than what ends them."""
        run = self.current if self.runs else None
        works = run is not None and run.status == "running"
        weights: dict[Callable[[RunMachine, Draw], None], int] = {
            RunMachine.submit_what_fits: 8 if run and run.pending else 0,
            RunMachine.submit_anything: 2 if run else 0,
            RunMachine.submit_again: 2 if self.asked else 0,
            RunMachine.model_answers: 8 if run and run.asks else 0,
            RunMachine.model_fails: 1 if run and run.asks else 0,
            RunMachine.owner_compacts: 2 if run and run.asks else 0,
            RunMachine.tool_starts: 5 if works and run and run.startable else 0,
            RunMachine.tool_finishes: 5 if works and run and run.started else 0,
            RunMachine.cancel: 1 if run else 0,
            RunMachine.nobody_answers: 2 if run and run.status == "paused" else 0,
            RunMachine.owner_is_lost: 2 if run else 0,
            RunMachine.owner_is_only_slow: 1 if run else 0,
            RunMachine.retry: 3 if run and run.status == "interrupted" else 1 if run else 0,
            RunMachine.stale_owner_writes: 1 if run else 0,
            RunMachine.start: 5 if run is None or run.status not in ("running", "paused") else 1,
            RunMachine.start_again: 1 if run else 0,
        }
        possible = [event for event, weight in weights.items() for _ in range(weight)]
        data.draw(st.sampled_from(possible), label="next")(self, data.draw)

    # Starting

    def start(self, draw: Draw) -> None:
        """A new message: it runs, settles an interrupted run first, takes the place of a busy one, or is told what it
        waits for."""
        max_steps = draw(st.sampled_from([1, 2, 3, 5, 9]))
        run = BelievedRun(f"run_{len(self.runs) + 1}", max_steps, waits=draw(st.booleans()))
        conversation = CONVERSATION if self.runs else ""
        on_busy = draw(st.sampled_from([OnBusy.REJECT, OnBusy.REJECT, OnBusy.SUPERSEDE]))
        fields: dict[str, Any] = {"max_steps": max_steps, "on_busy": on_busy, "server_tools_wait": run.waits}
        result = self.both(lambda kept: kept.start(run.run_id, conversation, **fields))
        busy = {"running": Reason.CONVERSATION_BUSY, "paused": Reason.CONVERSATION_PAUSED}
        if self.runs and self.current.status in busy and on_busy is OnBusy.REJECT:
            assert result.reason is busy[self.current.status]
            assert result.metadata["run_id"] == self.current.run_id
            return
        assert isinstance(result, Started)
        assert not result.joined
        if self.runs and not self.current.over:
            self.current.close()
            self.current.epoch += 1
            self.current.stop("failed" if self.current.status == "interrupted" else "cancelled")
        self.runs.append(run)

    def start_again(self, draw: Draw) -> None:
        """A start with a known id joins, or is refused if it is another one."""
        run, same = draw(st.sampled_from(self.runs)), draw(st.booleans())
        result = self.both(lambda kept: kept.start(run.run_id, CONVERSATION, digest="digest" if same else "other"))
        if same:
            assert (result.joined, result.run.status.value) == (True, run.status)
        else:
            assert result.reason is Reason.RUN_ID_REUSED

    # What the owner does

    def model_answers(self, draw: Draw) -> None:
        """Any mixture of calls, or none, or an answer that was cut."""
        run = self.current
        size = draw(st.sampled_from([2, 1, 3, 4, 0]))
        kinds = draw(st.lists(st.sampled_from(sorted(PLANS)), min_size=size, max_size=size))
        cut = draw(st.integers(0, 19)) == 13
        run.steps += 1
        run.batch = [BelievedCall(self.named("call"), kind, "pending") for kind in kinds]
        run.calls += run.batch
        plans = [PLANS[call.kind](call.name) for call in run.batch]
        claim = Claim(TENANT, run.run_id, run.epoch)
        assert self.both(lambda kept: kept.claim(run.run_id)) == claim
        fields: dict[str, Any] = {
            "cut": cut,
            "max_invalid_steps": MAX_INVALID,
            "step_id": f"step_{run.steps}",
            "text": "Hm.",
        }
        self.both(lambda kept: kept.answer(*plans, run_id=run.run_id, **fields))
        run.lost = 0
        run.invalid = run.invalid + 1 if kinds and set(kinds) == {"refused"} else 0
        for call in run.batch:
            if cut or call.kind == "refused":
                call.state = "failed"
            elif call.kind in ("server", "repeatable"):
                call.state = "proposed"
        if cut or not kinds:
            run.stop("completed")
        elif run.invalid >= MAX_INVALID:
            run.stop("failed")
        else:
            run.settle_down()

    def tool_starts(self, draw: Draw) -> None:
        """The server begins to execute a call, or several at once."""
        startable = st.sampled_from(self.current.startable)
        starting = draw(st.lists(startable, min_size=1, unique_by=id))
        self.own(start_calls, tuple(call.name for call in starting))
        for call in starting:
            call.state, call.begun = "started", True

    def tool_finishes(self, draw: Draw) -> None:
        """A call that was started gets its outcome."""
        call, failed = draw(st.sampled_from(self.current.started)), draw(st.booleans())
        self.own(finish_calls, (CallResult(call.name, "found", failed),))
        call.state = "failed" if failed else "returned"
        self.current.lost = 0
        self.current.settle_down()

    def model_fails(self, draw: Draw) -> None:
        """The answer breaks off and is asked again, or the endpoint is down, or refuses."""
        how = draw(st.sampled_from(["again", "retryable", "refused"]))
        if how == "again":
            self.own(restart_step, 1, "the answer broke off")
            return
        error = RunError(Reason.LLM_UNAVAILABLE, "down", retryable=how == "retryable")
        self.own(fail, StopReason.LLM_API_ERROR, error)
        self.current.stop("interrupted" if error.retryable else "failed")

    def owner_compacts(self, draw: Draw) -> None:
        """Before the model is asked, a summary is stored that stands for some of the messages."""
        through = draw(st.integers(1, len(self.messages)))
        self.own(compact, CompactionRecord(Strategy.SUMMARY, "Long ago.", through, 9, 3, 1, Usage(4, 2, 6), 1))
        self.current.lost = 0
        content, event = self.look(self.current), self.current.events[-1]
        assert content.run.status.value == "running"
        assert isinstance(event.body, Compaction)
        assert self.messages[-1].content == SummaryContent("Long ago.", through)
        assert (event.body.message_id, event.body.position) == (self.messages[-1].message_id, len(self.messages))

    # What others do

    def cancel(self, draw: Draw) -> None:
        """Somebody cancels a run, whatever state it is in."""
        run = draw(st.sampled_from(self.runs))
        result = self.both(lambda kept: kept.store.move(TENANT, run.run_id, moved(cancel)))
        if not run.over:
            run.close()
            run.epoch += 1
            run.stop("cancelled")
        assert result.run.status.value == run.status

    def owner_is_lost(self, draw: Draw) -> None:
        """Its lease is over and another process looks after the run, whatever state it is in."""
        run = draw(st.sampled_from([*self.runs[-2:], self.current]))
        assert self.both(lambda kept: kept.recover(run.run_id)) == run.lose()
        assert (TENANT, run.run_id) not in self.both(lambda kept: kept.store.lost_runs(9))

    def owner_is_only_slow(self, draw: Draw) -> None:
        """It renews its lease in time, or just before another process looks, and stays the owner."""
        run = self.current
        claim = Claim(TENANT, run.run_id, run.epoch)
        for kept in self.kept:
            kept.clock.now += LEASE
        stale = self.both(lambda kept: kept.store.renew([claim], LEASE))
        assert stale == (() if run.status == "running" else (claim,))
        assert not self.both(lambda kept: kept.store.move(TENANT, run.run_id, lambda d: recover(d, PINNED, SECOND)))

    def nobody_answers(self, draw: Draw) -> None:
        """The time of calls passes, and another process looks."""
        for kept in self.kept:
            kept.clock.now += LEASE
        due = self.both(lambda kept: kept.store.due_runs(9))
        late = any(call.kind == "timed" for call in self.current.pending)
        assert due == (((TENANT, self.current.run_id),) if late else ())
        assert self.both(lambda kept: kept.expire(self.current.run_id)) == self.current.run_out_of_time()

    def retry(self, draw: Draw) -> None:
        """Somebody asks to go on with a run, with a new id, a used one or none."""
        run = draw(st.sampled_from([*self.runs[-2:], self.current]))
        used = next(reversed(run.receipts), "")
        request_id = draw(st.sampled_from([used, "", self.named("req")]))
        wanted = run.retry(request_id)
        result = self.both(lambda kept: kept.retry(run.run_id, request_id))
        assert (result.reason if isinstance(result, AgentServiceError) else result) == wanted

    def stale_owner_writes(self, draw: Draw) -> None:
        """Whoever has another epoch than the run writes nothing."""
        off = draw(st.sampled_from([-1, 1, 2]))
        claim = Claim(TENANT, self.current.run_id, self.current.epoch + off)

        async def write(kept: Kept) -> str:
            try:
                await kept.store.owner_move(claim, moved(cancel))
            except StaleClaimError:
                return "refused"
            return "written"

        assert self.both(write) == "refused"

    # Submitting

    def submit_anything(self, draw: Draw) -> None:
        """Any answers to any calls, also such as do not fit, twice the same, or to a call that is not there."""
        run = draw(st.sampled_from([*self.runs[-2:], self.current]))
        names = [call.name for call in run.calls[-6:]] or ["call_x"]
        pick = st.tuples(st.sampled_from(names), st.sampled_from(sorted(ANSWERS)))
        chosen = draw(st.lists(pick, min_size=1, max_size=3, unique_by=lambda each: each[0]))
        odd = draw(st.integers(0, 9))
        chosen += [("call_x", "return")] if odd == 7 else chosen if odd == 3 else []
        self._submit(run, chosen, draw(st.sampled_from(["none", "new", "new", "used"])))

    def submit_what_fits(self, draw: Draw) -> None:
        """Answers that pending calls wait for: some of them, or all."""
        chosen = []
        pending = self.current.pending
        for call in draw(st.one_of(st.just(pending), st.lists(st.sampled_from(pending), min_size=1, unique_by=id))):
            kind = draw(st.sampled_from(["fits", "fits", "error", "deny", "edit"]))
            usual = "approve" if call.kind == "approval" else "return"
            fits = kind == "deny" or (kind == "edit") == (call.kind == "approval")
            chosen.append((call.name, kind if kind != "fits" and fits else usual))
        self._submit(self.current, chosen, draw(st.sampled_from(["none", "new"])))

    def submit_again(self, draw: Draw) -> None:
        """A client repeats a submit, with the same id, another one or none."""
        asked, key = draw(st.sampled_from(self.asked[-5:])), draw(st.sampled_from(["same", "same", "new", "none"]))
        chosen = [(answer.tool_call_id, kind) for answer, kind in zip(asked.answers, asked.kinds, strict=True)]
        self._submit(asked.run, chosen, asked.request_id if key == "same" else key)

    def _submit(self, run: BelievedRun, chosen: list[tuple[str, str]], key: str) -> None:
        answers = tuple(ANSWERS[kind](name) for name, kind in chosen)
        digest = submitted(*answers).digest
        fresh_ids = {"none": f"auto:{digest}", "new": self.named("req")}
        used = next(reversed(run.receipts), fresh_ids["new"])
        request_id = used if key == "used" else fresh_ids.get(key, key)
        wanted = run.submit(chosen, request_id, digest)
        result = self.both(lambda kept: kept.submit(*answers, run_id=run.run_id, request_id=request_id))
        if isinstance(wanted, Reason):
            assert isinstance(result, AgentServiceError), result
            assert result.reason is wanted
            return
        assert isinstance(result, Submitted), result
        receipt = result.receipt
        remaining = tuple(call.tool_call_id for call in receipt.remaining)
        told = (digest, result.sequence, receipt.accepted, receipt.already_settled, remaining)
        assert told == run.receipts[request_id]
        assert (result.fresh, result.resumed) == wanted
        self.asked.append(Asked(run, answers, tuple(kind for _, kind in chosen), request_id))

    # What must hold after each of these

    @invariant()
    def stores_and_model_agree(self) -> None:
        """Status, calls, numbers, stops and messages are what the model believes, in both stores."""
        for run in self.runs[-2:]:
            snapshot = self.look(run)
            assert (snapshot.run.status.value, snapshot.run.epoch) == (run.status, run.epoch)
            assert (snapshot.run.steps_taken, snapshot.run.invalid_steps) == (run.steps, run.invalid)
            assert [(c.tool_call_id, c.state.value) for c in snapshot.calls] == [(c.name, c.state) for c in run.batch]
            assert [event.sequence for event in run.events] == list(range(1, snapshot.run.last_sequence + 1))
            stops = [event.body for event in run.events if isinstance(event.body, RunStopped)]
            assert (len(stops), [stop.final for stop in stops].count(True)) == (run.stops, int(run.over))
            if run.status != "running":
                assert (stops[-1].status.value, stops[-1].final) == (run.status, run.over)
                # A call that nobody answered leaves those that remain without a further stop.
                late = {call.name for call in run.calls if call.state == "expired"}
                told = [call.tool_call_id for call in stops[-1].remaining if call.tool_call_id not in late]
                assert told == [call.name for call in run.pending]
            coming = next_of(snapshot.run, snapshot.calls)
            assert isinstance(coming, AskModel) == run.asks
            names = [call.tool_call_id for call in coming.calls] if isinstance(coming, Execute) else []
            assert names == ([call.name for call in run.startable] if run.status == "running" else [])
            assert run.status != "paused" or (run.pending and not run.startable and not run.started)
            assert not run.over or not any(call.open for call in run.calls)
        assert [message.position for message in self.messages] == list(range(1, len(self.messages) + 1))

    def teardown(self) -> None:
        """At the end all is read anew, and the conversation is one that a strict endpoint accepts."""
        try:
            seen, self.messages = self.messages, []
            for run in self.runs:
                read, run.events = run.events, []
                assert self.look(run).run.status.terminal == run.over
                assert run.events == read
            assert self.messages == seen
            self._check_history()
            memory, lasting = (kept.told for kept in self.kept)
            assert memory == lasting
            told = [event for _, run_id, events in memory for event in events if run_id == "run_1"]
            assert not self.runs or told == self.runs[0].events
        finally:
            self.loop.run_until_complete(self.stack.aclose())
            self.loop.close()

    def _check_history(self) -> None:
        """Each call has one outcome, before anything else is asked of the model or said to it."""
        waiting: set[str] = set()
        outcomes: dict[str, str] = {}
        for message in self.messages:
            match message.content:
                case ToolReturnContent(name, _, outcome):
                    waiting.remove(name)
                    outcomes[name] = outcome.value
                case ToolCallsContent(calls):
                    assert not waiting
                    waiting = {call.tool_call_id for call in calls}
                case UserContent() | AssistantContent() | SummaryContent():
                    assert not waiting
        believed = {call.name: call.state for run in self.runs for call in run.calls if not call.open}
        assert outcomes == believed


def test_any_interleaving_follows_the_rules_on_every_store(shared_store: str) -> None:
    """Starts, answers, tools, submits, cancels and crashes in any order: one outcome a call, one end a run, no gap."""

    class Machine(RunMachine):
        def __init__(self) -> None:
            super().__init__(shared_store)

    bounded = settings(
        max_examples=20 if is_postgres(shared_store) else 80,  # A move takes several times as long there.
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        database=None,
        print_blob=False,
    )
    run_state_machine_as_test(Machine, settings=bounded)
