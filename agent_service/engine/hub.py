"""Who in this process looks at which run, and what its model is writing now. None of it is the truth: the log is.

A subscriber that does not read loses its queue, not the run its time: it is marked as lagging and reads the log again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from agent_service.domain.event import ArgumentsDelta, DeltaBody, Event, ReasoningDelta, TextDelta


class Subscription:
    """A bounded queue of the events of one run, for one reader."""

    def __init__(self, channel: Channel, limit: int, deltas: bool, overrun: Callable[[], None]) -> None:
        self.channel = channel
        self.deltas = deltas
        self.lagging = False
        self.closed = False
        self._limit = limit
        self._overrun = overrun
        self._items: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def push(self, event: Event) -> None:
        """Adds an event; when the queue is full, drops all and marks the reader as lagging."""
        if len(self._items) >= self._limit:
            self._overrun()
            self.fall_behind()
        elif not self.lagging:
            self._items.append(event)
            self._wake(self._waiter)

    def fall_behind(self) -> None:
        """The reader has to read the log."""
        self._items.clear()
        self.lagging = True
        self._wake(self._waiter)

    def drain(self) -> list[Event]:
        """What is queued, in order."""
        items = list(self._items)
        self._items.clear()
        return items

    @property
    def queued(self) -> int:
        """Events that wait to be read."""
        return len(self._items)

    def reset(self) -> None:
        """Empties the queue, because the log is read from here on."""
        self._items.clear()
        self.lagging = False

    async def wait(self, seconds: float) -> bool:
        """Waits until there is something to read; False when the time is over."""
        if self._readable:
            return True
        loop = asyncio.get_running_loop()
        self._waiter = waiter = loop.create_future()
        timer = loop.call_later(max(seconds, 0), self._wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None
        return self._readable

    def close(self) -> None:
        """Nothing comes any more; what is queued can still be read."""
        self.closed = True
        self._wake(self._waiter)

    @property
    def _readable(self) -> bool:
        return bool(self._items) or self.lagging or self.closed

    @staticmethod
    def _wake(waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


@dataclass(slots=True)
class OpenPart:
    """A message, or the arguments of one call, that the model is writing. `index` is -1 for a message."""

    kind: type[DeltaBody]
    message_id: str
    index: int = -1
    name: str = ""
    fragments: list[str] = field(default_factory=list)
    length: int = 0

    def append(self, fragment: str, attempt: int) -> DeltaBody:
        """Adds a fragment; returns the delta that tells it."""
        offset = self.length
        self.fragments.append(fragment)
        self.length += len(fragment)
        return self.delta(offset, fragment, attempt)

    def delta(self, offset: int, text: str, attempt: int) -> DeltaBody:
        """A delta of this part."""
        if self.kind is ArgumentsDelta:
            return ArgumentsDelta(self.message_id, self.index, self.name, offset, text, attempt)
        if self.kind is ReasoningDelta:
            return ReasoningDelta(self.message_id, offset, text, attempt)
        return TextDelta(self.message_id, offset, text, attempt)


class Channel:
    """One run in this process: its subscribers and what is being written."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.subscriptions: list[Subscription] = []
        self.owners = 0
        self.parts: list[OpenPart] = []
        self.attempt = 0
        self.step_id = ""
        self.sequence = 0
        self._told = 0
        self._heard = 0

    def tell(self, events: Sequence[Event]) -> None:
        """Passes on what was committed by this process."""
        for event in events:
            self._told = event.sequence
            for subscription in self.subscriptions:
                subscription.push(event)

    def told(self, sequence: int) -> None:
        """The log is known up to there."""
        self._told = max(self._told, sequence)

    def hear(self, sequence: int) -> bool:
        """The log was seen to reach `sequence`. True: ask again soon, because what is missing may be on its way from
        this process. What is still missing then was written by another one, and readers go to the log for it."""
        if sequence <= self._told:
            return False
        if self._heard <= self._told:
            self._heard = sequence
            return True
        self._told = self._heard
        for subscription in self.subscriptions:
            subscription.fall_behind()
        return sequence > self._told

    def open_step(self, step_id: str, attempt: int, sequence: int) -> None:
        """The model begins to write an answer; deltas carry these values."""
        self.step_id, self.attempt, self.sequence = step_id, attempt, sequence
        self.parts = []

    def write(self, part: OpenPart, fragment: str, now: int) -> None:
        """A fragment of a part arrived."""
        delta = part.append(fragment, self.attempt)
        if any(subscription.deltas for subscription in self.subscriptions):
            event = Event(self.run_id, self.sequence, self.step_id, now, delta)
            for subscription in self.subscriptions:
                if subscription.deltas:
                    subscription.push(event)

    def close_step(self) -> None:
        """Nothing is being written any more."""
        self.parts = []

    def text_so_far(self, now: int) -> list[Event]:
        """One delta from offset 0 for each part that is being written."""
        return [
            Event(self.run_id, self.sequence, self.step_id, now, part.delta(0, "".join(part.fragments), self.attempt))
            for part in self.parts
            if part.length
        ]


class Hub:
    """The channels of this process, made on demand and dropped when nobody uses them."""

    def __init__(self, queue_limit: int) -> None:
        self._queue_limit = queue_limit
        self._channels: dict[tuple[str, str], Channel] = {}
        self._inbox_watchers: set[asyncio.Event] = set()
        self.closed = False
        self.overruns = 0

    def publish(self, tenant: str, run_id: str, events: tuple[Event, ...]) -> None:
        """Passes on what was committed."""
        channel = self._channels.get((tenant, run_id))
        if channel is not None:
            channel.tell(events)

    def pass_on(self, tenant: str, event: Event) -> None:
        """Shows readers something that is not stored."""
        channel = self._channels.get((tenant, event.run_id))
        for subscription in channel.subscriptions if channel is not None else ():
            subscription.push(event)

    @property
    def watched(self) -> tuple[tuple[str, str], ...]:
        """Tenant and id of the runs that are read or worked on here."""
        return tuple(self._channels)

    def hear(self, tenant: str, run_id: str, sequence: int) -> bool:
        """The log of a run was seen to reach `sequence`; see Channel."""
        channel = self._channels.get((tenant, run_id))
        return channel is not None and channel.hear(sequence)

    def gone(self, tenant: str, run_id: str) -> None:
        """A run was not found: its readers look into the log, and learn that it was deleted."""
        channel = self._channels.get((tenant, run_id))
        for subscription in channel.subscriptions if channel is not None else ():
            subscription.fall_behind()

    @contextmanager
    def subscribe(self, tenant: str, run_id: str, *, deltas: bool) -> Iterator[Subscription]:
        """Attaches a reader. What is committed from now on reaches it."""
        channel = self._channel(tenant, run_id)
        subscription = Subscription(channel, self._queue_limit, deltas, self._overran)
        channel.subscriptions.append(subscription)
        if self.closed:
            subscription.close()
        try:
            yield subscription
        finally:
            channel.subscriptions.remove(subscription)
            self._release(tenant, run_id, channel)

    @property
    def inbox_watched(self) -> bool:
        """Whether somebody here watches the inbox."""
        return bool(self._inbox_watchers)

    @contextmanager
    def watch_inbox(self) -> Iterator[asyncio.Event]:
        """Attaches a watcher of the inbox. The event is set when there may be something new, and at the end."""
        changed = asyncio.Event()
        self._inbox_watchers.add(changed)
        try:
            yield changed
        finally:
            self._inbox_watchers.remove(changed)

    def stir_inbox(self) -> None:
        """Calls may have come, gone or been claimed."""
        for changed in self._inbox_watchers:
            changed.set()

    @contextmanager
    def own(self, tenant: str, run_id: str, sequence: int) -> Iterator[Channel]:
        """For the task that works on the run, whose log it knows up to `sequence`."""
        channel = self._channel(tenant, run_id)
        channel.owners += 1
        channel.told(sequence)
        try:
            yield channel
        finally:
            channel.owners -= 1
            channel.close_step()
            self._release(tenant, run_id, channel)

    def close(self) -> None:
        """Lets readers go, once they have read what they have."""
        self.closed = True
        self.stir_inbox()
        for channel in self._channels.values():
            for subscription in channel.subscriptions:
                subscription.close()

    @property
    def queues(self) -> list[int]:
        """How many events wait for each reader; can be asked in any thread."""
        return [each.queued for channel in tuple(self._channels.values()) for each in tuple(channel.subscriptions)]

    def _overran(self) -> None:
        self.overruns += 1

    def _channel(self, tenant: str, run_id: str) -> Channel:
        return self._channels.setdefault((tenant, run_id), Channel(run_id))

    def _release(self, tenant: str, run_id: str, channel: Channel) -> None:
        if not channel.subscriptions and not channel.owners:
            self._channels.pop((tenant, run_id), None)
