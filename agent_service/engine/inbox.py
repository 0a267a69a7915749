"""The inbox: calls that wait for callers, over all runs, claimed and watched by workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from agent_service.domain.claims import Extended, extend
from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.domain.event import Event, MessageStored, RunStopped, ToolCallProgress, ToolReturnsAccepted
from agent_service.domain.registry import CallFilter, Page, WaitingCall
from agent_service.engine.hub import Hub
from agent_service.engine.store import RunStore

PAGE = 50
"""Calls read at once; each may have a mebibyte of arguments."""
LOOK_SECONDS = 30.0
"""The longest time between two looks of a watcher. It is told of all that happens: this is for what it should miss."""
PAUSE_SECONDS = 0.05
"""The shortest time between two looks, however much happens."""
PAUSES_PER_LOOK = 4
"""A look at very many calls is followed by a pause of so many times its own length: others use the store, too."""
LONGEST_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Added:
    """A call waits; or, told before, a worker has claimed it or its claim is over."""

    call: WaitingCall


@dataclass(frozen=True, slots=True)
class Removed:
    """A call waits no more."""

    tool_call_id: str
    run_id: str


@dataclass(frozen=True, slots=True)
class Synced:
    """All that waited at first has been told."""


@dataclass(frozen=True, slots=True)
class _Told:
    """What a watcher was told of a call, without its arguments: watchers remember every call."""

    run_id: str
    deadline: int
    worker_id: str


class Inbox:
    """Claims and watches pending calls."""

    def __init__(self, store: RunStore, hub: Hub) -> None:
        self._store = store
        self._hub = hub

    async def claim(
        self, tenant: str, which: CallFilter, worker_id: str, lease: int, limit: int
    ) -> tuple[tuple[WaitingCall, str], ...]:
        """At most `limit` calls that nobody has, the longest waiting first, each with the token of its claim."""
        claimed = await self._store.claim_calls(tenant, which, worker_id, lease, limit)
        if claimed:
            self._hub.stir_inbox()
        return claimed

    async def extend(
        self, tenant: str, run_id: str, tool_call_id: str, token: str, lease: int, progress: str
    ) -> Extended:
        """The heartbeat of a claim; `progress` is told to those who watch the run in this process."""
        extended = await self._store.move(
            tenant, run_id, lambda draft: extend(draft, tool_call_id, token, lease), call_ids=(tool_call_id,)
        )
        if progress and not extended.cancel_requested:
            run = (await self._store.get_run(tenant, run_id)).run
            body = ToolCallProgress(tool_call_id, progress)
            self._hub.pass_on(tenant, Event(run_id, run.last_sequence, "", self._store.now(), body))
        return extended

    def observe(self, tenant: str, events: tuple[Event, ...]) -> None:
        """Told of what is committed: calls come and go with these."""
        if any(isinstance(event.body, MessageStored | ToolReturnsAccepted | RunStopped) for event in events):
            self._hub.stir_inbox()

    async def watch(self, tenant: str, which: CallFilter) -> AsyncGenerator[Added | Removed | Synced]:
        """What waits, then what comes and goes. Raises SHUTTING_DOWN at the end of the server."""
        watcher = _Watcher(self._store, tenant, which)
        synced = False
        with self._hub.watch_inbox() as changed:
            while not self._hub.closed:
                changed.clear()
                async for change in watcher.look():
                    yield change
                if not synced:
                    synced = True
                    yield Synced()
                await asyncio.sleep(watcher.pause)
                await _set_within(changed, watcher.patience)
        raise AgentServiceError(Reason.SHUTTING_DOWN, "the server is shutting down; watch again", retry_after=1.0)


class _Watcher:
    """What one watcher was told, and how long it may wait until it looks again."""

    def __init__(self, store: RunStore, tenant: str, which: CallFilter) -> None:
        self._store = store
        self._tenant = tenant
        self._which = which
        self._told: dict[str, _Told] = {}
        self._next_end = 0
        self.pause = PAUSE_SECONDS

    @property
    def patience(self) -> float:
        """Seconds until something has to be told that nobody writes: that a claim is over."""
        if not self._next_end:
            return LOOK_SECONDS
        return min(LOOK_SECONDS, max(0.0, (self._next_end - self._store.now()) / 1e9))

    async def look(self) -> AsyncGenerator[Added | Removed]:
        """What is otherwise than told."""
        time = asyncio.get_running_loop().time
        began = time()
        found: set[str] = set()
        self._next_end = 0
        async for waiting in self._waiting():
            tool_call_id, end = waiting.call.tool_call_id, waiting.claim_expire_time
            found.add(tool_call_id)
            if end:
                self._next_end = min(end, self._next_end or end)
            state = _Told(waiting.run_id, waiting.call.deadline, waiting.worker_id)
            if self._told.get(tool_call_id) != state:
                self._told[tool_call_id] = state
                yield Added(waiting)
        for tool_call_id in self._told.keys() - found:
            yield Removed(tool_call_id, self._told.pop(tool_call_id).run_id)
        self.pause = min(max(PAUSE_SECONDS, PAUSES_PER_LOOK * (time() - began)), LONGEST_PAUSE_SECONDS)

    async def _waiting(self) -> AsyncGenerator[WaitingCall]:
        page = Page(PAGE)
        while calls := await self._store.waiting_calls(self._tenant, self._which, page):
            now = self._store.now()
            for waiting in calls:
                yield waiting.at(now)
            page = Page(PAGE, time=calls[-1].pending_time, id=calls[-1].call.tool_call_id)


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    """Waits for the event, at most so long."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
