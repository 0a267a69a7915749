"""The inbox: calls that wait for callers, over all runs, claimed and watched by workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from agent_service.domain.claims import Extended, extend
from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.domain.event import Event, RunStopped, ToolCallProgress, ToolReturnsAccepted
from agent_service.domain.registry import CallFilter, Page, WaitingCall
from agent_service.engine.hub import Hub
from agent_service.engine.store import RunStore

PAGE = 500
LOOK_SECONDS = 1.0
"""The longest time between two looks of a watcher: claims, and what other processes wrote, are seen by then."""
PAUSE_SECONDS = 0.05
"""The shortest time between two looks, however much happens."""


@dataclass(frozen=True, slots=True)
class Added:
    """A call waits, or is claimed otherwise than told before."""

    call: WaitingCall


@dataclass(frozen=True, slots=True)
class Removed:
    """A call waits no more."""

    call: WaitingCall


@dataclass(frozen=True, slots=True)
class Synced:
    """All that waited at first has been told."""


class Inbox:
    """Claims and watches pending calls."""

    def __init__(self, store: RunStore, hub: Hub) -> None:
        self._store = store
        self._hub = hub
        self._changed = asyncio.Event()

    async def claim(
        self, tenant: str, which: CallFilter, worker_id: str, lease: int, limit: int
    ) -> tuple[tuple[WaitingCall, str], ...]:
        """At most `limit` calls that nobody has, the longest waiting first, each with the token of its claim."""
        return await self._store.claim_calls(tenant, which, worker_id, lease, limit)

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
        if any(isinstance(event.body, RunStopped | ToolReturnsAccepted) for event in events):
            self._changed.set()

    async def watch(self, tenant: str, which: CallFilter) -> AsyncGenerator[Added | Removed | Synced]:
        """What waits, then what comes and goes. Raises SHUTTING_DOWN at the end of the server."""
        known: dict[str, WaitingCall] = {}
        synced = False
        while not self._hub.closed:
            self._changed.clear()
            found = {waiting.call.tool_call_id: waiting async for waiting in self._all(tenant, which)}
            for tool_call_id, waiting in list(known.items()):
                if tool_call_id not in found:
                    yield Removed(waiting)
            for tool_call_id, waiting in found.items():
                if known.get(tool_call_id) != waiting:
                    yield Added(waiting)
            known = found
            if not synced:
                synced = True
                yield Synced()
            await asyncio.sleep(PAUSE_SECONDS)
            await self._wait()
        raise AgentServiceError(Reason.SHUTTING_DOWN, "the server is shutting down; watch again", retry_after=1.0)

    async def _all(self, tenant: str, which: CallFilter) -> AsyncGenerator[WaitingCall]:
        page = Page(PAGE)
        while calls := await self._store.waiting_calls(tenant, which, page):
            now = self._store.now()
            for waiting in calls:
                yield waiting.at(now)
            page = Page(PAGE, time=calls[-1].pending_time, id=calls[-1].call.tool_call_id)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self._changed.wait()
        except TimeoutError:
            pass
