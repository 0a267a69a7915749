"""Rules about runs and their events, by what the service itself shows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from agentrpc.v1 import events_pb2, runs_pb2

from tests.chaos.evidence import Evidence
from tests.chaos.journal import TERMINAL, Journal, raw

Event = events_pb2.RunEvent

_LEAP_SECONDS = 1.0
"""By so much a clock may be set back during a campaign."""


def every_run_is_settled(journal: Journal, evidence: Evidence) -> Iterator[str]:
    """COMPLETED or CANCELLED; a run that its client left may also be PAUSED. A run that was interrupted when its
    conversation went on without it is FAILED."""
    good = (runs_pb2.RUN_STATUS_COMPLETED, runs_pb2.RUN_STATUS_CANCELLED)
    for run in evidence.runs.values():
        allowed = (*good, runs_pb2.RUN_STATUS_PAUSED) if run.run_id in journal.left else good
        if run.run_id in journal.pressed:
            allowed = (*allowed, runs_pb2.RUN_STATUS_FAILED)
        if run.status not in allowed:
            status = runs_pb2.RunStatus.Name(run.status)
            yield f"{run.run_id} is {status} {run.error.message}"


def numbers_have_no_gap(_: Journal, evidence: Evidence) -> Iterator[str]:
    """1, 2, 3, ... up to the run's last number."""
    for run_id, events in evidence.events.items():
        numbers = [event.sequence for event in events]
        last = evidence.runs[run_id].last_sequence
        if numbers != list(range(1, last + 1)):
            yield f"{run_id} has the events {numbers}, and its last one is {last}"


def one_clock_tells_the_times(_: Journal, evidence: Evidence) -> Iterator[str]:
    """No event is earlier than the one before it, whichever server wrote them."""
    for run_id, events in evidence.events.items():
        times = [event.create_time.ToNanoseconds() / 1e9 for event in events]
        for (earlier, later), event in zip(pairwise(times), events[1:], strict=True):
            if later < earlier - _LEAP_SECONDS:
                yield f"{run_id}: event {event.sequence} is {earlier - later:.0f} s earlier than the one before"


def runs_begin_and_end_once(_: Journal, evidence: Evidence) -> Iterator[str]:
    """RunAccepted is first and only once; a final RunStopped is there exactly when the run is over, once, and last."""
    for run_id, events in evidence.events.items():
        kinds = [event.WhichOneof("payload") for event in events]
        if kinds[:1] != ["run_accepted"] or kinds.count("run_accepted") != 1:
            yield f"{run_id} has the events {kinds}"
        finals = [event.sequence for event in events if event.run_stopped.final]
        over = evidence.runs[run_id].status in TERMINAL
        if finals != ([events[-1].sequence] if over else []):
            yield f"{run_id} has {len(events)} events, and final stops at {finals}"


def the_last_stop_is_the_run(_: Journal, evidence: Evidence) -> Iterator[str]:
    """A run that is not running stands as its last RunStopped says."""
    for run_id, events in evidence.events.items():
        run = evidence.runs[run_id]
        stops = [event.run_stopped for event in events if event.HasField("run_stopped")]
        if run.status == runs_pb2.RUN_STATUS_RUNNING or not stops:
            continue
        if (stops[-1].status, stops[-1].usage) != (run.status, run.usage):
            yield f"{run_id} stopped as {stops[-1]} and is shown as {run}"


def owners_follow_each_other(_: Journal, evidence: Evidence) -> Iterator[str]:
    """Each start or resume has a higher epoch than the one before."""
    for run_id, events in evidence.events.items():
        epochs = [e.run_started.epoch or e.run_resumed.epoch for e in events if _begins(e)]
        if any(later <= earlier for earlier, later in pairwise(epochs)):
            yield f"{run_id} had the epochs {epochs}"


def each_full_answer_resumes_once(_: Journal, evidence: Evidence) -> Iterator[str]:
    """A resume by a submit follows a receipt with nothing remaining, and each such receipt has at most one."""
    for run_id, events in evidence.events.items():
        due = 0
        for event in events:
            if event.HasField("tool_returns_accepted") and not event.tool_returns_accepted.remaining:
                due += 1
            elif event.HasField("run_resumed") and event.run_resumed.cause == events_pb2.RUN_CAUSE_SUBMIT:
                due -= 1
                if due < 0:
                    yield f"{run_id} was resumed at {event.sequence} without a submit of its own"


def events_tell_the_messages(_: Journal, evidence: Evidence) -> Iterator[str]:
    """The messages of a run's events are those of its conversation, byte for byte; positions have no gap."""
    for run_id, events in evidence.events.items():
        told = [raw(event.message_stored.message) for event in events if event.HasField("message_stored")]
        if told != [raw(message) for message in evidence.messages_of(run_id)]:
            yield f"{run_id}: its events tell other messages than its conversation has"
    for conversation_id, messages in evidence.messages.items():
        positions = [message.position for message in messages]
        if positions != list(range(1, len(messages) + 1)):
            yield f"{conversation_id} has messages at {positions}"


def lists_show_every_run(_: Journal, evidence: Evidence) -> Iterator[str]:
    """ListRuns shows exactly the runs that were started."""
    if evidence.listed != set(evidence.runs):
        yield f"ListRuns differs by {sorted(evidence.listed ^ set(evidence.runs))}"


def _begins(event: Event) -> bool:
    return event.HasField("run_started") or event.HasField("run_resumed")


RULES = (
    every_run_is_settled,
    numbers_have_no_gap,
    one_clock_tells_the_times,
    runs_begin_and_end_once,
    the_last_stop_is_the_run,
    owners_follow_each_other,
    each_full_answer_resumes_once,
    events_tell_the_messages,
    lists_show_every_run,
)
