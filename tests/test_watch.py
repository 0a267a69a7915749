"""WatchRun: leaving a run's events and coming back loses nothing, whatever the run does meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import events_pb2, messages_pb2, run_service_pb2, run_service_pb2_grpc

from tests.scripted_openai import Gate, breaks_off, calls, gated, says, silent
from tests.service import SECRET, Client, durable, event_kinds, refusal, returned, scripted, step, submit

pytestmark = pytest.mark.anyio

# Each piece is one token: flags, families and combining marks are several code points, and more UTF-16 units or bytes.
PIECES = ["Grüße ", "🇩🇪", "👩‍👩‍👧", " e\u0301", " 漢字", " \U0001f642", " end"]
TEXT = "".join(PIECES)
Parts = dict[tuple[str, int], str]


class Watcher:
    """Reads a stream of events step by step and checks what holds on every stream: numbers never go down, the text of
    a message is put together without a hole, and `live` is told once."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.events: list[events_pb2.RunEvent] = []
        self.parts: Parts = {}

    async def next(self) -> events_pb2.RunEvent | None:
        """The next event; None at the end of the stream."""
        async with asyncio.timeout(10):
            response = await self.call.read()
        if response is grpc.aio.EOF:
            assert await self.call.code() is grpc.StatusCode.OK
            return None
        event: events_pb2.RunEvent = response.event
        assert not self.events or event.sequence >= self.events[-1].sequence
        self.events.append(event)
        fold([event], self.parts)
        assert event_kinds(self.events).count("live") <= 1
        return event

    async def until(self, reached: Callable[[Watcher], bool]) -> None:
        """Reads on until this holds."""
        while not reached(self):
            assert await self.next() is not None, f"the stream ended after {event_kinds(self.events)}"

    async def rest(self) -> list[events_pb2.RunEvent]:
        """Reads to the end; all events."""
        while await self.next() is not None:
            pass
        return self.events

    @property
    def sequence(self) -> int:
        """The cursor: the number of the last event."""
        return self.events[-1].sequence

    @property
    def text(self) -> str:
        """The text of the message begun last."""
        return list(self.parts.values())[-1] if self.parts else ""


def fold(events: Iterable[events_pb2.RunEvent], parts: Parts) -> Parts:
    """Puts each delta at its offset, by message (and call)."""
    for event in events:
        body = getattr(event, str(event.WhichOneof("payload")))
        if isinstance(body, events_pb2.TextDelta | events_pb2.ReasoningDelta | events_pb2.ToolCallArgumentsDelta):
            key = (body.message_id, getattr(body, "index", -1))
            before = parts.get(key, "")
            assert body.offset <= len(before), f"a hole before {body.offset} in {before!r}"
            overlap = before[body.offset : body.offset + len(body.text)]
            assert body.text.startswith(overlap), f"{body.text!r} is told where {before!r} was"
            parts[key] = before[: body.offset] + body.text + before[body.offset + len(body.text) :]
    return parts


def whole(events: Iterable[events_pb2.RunEvent]) -> Parts:
    """The whole text of each stored message (and the arguments of each call), as `fold` keys them."""
    parts: Parts = {}
    for event in events:
        message = event.message_stored.message
        for kind in ("assistant", "reasoning"):
            if message.HasField(kind):
                parts[message.message_id, -1] = getattr(message, kind).text
        for index, call in enumerate(message.tool_call.tool_calls):
            parts[message.message_id, index] = call.arguments_json
    return parts


def watching(client: Client, run_id: str, after: int = 0, **fields: Any) -> Watcher:
    """A watcher with deltas."""
    fields = {"stream_tokens": True, **fields}
    request = run_service_pb2.WatchRunRequest(run_id=run_id, after_sequence=after, **fields)
    return Watcher(client.runs.WatchRun(request, timeout=30))


async def begin(client: Client, run_id: str = "run-1", **fields: Any) -> str:
    """Starts a run in the background."""
    return (await client.ask("Hi", SECRET, run_id=run_id, background=True, **fields)).run.run_id


@asynccontextmanager
async def writing(gate: Gate, store: str, **settings: Any) -> AsyncIterator[tuple[Client, str]]:
    """A run whose model writes TEXT piece by piece as the gate says."""
    async with scripted([gated(says(PIECES), gate)], store, **settings) as (client, _):
        yield client, await begin(client)


async def test_a_watcher_may_leave_after_any_event_and_come_back(store: str) -> None:
    """After a pause, a restarted step and the end: before the cut and after it make the same log, byte for byte.

    Also the number of a delta or of `live` is a good cursor.
    """
    script = [
        calls(("get_secret_code", {"name": "Ålice 🙂"}), text="Let me look."),
        breaks_off(says(PIECES), after=3),
        says(PIECES, reasoning="It said so."),
    ]
    async with scripted(script, store) as (client, _):
        run_id = await begin(client)
        undisturbed = watching(client, run_id)
        await undisturbed.until(lambda w: w.events[-1:] != [] and w.events[-1].HasField("run_stopped"))
        (call,) = undisturbed.events[-1].run_stopped.remaining
        resuming = client.answer(run_id, returned(call, "A-1"))
        events = (await asyncio.gather(undisturbed.rest(), resuming))[0]
        log = durable(events)
        assert event_kinds(events).count("step_restarted") == 1
        assert durable(await client.watch(run_id)) == log
        for count, last in enumerate(events, 1):
            again = await watching(client, run_id, last.sequence).rest()
            assert durable([*events[:count], *again]) == log


async def test_what_is_left_between_two_deltas_is_made_whole(store: str) -> None:
    """A watcher that leaves in the middle of a message and comes back has its text without a hole or a doubled piece.

    Offsets count Unicode code points.
    """
    gate = Gate()
    async with writing(gate, store) as (client, run_id):
        undisturbed = watching(client, run_id)
        left: list[Watcher] = []
        for count in range(len(PIECES) + 1):
            sofar = "".join(PIECES[:count])
            await undisturbed.until(lambda w, sofar=sofar: w.text == sofar and w.events != [])  # type: ignore[misc]  # mypy infers no lambda with defaults
            leaving = watching(client, run_id)
            await leaving.until(lambda w, sofar=sofar: "live" in event_kinds(w.events) and w.text == sofar)  # type: ignore[misc]  # mypy infers no lambda with defaults
            leaving.call.cancel()
            left.append(leaving)
            gate.release()
        events = await undisturbed.rest()
        for watcher in left:
            back = watching(client, run_id, watcher.sequence)
            back.parts = watcher.parts
            again = await back.rest()
            assert durable([*watcher.events, *again]) == durable(events)
            assert all(TEXT.startswith(text) for text in back.parts.values())
        assert undisturbed.parts == whole(events)
        assert list(undisturbed.parts.values()) == [TEXT]


async def test_watchers_that_come_back_while_the_model_writes_see_it_all(store: str) -> None:
    """Leaving after every single delta and re-attaching at once gives the whole text in the end."""
    gate = Gate()
    async with writing(gate, store) as (client, run_id):
        parts: Parts = {}
        events: list[events_pb2.RunEvent] = []
        for count in range(1, len(PIECES) + 1):
            watcher = watching(client, run_id, events[-1].sequence if events else 0)
            watcher.parts = parts
            gate.release()
            await watcher.until(lambda w, count=count: w.text == "".join(PIECES[:count]))  # type: ignore[misc]  # mypy infers no lambda with defaults
            watcher.call.cancel()
            events += watcher.events
        last = watching(client, run_id, events[-1].sequence)
        gate.open()
        events += await last.rest()
        assert fold(events, {}) == whole(events) == {next(iter(parts)): TEXT}
        assert durable(events) == durable(await client.watch(run_id))


async def test_a_late_watcher_gets_the_text_so_far_after_live(store: str) -> None:
    """Stored events, `live` once, then one delta from offset 0, then what comes."""
    gate = Gate()
    async with writing(gate, store) as (client, run_id):
        early = watching(client, run_id)
        gate.release(4)
        await early.until(lambda w: w.text == "".join(PIECES[:4]))
        late = watching(client, run_id)
        await late.until(lambda w: w.text != "")
        assert event_kinds(late.events) == ["run_accepted", "message_stored", "run_started", "live", "text_delta"]
        assert late.events[3].live.deltas
        delta = late.events[4].text_delta
        assert (delta.offset, delta.text) == (0, "".join(PIECES[:4]))
        gate.open()
        await late.rest()
        assert late.text == TEXT
        assert event_kinds(late.events)[-2:] == ["message_stored", "run_stopped"]


async def test_the_text_of_a_broken_attempt_is_a_prefix_and_never_stored(store: str) -> None:
    """The step restarts under new message ids: the deltas of an attempt that did not end are of no stored message.

    A watcher that attaches in the second attempt sees only that one's text.
    """
    gate = Gate()
    broken = gated(breaks_off(says(PIECES), after=3), gate)
    async with scripted([broken, gated(says(PIECES), gate)], store) as (client, _):
        run_id = await begin(client)
        undisturbed = watching(client, run_id)
        gate.release(3)
        await undisturbed.until(lambda w: w.text == "".join(PIECES[:3]))
        gate.release(3)
        await undisturbed.until(lambda w: "step_restarted" in event_kinds(w.events) and w.text == "".join(PIECES[:2]))
        late = watching(client, run_id)
        await late.until(lambda w: w.text == "".join(PIECES[:2]))
        gate.open()
        events = await undisturbed.rest()
        stored = whole(events)
        assert list(stored.values()) == [TEXT]
        (abandoned,) = undisturbed.parts.keys() - stored.keys()
        assert TEXT.startswith(undisturbed.parts[abandoned])
        assert {key: undisturbed.parts[key] for key in stored} == stored
        assert durable(await late.rest()) == durable(events)
        assert late.parts == stored
        attempts = [event.text_delta.attempt for event in events if event.HasField("text_delta")]
        restarted = next(event.step_restarted for event in events if event.HasField("step_restarted"))
        assert sorted(set(attempts)) == [1, 2]
        assert restarted.attempt == 2


async def test_deltas_of_every_kind_make_the_whole_message(store: str) -> None:
    """Reasoning, text and the arguments of parallel calls, folded by message, call and offset, equal what is stored."""
    arguments = [{"name": "Zoë 👋🏽"}, {"name": "漢字"}]
    gate = Gate()
    reply = calls(*(("get_secret_code", value) for value in arguments), text="Zwei Rufe: 🙂🙂", gate=gate)
    async with scripted([reply, says("🙂" * 40, reasoning="Ja, né e\u0301.")], store) as (client, _):
        run_id = await begin(client)
        watcher = watching(client, run_id)
        await watcher.until(lambda w: "live" in event_kinds(w.events))
        gate.open()
        await watcher.until(lambda w: w.events[-1:] != [] and w.events[-1].HasField("run_stopped"))
        remaining = watcher.events[-1].run_stopped.remaining
        answers = submit(run_id, *(returned(call, "x") for call in remaining))
        stream = client.agent.StreamToolReturns(pb.StreamToolReturnsRequest(submit=answers, stream_tokens=True))
        streamed = [response.event async for response in stream]
        events = await watcher.rest()
        assert watcher.parts == whole(events)
        assert len(watcher.parts) == 5
        assert fold(streamed, {}) == whole(streamed)


async def test_a_watch_goes_on_over_a_pause_and_ends_with_the_run(store: str) -> None:
    """A pause is shown and waited over; the watch ends after the final stop."""
    async with scripted([calls(("get_secret_code", {"name": "A"})), says("Done.")], store) as (client, _):
        paused = await client.ask("Hi", SECRET)
        watcher = watching(client, paused.run.run_id)
        await watcher.until(lambda w: event_kinds(w.events)[-2:] == ["run_stopped", "live"])
        assert not watcher.call.done()
        await client.answer(paused.run.run_id, returned(paused.run.pending_tool_calls[0], "A-1"))
        stops = [event.run_stopped.final for event in await watcher.rest() if event.HasField("run_stopped")]
        assert stops == [False, True]


async def test_a_watch_to_the_next_stop_ends_there(store: str) -> None:
    """NEXT_STOP ends at the first RunStopped after the cursor: one already stored, or one to come."""
    async with scripted([calls(("get_secret_code", {"name": "A"})), says("Done.")], store) as (client, _):
        paused = await client.ask("Hi", SECRET)
        run_id, at = paused.run.run_id, paused.run.last_sequence
        stop = run_service_pb2.STOP_AT_NEXT_STOP
        assert [event.sequence for event in await client.watch(run_id, stop_at=stop)] == list(range(1, at + 1))
        next_one = watching(client, run_id, at, stop_at=stop)
        await next_one.until(lambda w: event_kinds(w.events) == ["live"])
        await client.answer(run_id, returned(paused.run.pending_tool_calls[0], "A-1"))
        events = await next_one.rest()
        assert events[-1].run_stopped.final
        assert durable(events) == durable(await client.watch(run_id, at))


async def test_a_cursor_beyond_the_log_is_refused(store: str) -> None:
    """OUT_OF_RANGE with CURSOR_AHEAD and the last sequence; a negative one is INVALID_ARGUMENT, an unknown run none."""
    async with scripted([says("Done.")], store) as (client, _):
        run = (await client.ask("Hi")).run
        ahead = await refusal(watching(client, run.run_id, run.last_sequence + 1).call)
        assert (ahead.code, ahead.reason) == ("OUT_OF_RANGE", "CURSOR_AHEAD")
        assert ahead.metadata["last_sequence"] == str(run.last_sequence)
        negative = await refusal(watching(client, run.run_id, -1).call)
        assert (negative.code, negative.fields) == ("INVALID_ARGUMENT", ("after_sequence",))
        unknown = await refusal(watching(client, "run-none").call)
        assert (unknown.code, unknown.reason) == ("NOT_FOUND", "RUN_NOT_FOUND")
        strange = await refusal(watching(client, run.run_id, stop_at=7).call)
        assert (strange.code, strange.fields) == ("INVALID_ARGUMENT", ("stop_at",))


async def test_a_cursor_at_the_end_of_a_terminal_run_gives_nothing(store: str) -> None:
    """Status OK without an event: there is nothing after it, and nothing will come."""
    async with scripted([says("Done.")], store) as (client, _):
        run = (await client.ask("Hi")).run
        assert await client.watch(run.run_id, run.last_sequence) == []
        assert await watching(client, run.run_id, run.last_sequence).rest() == []


async def test_a_silent_stream_has_heartbeats(store: str) -> None:
    """They repeat the last durable number, on watches and on streams, and their cursor is a good one."""
    async with scripted([silent(before_headers=True)], store, heartbeat_seconds=0.02) as (client, _):
        started = Watcher(client.agent.Stream(pb.StreamRequest(step=step("Hi", run_id="run-1"))))
        await started.next()
        for watcher in (started, watching(client, "run-1")):
            await watcher.until(lambda w: event_kinds(w.events).count("heartbeat") == 3)
            assert {e.sequence for e in watcher.events if e.HasField("heartbeat")} == {3}
            assert len(durable(watcher.events)) == 3
        again = watching(client, "run-1", started.sequence)
        await again.until(lambda w: event_kinds(w.events) == ["live", "heartbeat"])


async def test_two_watchers_see_the_same_run_each_in_its_own_view(store: str) -> None:
    """Message types filter messages and their deltas only: starts, receipts and stops are always shown."""
    gate = Gate()
    reply = gated(says(PIECES, reasoning="Hm."), gate)
    async with scripted([reply], store) as (client, _):
        run_id = await begin(client)
        everything = watching(client, run_id)
        thoughts = watching(client, run_id, include_return_message_types=[messages_pb2.MESSAGE_TYPE_REASONING])
        for watcher in (everything, thoughts):
            await watcher.until(lambda w: "live" in event_kinds(w.events))
        gate.open()
        all_of_it, some = await everything.rest(), await thoughts.rest()
        assert list(whole(all_of_it).values()) == ["Hm.", TEXT]
        assert list(whole(some).values()) == ["Hm."]
        assert thoughts.parts == whole(some)
        hidden = [event for event in all_of_it if event.HasField("message_stored") and event not in some]
        assert [event.message_stored.message.WhichOneof("content") for event in hidden] == ["user", "assistant"]
        assert set(durable(all_of_it)) - set(durable(some)) == set(durable(hidden))


async def test_a_watcher_that_does_not_read_never_slows_the_run(store: str) -> None:
    """The run ends while nobody reads; then the watcher catches up: all durable events, and no hole in the text.

    Only a few events wait for it on the server meanwhile.
    """
    long, gate = ["🙂" * 100] * 3000, Gate()
    # A connection that takes 64 KiB before its client reads, and never more.
    narrow = [("grpc.enable_http_proxy", 0), ("grpc.http2.bdp_probe", 0)]
    async with (
        scripted([gated(says(long), gate)], store, limits={"watcher_queue_events": 8}) as (client, _),
        grpc.aio.insecure_channel(client.target, options=narrow) as channel,
    ):
        run_id = await begin(client)
        request = run_service_pb2.WatchRunRequest(run_id=run_id, stream_tokens=True)
        stalled = Watcher(run_service_pb2_grpc.RunServiceStub(channel).WatchRun(request, timeout=30))
        await stalled.until(lambda w: "live" in event_kinds(w.events))
        gate.open()
        async with asyncio.timeout(20):
            ended = await client.ask("Hi", SECRET, run_id=run_id)
        assert ended.messages[-1].assistant.text == "".join(long)
        events = await stalled.rest()
        assert len(events) < len(long) / 2
        assert durable(events) == durable(await client.watch(run_id))
        assert all("".join(long).startswith(text) for text in stalled.parts.values())
