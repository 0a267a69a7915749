"""Random interleavings of what can happen to memory work, on each kind of store, against a small model of it.

The model shares no code with the edits it checks. What it is about: the parts that COMPLETED memory runs were given are
the transcript up to some message, each message once and in order, whatever fails, is deleted or is raced for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from agent_service.domain.errors import Reason
from agent_service.domain.memory_work import DueWork, WorkTakenError
from agent_service.domain.moves import abandon, fail
from agent_service.domain.recovery import retry
from agent_service.domain.run import MemoryPart, MemoryPlan, RunError, StopReason
from agent_service.engine.loop import moved
from agent_service.stores.urls import is_postgres
from tests.registry_contract import ALL, PINNED, Kept, opened
from tests.store_contract import SECOND, TENANT
from tests.stored import emptied

T = TypeVar("T")
AGENTS = ("keeper", "other")
CONVERSATIONS = ("conv_a", "conv_b")
TRIES = 12
HOURS = 2 * 3600 * 10**9
"""Longer than any delay between two tries."""
BROKEN = RunError(Reason.INTERNAL, "broken")


@dataclass
class Reading:
    """What a memory agent is believed to have read of a conversation, and to have to read."""

    born: int
    finished: int = 0
    read: int = 0
    due: int = 0
    parent: str = ""
    run: str = ""
    tries: int = 0

    @property
    def ready(self) -> bool:
        """Whether a memory run may begin."""
        return not self.run and self.due > self.read and self.tries < TRIES


@dataclass
class Begun:
    """A memory run that is not over."""

    run_id: str
    part: MemoryPart
    reading: Reading
    interrupted: bool = False
    holds: bool = True
    """Whether it keeps its agent from having another one."""


class MemoryMachine(RuleBasedStateMachine):
    """Two conversations, two memory agents."""

    def __init__(self, store: str) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stack = AsyncExitStack()
        self.kept = self.loop.run_until_complete(self._open(store))
        self.numbers = 0
        self.every = 0
        self.readings: dict[tuple[str, str], Reading] = {}
        self.begun: list[Begun] = []
        self.seen: list[DueWork] = []

    async def _open(self, store: str) -> Kept:
        if store != "memory":
            await emptied(store)
        return await self.stack.enter_async_context(opened(store))

    def do(self, call: Coroutine[Any, Any, T]) -> T:
        """The result of a call, a moment after the one before."""
        self.kept.clock.now += 1
        return self.loop.run_until_complete(call)

    def teardown(self) -> None:
        """Closes the store."""
        self.loop.run_until_complete(self.stack.aclose())
        self.loop.close()

    @initialize(every=st.sampled_from((1, 1, 2)))
    def plan(self, every: int) -> None:
        """After how many runs memory agents read."""
        self.every = every

    @rule(
        conversation=st.sampled_from(CONVERSATIONS),
        end=st.sampled_from(("completed", "completed", "completed", "failed", "cancelled", "interrupted")),
    )
    def talk(self, conversation: str, end: str) -> None:
        """A run of a conversation ends so. Only COMPLETED ones count, but what is said in any of them is read."""
        self.numbers += 1
        run_id = f"run_{self.numbers}"
        made = self.do(self.kept.registry.create_conversation(TENANT, conversation, {}))
        self.do(self.kept.start(run_id, conversation, memory_plan=MemoryPlan(AGENTS, self.every)))
        if end != "completed":
            self._stop(run_id, end)
            return
        last = self.do(self.kept.answer(run_id, text="Yes.")).last_position
        for agent in AGENTS:
            self._count(self.readings.setdefault((conversation, agent), Reading(made.create_time)), run_id, last)

    def _count(self, reading: Reading, run_id: str, last: int) -> None:
        reading.finished += 1
        if reading.finished < self.every:
            return
        reading.finished, reading.due, reading.parent = 0, last, run_id
        if not reading.run and reading.tries >= TRIES:
            reading.tries = 0

    def _stop(self, run_id: str, end: str) -> None:
        store = self.kept.store
        match end:
            case "completed":
                self.do(self.kept.answer(run_id, text="Noted."))
            case "failed":
                self.do(store.move(TENANT, run_id, moved(fail, StopReason.ERROR, BROKEN)))
            case "cancelled":
                self.do(self.kept.cancelled(run_id))
            case "interrupted":
                self.do(self.kept.interrupted(run_id))

    @rule(conversation=st.sampled_from(CONVERSATIONS))
    def delete_conversation(self, conversation: str) -> None:
        """With it goes what is to be read of it. Memory runs go on, and settle nothing any more."""
        if (conversation, AGENTS[0]) in self.readings:
            self.do(self.kept.registry.delete_conversation(TENANT, conversation))
            for agent in AGENTS:
                gone = self.readings.pop((conversation, agent))
                for begun in self.begun:
                    begun.holds &= begun.reading is not gone or not begun.interrupted

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        """What is due is found, hours later, and perhaps one memory run begins with it, or with a part of it."""
        self.kept.clock.now += HOURS
        found = self.do(self.kept.store.memory_work(ALL))
        busy = {begun.part.memory_agent_id for begun in self.begun if begun.holds}
        due = {
            (conversation, reading.born, agent, reading.read, reading.due, reading.parent)
            for (conversation, agent), reading in self.readings.items()
            if reading.ready and agent not in busy
        }
        told = [_told(each) for each in found if not each.work.run_id]
        assert set(told) <= due
        # One of each memory agent.
        assert sorted(agent for _, _, agent, *_ in told) == sorted({agent for _, _, agent, *_ in due})
        interrupted = {b.run_id for b in self.begun if b.interrupted and self._known(b)}
        assert {each.work.run_id for each in found if each.work.run_id} == interrupted
        idle = [each for each in found if not each.work.run_id]
        self.seen += idle
        if idle:
            self._begin(data.draw(st.sampled_from(idle)), data)

    @precondition(lambda self: self.seen)
    @rule(data=st.data())
    def begin_late(self, data: st.DataObject) -> None:
        """A process that looked some time ago begins what it saw."""
        self._begin(data.draw(st.sampled_from(self.seen)), data)

    def _begin(self, due: DueWork, data: st.DataObject) -> None:
        work, key = due.work, (due.conversation_id, due.work.memory_agent_id)
        through = data.draw(st.integers(work.through_position + 1, work.due_position))
        part = MemoryPart(
            due.conversation_id, due.conversation_time, work.memory_agent_id, work.through_position, through
        )
        self.numbers += 1
        run_id = f"mem_{self.numbers}"
        reading = self.readings.get(key)
        busy = any(begun.holds for begun in self.begun if begun.part.memory_agent_id == work.memory_agent_id)
        allowed = (
            reading is not None
            and not busy
            and not reading.run
            and (reading.born, reading.read) == (due.conversation_time, part.after)
            and reading.due >= through
        )
        try:
            self.do(self.kept.start(run_id, memory_part=part, parent_run_id=work.parent_run_id))
        except WorkTakenError:
            assert not allowed
        else:
            assert allowed and reading is not None
            reading.run = run_id
            self.begun.append(Begun(run_id, part, reading))

    @precondition(lambda self: any(not begun.interrupted for begun in self.begun))
    @rule(data=st.data(), end=st.sampled_from(("completed", "completed", "failed", "cancelled", "interrupted")))
    def end(self, data: st.DataObject, end: str) -> None:
        """A memory run stops so. Only its completion moves what is read, and exactly by its part."""
        begun = data.draw(st.sampled_from([each for each in self.begun if not each.interrupted]))
        self._stop(begun.run_id, end)
        reading = begun.reading
        if end == "completed":
            assert reading.read == begun.part.after
            reading.read, reading.tries = begun.part.through, 0
        else:
            reading.tries += 1
        if end == "interrupted":
            begun.interrupted = True
            begun.holds = self._known(begun)
        else:
            self._over(begun)

    @precondition(lambda self: any(begun.interrupted for begun in self.begun))
    @rule(data=st.data(), how=st.sampled_from(("retry", "give up", "delete", "delete its conversation")))
    def settle(self, data: st.DataObject, how: str) -> None:
        """An interrupted memory run goes on, or is given up or deleted, which is a failure."""
        begun = data.draw(st.sampled_from([each for each in self.begun if each.interrupted]))
        match how:
            case "retry":
                self.do(self.kept.store.move(TENANT, begun.run_id, lambda draft: retry(draft, "", PINNED, SECOND)))
                begun.interrupted = False
                return
            case "give up":
                self.do(self.kept.store.move(TENANT, begun.run_id, moved(abandon)))
            case "delete":
                self.do(self.kept.store.delete_run(TENANT, begun.run_id))
            case _:
                self.do(self.kept.registry.delete_conversation(TENANT, f"conv_{begun.run_id}"))
        begun.reading.tries += 1
        self._over(begun)

    def _known(self, begun: Begun) -> bool:
        """Whether the conversation that a memory run is about is still there."""
        return any(reading is begun.reading for reading in self.readings.values())

    def _over(self, begun: Begun) -> None:
        self.begun.remove(begun)
        begun.reading.run = ""


def _told(due: DueWork) -> tuple[Any, ...]:
    work = due.work
    return (
        due.conversation_id,
        due.conversation_time,
        work.memory_agent_id,
        work.through_position,
        work.due_position,
        work.parent_run_id,
    )


def test_each_part_is_in_one_completed_memory_run_whatever_happens(store: str) -> None:
    """Runs and memory runs end in any way and order, are deleted, and processes race for what is due."""

    class Machine(MemoryMachine):
        def __init__(self) -> None:
            super().__init__(store)

    bounded = settings(
        max_examples=20 if is_postgres(store) else 100,  # A move takes several times as long there.
        stateful_step_count=50,
        deadline=None,
        derandomize=True,
        database=None,
        print_blob=False,
    )
    run_state_machine_as_test(Machine, settings=bounded)
