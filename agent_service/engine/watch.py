"""Following a run: the log after a cursor, then what happens, without loss, doubling or a number that goes down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass

from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.domain.event import (
    ArgumentsDelta,
    Event,
    Heartbeat,
    Live,
    ReasoningDelta,
    RunStopped,
    TextDelta,
)
from agent_service.domain.values import replace
from agent_service.engine.hub import Subscription
from agent_service.engine.store import RunStore

PAGE = 256
"""Events per page of the log."""


@dataclass(frozen=True, slots=True)
class Follow:
    """What to follow and until when.

    `next_stop`: end at the first RunStopped after the cursor, else at the final one. `fresh`: the subscription was made
    before the event after the cursor was committed, so its queue holds all that follows. `announce`: tell `live`.
    `heartbeat` and `max_wait` are in seconds; `max_wait` None means without end. `ended_at` is the number of the run's
    last event if the run is over, else 0.
    """

    tenant: str
    run_id: str
    after: int
    next_stop: bool
    fresh: bool = False
    announce: bool = False
    heartbeat: float = 15.0
    max_wait: float | None = None
    ended_at: int = 0


async def follow(store: RunStore, subscription: Subscription, what: Follow) -> AsyncGenerator[Event]:
    """The run's events, and a heartbeat when it is silent for long. Ends at the stop, or when `max_wait` is over.

    Raises CURSOR_TRIMMED, and SHUTTING_DOWN when the hub is closed and everything that was told is read.
    """
    reader = _Reader(store, subscription, what)
    subscription.lagging = subscription.lagging or not what.fresh
    while True:
        if subscription.lagging:
            subscription.reset()
            async for event in reader.log():
                yield event
                if reader.is_end(event):
                    return
            events = reader.caught_up()
        elif await subscription.wait(reader.patience()):
            events = subscription.drain()
            if subscription.closed and not events and not subscription.lagging:
                raise _shutting_down()
        elif reader.out_of_time():
            return
        else:
            events = [reader.event(Heartbeat())]
        for event in reader.accept(merged(events)):
            yield event
            if reader.is_end(event):
                return


class _Reader:
    """The cursor of one follower, and what moves it."""

    def __init__(self, store: RunStore, subscription: Subscription, what: Follow) -> None:
        self._store = store
        self._subscription = subscription
        self._what = what
        self._cursor = what.after
        self._announce = what.announce
        self._time = asyncio.get_running_loop().time
        self._deadline = None if what.max_wait is None else self._time() + what.max_wait

    async def log(self) -> AsyncGenerator[Event]:
        """The log after the cursor, up to its present end. Raises CURSOR_TRIMMED."""
        what = self._what
        while page := await self._store.events(what.tenant, what.run_id, self._cursor, PAGE):
            for event in page:
                self._cursor = event.sequence
                yield event
        if self._cursor < what.ended_at:
            raise _trimmed(what)

    def caught_up(self) -> list[Event]:
        """What was committed while the log was read, `live` (once), and the text so far.

        Made without awaiting, so that the next delta in the queue goes on exactly where this ends.
        """
        events = [event for event in self._subscription.drain() if event.durable]
        last = max([self._cursor, *(event.sequence for event in events)])
        channel = self._subscription.channel
        if self._announce:
            self._announce = False
            live = Live(deltas=self._subscription.deltas and channel.owners > 0)
            events.append(replace(self.event(live), sequence=last))
        if self._subscription.deltas:
            events.extend(channel.text_so_far(self._store.now()))
        return events

    def accept(self, events: Iterable[Event]) -> Iterator[Event]:
        """Those that come next. A gap in the numbers makes the reader go back to the log."""
        for event in events:
            if not event.durable:
                if event.sequence == self._cursor:
                    yield event
            elif event.sequence == self._cursor + 1:
                self._cursor = event.sequence
                yield event
            elif event.sequence > self._cursor:
                self._subscription.lagging = True
                return

    def event(self, body: Heartbeat | Live) -> Event:
        """An event that is not stored, at the cursor."""
        return Event(self._what.run_id, self._cursor, "", self._store.now(), body)

    def is_end(self, event: Event) -> bool:
        """Whether this is the stop that ends the following."""
        return isinstance(event.body, RunStopped) and (self._what.next_stop or event.body.final)

    def patience(self) -> float:
        """How long to wait for something to happen, in seconds."""
        if self._deadline is None:
            return self._what.heartbeat
        return min(self._what.heartbeat, self._deadline - self._time())

    def out_of_time(self) -> bool:
        """Whether `max_wait` is over."""
        return self._deadline is not None and self._time() >= self._deadline


def _trimmed(what: Follow) -> AgentServiceError:
    return AgentServiceError(
        Reason.CURSOR_TRIMMED,
        f"the events of {what.run_id} up to {what.ended_at} are not kept any more; "
        "read the run with GetRun and its messages with ListMessages",
        metadata={"last_sequence": str(what.ended_at)},
    )


def _shutting_down() -> AgentServiceError:
    text = "the server is shutting down; attach again with WatchRun after the last sequence seen"
    return AgentServiceError(Reason.SHUTTING_DOWN, text, retry_after=1.0)


def merged(events: list[Event]) -> list[Event]:
    """The same events with neighbouring deltas of one part joined: what waits already is sent as one."""
    if len(events) < 2:
        return events
    result: list[Event] = []
    pieces: list[str] = []
    for event in events:
        if pieces and _continues(result[-1], event):
            pieces.append(event.body.text)  # type: ignore[union-attr]  # only deltas continue
            continue
        _close(result, pieces)
        result.append(event)
        pieces = [event.body.text] if isinstance(event.body, TextDelta | ReasoningDelta | ArgumentsDelta) else []
    _close(result, pieces)
    return result


def _continues(first: Event, event: Event) -> bool:
    a, b = first.body, event.body
    if type(a) is not type(b) or first.sequence != event.sequence:
        return False
    if isinstance(a, ArgumentsDelta) and isinstance(b, ArgumentsDelta):
        return a.message_id == b.message_id and a.index == b.index
    if isinstance(a, TextDelta | ReasoningDelta) and isinstance(b, TextDelta | ReasoningDelta):
        return a.message_id == b.message_id
    return False


def _close(result: list[Event], pieces: list[str]) -> None:
    if len(pieces) > 1:
        last, body = result[-1], result[-1].body
        assert isinstance(body, TextDelta | ReasoningDelta | ArgumentsDelta)
        result[-1] = replace(last, body=replace(body, text="".join(pieces)))
