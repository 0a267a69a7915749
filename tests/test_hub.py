"""Following a run inside the process: whatever is written while a reader reads, slowly or not, nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_service.domain.event import (
    ArgumentsDelta,
    Body,
    DurableBody,
    Event,
    Heartbeat,
    Live,
    MessageStored,
    ReasoningDelta,
    RunStopped,
    StepRestarted,
    TextDelta,
)
from agent_service.domain.message import AssistantContent, Message
from agent_service.domain.run import RunStatus, StopReason, Usage
from agent_service.engine.hub import Channel, Hub, OpenPart, Subscription
from agent_service.engine.watch import PAGE, Follow, follow, merged

pytestmark = pytest.mark.anyio

TENANT, RUN = "acme", "run_1"
PAUSED = RunStopped(RunStatus.PAUSED, StopReason.REQUIRES_APPROVAL, False, (), Usage())
ENDED = RunStopped(RunStatus.COMPLETED, StopReason.END_TURN, True, (), Usage())


@dataclass
class Writer:
    """A run that is written by hand: its log, as a store keeps it, and what its model says."""

    hub: Hub
    log: list[Event] = field(default_factory=list)
    reads: int = 0
    count: int = 0
    part: OpenPart | None = None

    def now(self) -> int:
        """The store's clock."""
        return 0

    async def events(self, tenant: str, run_id: str, after: int, limit: int) -> tuple[Event, ...]:
        """As RunStore.events: others go on while the page is read."""
        self.reads += 1
        page = tuple(self.log[after : after + limit])
        await asyncio.sleep(0)
        return page

    def commit(self, *bodies: DurableBody) -> None:
        """One transaction: the events are in the log and then told."""
        first = len(self.log) + 1
        events = tuple(Event(RUN, first + at, "", 0, body) for at, body in enumerate(bodies))
        self.log.extend(events)
        self.hub.publish(TENANT, RUN, events)

    def say(self, channel: Channel, text: str) -> None:
        """A token of the message in hand; begins one if there is none."""
        if self.part is None:
            self.count += 1
            channel.open_step("step_1", self.count, len(self.log))
            self.part = OpenPart(TextDelta, f"msg_{self.count}")
            channel.parts.append(self.part)
        channel.write(self.part, text, 0)

    def finish(self, channel: Channel) -> None:
        """The message in hand is whole and stored."""
        if self.part is not None:
            message_id, text = self.part.message_id, "".join(self.part.fragments)
            self.drop(channel)
            self.commit(MessageStored(Message(message_id, "conv", RUN, "step_1", 1, 0, AssistantContent(text))))

    def restart(self, channel: Channel) -> None:
        """The message in hand broke off."""
        if self.part is not None:
            self.drop(channel)
            self.commit(StepRestarted(self.count + 1, "broke off"))

    def pause(self) -> None:
        """The run pauses, if no message is in hand."""
        if self.part is None:
            self.commit(PAUSED)

    def drop(self, channel: Channel) -> None:
        """Nothing is being written any more."""
        self.part = None
        channel.close_step()


class Reader:
    """Follows a run as far as it is let."""

    def __init__(self, writer: Writer, after: int, *, deltas: bool = True, **what: Any) -> None:
        self.after = after
        self.seen: list[Event] = []
        self._may = asyncio.Semaphore(0)
        self._writer = writer
        self._deltas = deltas
        self._what = Follow(TENANT, RUN, after, **{"next_stop": False, "announce": True, **what})
        self.task = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        with self._writer.hub.subscribe(TENANT, RUN, deltas=self._deltas) as subscription:
            events: AsyncGenerator[Event] = follow(self._writer, subscription, self._what)  # type: ignore[arg-type]  # all of the store that is needed here
            async with aclosing(events):
                async for event in events:
                    self.seen.append(event)
                    await self._may.acquire()

    def let(self, events: int) -> None:
        """Lets it take so many more."""
        for _ in range(events):
            self._may.release()

    def texts(self) -> dict[str, str]:
        """The deltas it saw, put at their offsets."""
        texts: dict[str, str] = {}
        for event in self.seen:
            if isinstance(event.body, TextDelta):
                text = texts.get(event.body.message_id, "")
                assert event.body.offset <= len(text), "a hole"
                assert event.body.text.startswith(text[event.body.offset :][: len(event.body.text)])
                end = event.body.offset + len(event.body.text)
                texts[event.body.message_id] = text[: event.body.offset] + event.body.text + text[end:]
        return texts

    def check(self) -> None:
        """What holds for every reader at every moment."""
        durable = [event for event in self.seen if event.durable]
        assert durable == self._writer.log[self.after :][: len(durable)]
        numbers = [event.sequence for event in self.seen]
        assert numbers == sorted(numbers)
        for event in self.seen:
            assert event.durable or self._writer.log[: event.sequence][-1].sequence == event.sequence
        assert [type(event.body) for event in self.seen].count(Live) <= 1
        whole = stored(self._writer.log)
        for message_id, text in self.texts().items():
            assert message_id not in whole or whole[message_id].startswith(text)


def let_all(readers: list[Reader], events: int) -> None:
    """Lets each take so many more."""
    for reader in readers:
        reader.let(events)


def stored(log: list[Event]) -> dict[str, str]:
    """The whole text of each message of the log."""
    texts: dict[str, str] = {}
    for event in log:
        if isinstance(event.body, MessageStored) and isinstance(event.body.message.content, AssistantContent):
            texts[event.body.message.message_id] = event.body.message.content.text
    return texts


TEXTS = st.text("aé🙂\u0301漢", min_size=1, max_size=3)
ACTIONS = st.one_of(
    st.tuples(st.just("say"), TEXTS),
    st.tuples(st.just("say"), TEXTS),
    st.tuples(st.sampled_from(["finish", "restart", "pause", "yield", "yield"]), st.none()),
    st.tuples(st.just("attach"), st.integers(0, 5)),
    st.tuples(st.just("let"), st.integers(1, 10)),
    st.tuples(st.just("let"), st.integers(1, 10)),
)


@settings(deadline=None, max_examples=300)
@given(actions=st.lists(ACTIONS, max_size=60), limit=st.integers(1, 6), deltas=st.sampled_from([True, True, False]))
def test_readers_lose_nothing_whatever_happens_while_they_read(
    actions: list[tuple[str, Any]], limit: int, deltas: bool
) -> None:
    """Readers attach and stall anywhere; each sees the log after its cursor in order and without a gap, numbers that
    never go down, `live` once, and deltas without a hole that are a prefix of the message; no queue outgrows its limit.
    """

    async def scenario() -> None:
        hub = Hub(limit)
        writer = Writer(hub)
        writer.commit(PAUSED)
        readers: list[Reader] = []
        with hub.own(TENANT, RUN, 0) as channel:
            do: dict[str, Callable[[Any], object]] = {
                "say": lambda text: writer.say(channel, text),
                "finish": lambda _: writer.finish(channel),
                "restart": lambda _: writer.restart(channel),
                "pause": lambda _: writer.pause(),
                "yield": lambda _: None,
                "attach": lambda after: readers.append(Reader(writer, min(after, len(writer.log)), deltas=deltas)),
                "let": lambda count: let_all(readers, count),
            }
            for action, argument in actions:
                do[action](argument)
                if action in ("yield", "attach", "let"):
                    for _ in range(3):
                        await asyncio.sleep(0)
                for reader in readers:
                    reader.check()
                assert all(len(subscription._items) <= limit for subscription in channel.subscriptions)
            writer.finish(channel)
        writer.commit(ENDED)
        for reader in readers:
            reader.let(10_000)
            await asyncio.wait_for(reader.task, 10)
            reader.check()
            assert [event for event in reader.seen if event.durable] == writer.log[reader.after :]
            assert deltas or not reader.texts()
        assert not hub._channels

    asyncio.run(scenario())


@settings(deadline=None, max_examples=100)
@given(pieces=st.lists(TEXTS, min_size=1, max_size=30), attach=st.integers(0, 30), greed=st.integers(1, 5))
def test_a_reader_that_keeps_up_sees_the_whole_message_whenever_it_attaches(
    pieces: list[str], attach: int, greed: int
) -> None:
    """Its deltas, put at their offsets, equal the stored message."""

    async def scenario() -> None:
        writer = Writer(Hub(1000))
        writer.commit(PAUSED)
        reader = None
        with writer.hub.own(TENANT, RUN, 0) as channel:
            for number, piece in enumerate(pieces):
                if number == min(attach, len(pieces) - 1):
                    reader = Reader(writer, 0)
                    reader.let(10_000)
                writer.say(channel, piece)
                for _ in range(greed):
                    await asyncio.sleep(0)
            for _ in range(10):
                await asyncio.sleep(0)
            writer.finish(channel)
        writer.commit(ENDED)
        assert reader is not None
        await asyncio.wait_for(reader.task, 10)
        reader.check()
        assert reader.texts() == stored(writer.log)

    asyncio.run(scenario())


async def test_a_reader_that_stalls_is_cut_off_and_catches_up_from_the_log() -> None:
    """Above the limit its queue is dropped; then it reads the log, and gets the text so far as one delta."""
    writer = Writer(Hub(4))
    writer.commit(PAUSED)
    with writer.hub.own(TENANT, RUN, 0) as channel:
        reader = Reader(writer, 0)
        reader.let(1)
        await settled(lambda: len(reader.seen) == 2)
        for number in range(1000):
            writer.say(channel, str(number % 10))
        (subscription,) = channel.subscriptions
        assert subscription.lagging
        assert len(subscription._items) == 0
        reader.let(1)
        await settled(lambda: len(reader.seen) == 3)
        body = reader.seen[-1].body
        assert isinstance(body, TextDelta)
        assert (body.offset, body.text) == (0, "0123456789" * 100)
        reader.let(10)
        writer.finish(channel)
    writer.commit(ENDED)
    await reader.task
    assert [event for event in reader.seen if event.durable] == writer.log


async def test_a_long_log_is_read_in_pages() -> None:
    """A log of several pages is seen whole and in order, also when it grows meanwhile."""
    writer = Writer(Hub(10))
    writer.commit(*[PAUSED] * (2 * PAGE + 7))
    reader = Reader(writer, 3)
    reader.let(10)
    await settled(lambda: len(reader.seen) == 11)
    writer.commit(*[PAUSED] * 50, ENDED)
    reader.let(10_000)
    await reader.task
    assert [event for event in reader.seen if event.durable] == writer.log[3:]
    assert writer.reads >= 3


async def test_a_fresh_follower_never_reads_the_log() -> None:
    """Subscribed before the event after its cursor was committed, it needs the queue alone."""
    writer = Writer(Hub(10))
    reader = Reader(writer, 0, fresh=True, announce=False, next_stop=True)
    reader.let(10)
    await settled(lambda: writer.hub._channels != {})
    writer.commit(StepRestarted(1, "a"), PAUSED)
    await reader.task
    assert reader.seen == writer.log
    assert writer.reads == 0


async def test_a_lost_hint_sends_the_reader_back_to_the_log() -> None:
    """A gap in the numbers is never shown: what is missing is read."""
    writer = Writer(Hub(10))
    writer.commit(PAUSED)
    reader = Reader(writer, 0)
    reader.let(100)
    await settled(lambda: isinstance(reader.seen[-1].body if reader.seen else None, Live))
    writer.log.append(Event(RUN, 2, "", 0, PAUSED))
    writer.commit(ENDED)
    await reader.task
    assert [event for event in reader.seen if event.durable] == writer.log


async def test_a_delta_of_before_is_not_shown_after_the_event_that_ended_it() -> None:
    """A reader that finds an event in the log before it is told of it skips the text that the event made whole."""
    writer = Writer(Hub(10))
    writer.commit(PAUSED)
    with writer.hub.own(TENANT, RUN, 0) as channel:
        writer.say(channel, "Half")
        writer.log.append(Event(RUN, 2, "", 0, StepRestarted(2, "broke off")))
        reader = Reader(writer, 0)
        reader.let(100)
        await settled(lambda: len(reader.seen) == 3)
        writer.drop(channel)
        writer.hub.publish(TENANT, RUN, (writer.log[1],))
    writer.commit(ENDED)
    await reader.task
    assert [event.sequence for event in reader.seen] == [1, 2, 2, 3]
    assert reader.texts() == {}


async def test_heartbeats_come_when_nothing_else_does() -> None:
    """They repeat the last durable number and stop with the run."""
    writer = Writer(Hub(10))
    writer.commit(PAUSED)
    reader = Reader(writer, 0, heartbeat=0.0)
    reader.let(5)
    await settled(lambda: len(reader.seen) == 6)
    assert [type(event.body) for event in reader.seen[2:]] == [Heartbeat] * 4
    assert {event.sequence for event in reader.seen} == {1}
    writer.commit(ENDED)
    reader.let(100)
    await reader.task
    assert reader.seen[-1].body == ENDED


async def test_a_wait_that_is_over_ends_the_following() -> None:
    """With max_wait the events so far are given and then no more; the run is not touched."""
    writer = Writer(Hub(10))
    writer.commit(PAUSED, StepRestarted(1, "a"))
    reader = Reader(writer, 1, announce=False, max_wait=0.0)
    reader.let(10)
    await reader.task
    assert reader.seen == writer.log[1:]


async def test_deltas_without_a_subscriber_are_kept_for_late_ones_only_while_the_message_is_open() -> None:
    """The text so far of the parts in hand is there for who comes late, and gone with the step."""
    channel = Channel(RUN)
    channel.open_step("step_1", 1, 7)
    thought, said = OpenPart(ReasoningDelta, "msg_1"), OpenPart(TextDelta, "msg_2")
    first, second = (OpenPart(ArgumentsDelta, "msg_3", index, f"tool_{index}") for index in range(2))
    for part, text in ((thought, "Hm"), (said, "🙂 "), (said, "ok"), (first, "{}"), (second, "")):
        if part not in channel.parts:
            channel.parts.append(part)
        channel.write(part, text, 0)
    assert [event.body for event in channel.text_so_far(0)] == [
        ReasoningDelta("msg_1", 0, "Hm", 1),
        TextDelta("msg_2", 0, "🙂 ok", 1),
        ArgumentsDelta("msg_3", 0, "tool_0", 0, "{}", 1),
    ]
    assert {event.sequence for event in channel.text_so_far(0)} == {7}
    channel.close_step()
    assert channel.text_so_far(0) == []


@settings(deadline=None)
@given(parts=st.lists(st.tuples(st.sampled_from("abcde"), TEXTS), max_size=20))
def test_what_waits_together_is_joined_without_changing_it(parts: list[tuple[str, str]]) -> None:
    """Neighbouring deltas of one part become one with the first offset; parts never mix and order stays."""
    bodies: list[Body] = []
    lengths: dict[str, int] = {}
    for key, text in parts:
        offset = lengths.get(key, 0)
        lengths[key] = offset + len(text)
        made: dict[str, Body] = {
            "a": TextDelta("msg_1", offset, text, 1),
            "b": ReasoningDelta("msg_1", offset, text, 1),
            "c": ArgumentsDelta("msg_1", 0, "tool", offset, text, 1),
            "d": ArgumentsDelta("msg_1", 1, "tool", offset, text, 1),
            "e": TextDelta("msg_2", offset, text, 1),
        }
        bodies.append(made[key])
    joined = merged([Event(RUN, 1, "", 0, body) for body in bodies])
    keys = ["".join(key) for key in _runs_of([key for key, _ in parts])]
    assert len(joined) == len(keys)
    assert "".join(event.body.text for event in joined) == "".join(text for _, text in parts)  # type: ignore[union-attr]  # only deltas are joined
    first: dict[int, int] = {}
    for event in joined:
        body = event.body
        assert isinstance(body, TextDelta | ReasoningDelta | ArgumentsDelta)
        kind = hash((type(body), body.message_id, getattr(body, "index", -1)))
        assert body.offset == first.get(kind, 0)
        first[kind] = body.offset + len(body.text)


def _runs_of(keys: list[str]) -> list[list[str]]:
    result: list[list[str]] = []
    for key in keys:
        if result and result[-1][0] == key:
            result[-1].append(key)
        else:
            result.append([key])
    return result


async def test_durable_events_are_never_joined() -> None:
    """Two equal stops stay two, and a delta after one is not joined with a delta before it."""
    delta = TextDelta("msg_1", 0, "a", 1)
    events = [
        Event(RUN, 1, "", 0, delta),
        Event(RUN, 2, "", 0, PAUSED),
        Event(RUN, 2, "", 0, TextDelta("m", 1, "b", 1)),
    ]
    assert merged(events) == events
    assert merged([events[1], events[1]]) == [events[1], events[1]]


async def test_a_subscription_wakes_its_reader_for_anything_to_read() -> None:
    """A pushed event or a dropped queue ends the wait; nothing for the given time gives False."""
    subscription = Subscription(Channel(RUN), 1, True, lambda: None)
    assert not await subscription.wait(0)
    waiting = asyncio.ensure_future(subscription.wait(10))
    await asyncio.sleep(0)
    subscription.push(Event(RUN, 1, "", 0, PAUSED))
    assert await waiting
    assert len(subscription.drain()) == 1
    subscription.push(Event(RUN, 2, "", 0, PAUSED))
    subscription.push(Event(RUN, 3, "", 0, PAUSED))
    assert subscription.lagging
    assert await subscription.wait(10)
    assert subscription.drain() == []


async def test_channels_last_as_long_as_someone_uses_them() -> None:
    """Readers and the owner share one channel per run and tenant; with the last of them it is gone."""
    hub = Hub(10)
    with hub.own(TENANT, RUN, 0) as channel, hub.subscribe(TENANT, RUN, deltas=True) as one:
        with hub.subscribe("globex", RUN, deltas=True) as other:
            assert one.channel is channel
            assert other.channel is not channel
            hub.publish("globex", RUN, (Event(RUN, 1, "", 0, PAUSED),))
            assert one.drain() == []
            assert len(other.drain()) == 1
        assert len(hub._channels) == 1
    assert hub._channels == {}
    hub.publish(TENANT, RUN, (Event(RUN, 1, "", 0, PAUSED),))
    assert hub._channels == {}


async def settled(reached: Callable[[], bool]) -> None:
    """Lets the other tasks run until this holds."""
    async with asyncio.timeout(10):
        while not reached():  # noqa: ASYNC110 - the tasks that run meanwhile have no event to wait for
            await asyncio.sleep(0)


async def test_a_reader_that_falls_behind_before_it_reads_goes_to_the_log() -> None:
    """Another process wrote while a submit was on its way: what was told meanwhile is not lost to its caller."""
    hub = Hub(16)
    writer = Writer(hub)
    writer.commit(PAUSED)
    with hub.subscribe(TENANT, RUN, deltas=False) as subscription:
        for _ in range(2):
            hub.hear(TENANT, RUN, 1)
        writer.commit(ENDED)
        what = Follow(TENANT, RUN, 1, next_stop=True, fresh=True, max_wait=0.0)
        seen = [event async for event in follow(writer, subscription, what)]  # type: ignore[arg-type]  # all of the store that is needed here
    assert seen == writer.log[1:]
