"""Rules about memory runs: each part of a transcript is in one COMPLETED memory run, and they come one by one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from agentrpc.v1 import runs_pb2

from tests.chaos.call_rules import RETURNED
from tests.chaos.evidence import Evidence
from tests.chaos.journal import TERMINAL, Journal

COMPLETED = runs_pb2.RUN_STATUS_COMPLETED


def each_message_is_read_once(_: Journal, evidence: Evidence) -> Iterator[str]:
    """The parts of the COMPLETED memory runs are the transcript, in order, up to the end of the last run that is
    COMPLETED."""
    for conversation_id, due in evidence.due.items():
        parts = sorted(
            (part.first, part.last)
            for run_id, part in evidence.parts.items()
            if part.conversation_id == conversation_id and evidence.runs[run_id].status == COMPLETED
        )
        ends = [0, *(last for _, last in parts)]
        if [first for first, _ in parts] != [last + 1 for last in ends[:-1]] or ends[-1] != due:
            yield f"{conversation_id}: {parts} were read of 1 to {due}"


def memory_runs_come_one_by_one(_: Journal, evidence: Evidence) -> Iterator[str]:
    """None begins before the one before it is over."""
    runs = sorted((evidence.runs[run_id] for run_id in evidence.parts), key=lambda run: run.create_time.ToNanoseconds())
    for earlier, later in pairwise(runs):
        over = earlier.status in TERMINAL and earlier.end_time.ToNanoseconds() <= later.create_time.ToNanoseconds()
        if not over:
            yield f"{later.run_id} began before {earlier.run_id} was over"


def memory_runs_name_their_cause(_: Journal, evidence: Evidence) -> Iterator[str]:
    """A COMPLETED run of the conversation, with whose last message the part ends."""
    for run_id, part in evidence.parts.items():
        parent = evidence.runs.get(evidence.runs[run_id].parent_run_id)
        if parent is None or (parent.conversation_id, parent.status) != (part.conversation_id, COMPLETED):
            yield f"{run_id} read {part.conversation_id}, and its parent is {parent}"
        elif evidence.messages_of(parent.run_id)[-1].position != part.last:
            yield f"{run_id} was given messages to {part.last}, where {parent.run_id} does not end"


def each_edit_is_made_once(_: Journal, evidence: Evidence) -> Iterator[str]:
    """The block has the text of each call that returned, once, and no other."""
    asked, returned = {}, set()
    for run_id in evidence.parts:
        for message in evidence.messages_of(run_id):
            for call in message.tool_call.tool_calls:
                if call.name == "memory_append":
                    asked[call.tool_call_id] = json.loads(call.arguments_json)["text"]
            if message.tool_return.outcome == RETURNED:
                returned.add(message.tool_return.tool_call_id)
    told = Counter(text for call_id, text in asked.items() if call_id in returned)
    there = Counter(evidence.notes.splitlines())
    if told != there:
        yield f"edits that are told and not there: {dict(told - there)}; there and not told: {dict(there - told)}"


RULES = (each_message_is_read_once, each_edit_is_made_once, memory_runs_come_one_by_one, memory_runs_name_their_cause)
