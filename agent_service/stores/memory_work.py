"""The work of memory agents in the store for one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from agent_service.domain.draft import Change
from agent_service.domain.memory_work import (
    DueWork,
    MemoryWork,
    WorkTakenError,
    completed,
    holds,
    put_off,
    stopped,
    taken,
)
from agent_service.domain.run import Run, RunStatus

_Key = tuple[str, str, str]
"""Tenant, conversation and memory agent."""


class Works:
    """Work by tenant, conversation and memory agent. `born` says when a conversation was made."""

    def __init__(self, born: Callable[[str, str], int]) -> None:
        self._born = born
        self._rows: dict[_Key, MemoryWork] = {}
        self._held: dict[tuple[str, str], str] = {}
        """Memory agents by their runs about deleted conversations, by tenant and id."""

    def note_stop(self, tenant: str, change: Change) -> None:
        """A run stopped whose conversation memory agents read, or that is the run of one."""
        run, now = change.run, change.run.update_time
        if run.memory_plan is not None and run.status is RunStatus.COMPLETED:
            for agent_id in run.memory_plan.memory_agent_ids:
                key = (tenant, run.conversation_id, agent_id)
                work = self._rows.get(key, MemoryWork(agent_id))
                self._rows[key] = completed(work, run.memory_plan, run, change.next_position - 1, now)
        if run.memory_part is not None:
            for key, work in self._of_run(tenant, run.run_id):
                self._rows[key] = stopped(work, run, now)
            if not holds(run.status):
                self._held.pop((tenant, run.run_id), None)

    def take(self, tenant: str, run: Run) -> None:
        """The memory run starts. Raises WorkTakenError."""
        part = run.memory_part
        if part is None:
            return
        key = (tenant, part.conversation_id, part.memory_agent_id)
        work = taken(self._rows.get(key), run)
        if self._busy(key) or self._born(tenant, part.conversation_id) != part.conversation_time:
            raise WorkTakenError(run.run_id)
        self._rows[key] = work

    def due(self, limit: int, now: int, run: Callable[[str, str], Run]) -> tuple[DueWork, ...]:
        """What is due, and whose memory run is interrupted long enough."""
        ready = sorted(
            ((key, work) for key, work in self._rows.items() if work.not_before <= now),
            key=lambda each: each[1].not_before,
        )
        waiting = [(key, work) for key, work in ready if work.due and not self._busy(key)]
        # Of each memory agent the last one counts, which is the oldest.
        oldest = {(key[0], key[2]): (key, work) for key, work in reversed(waiting)}
        idle = [each for each in waiting if each in oldest.values()][:limit]
        under_way = [(key, work) for key, work in ready if work.run_id]
        interrupted = [(k, w) for k, w in under_way if run(k[0], w.run_id).status is RunStatus.INTERRUPTED][:limit]
        return tuple(DueWork(t, c, self._born(t, c), work) for (t, c, _), work in (*idle, *interrupted))

    def postpone(self, due: DueWork, now: int) -> None:
        """The work cannot begin, if it is still as it was."""
        key = (due.tenant, due.conversation_id, due.work.memory_agent_id)
        if self._rows.get(key) == due.work:
            self._rows[key] = put_off(due.work, now)

    def forget(self, tenant: str, conversation_id: str, run: Callable[[str, str], Run]) -> None:
        """The conversation is deleted. A memory run about it goes on."""
        gone = {key: work for key, work in self._rows.items() if key[:2] == (tenant, conversation_id)}
        for key, work in gone.items():
            del self._rows[key]
            if work.run_id and holds(run(tenant, work.run_id).status):
                self._held[tenant, work.run_id] = key[2]

    def release(self, tenant: str, run_id: str, now: int) -> None:
        """A memory run is deleted with its conversation before it was settled."""
        for key, work in self._of_run(tenant, run_id):
            self._rows[key] = put_off(work.without_run, now)

    def _of_run(self, tenant: str, run_id: str) -> Iterator[tuple[_Key, MemoryWork]]:
        return iter([(key, work) for key, work in self._rows.items() if (key[0], work.run_id) == (tenant, run_id)])

    def _busy(self, key: _Key) -> bool:
        under_way = [(k[0], k[2]) for k, work in self._rows.items() if work.run_id]
        held = [(tenant, agent_id) for (tenant, _), agent_id in self._held.items()]
        return (key[0], key[2]) in (*under_way, *held)
