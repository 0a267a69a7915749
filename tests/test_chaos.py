"""The checker of the attack on server processes: each of its rules finds what it is for, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from agentrpc.v1 import events_pb2, messages_pb2, runs_pb2

from tests.chaos.campaign import Attack, Size, attack
from tests.chaos.checker import RULES, check
from tests.chaos.evidence import Evidence
from tests.chaos.fleet import Setup
from tests.chaos.journal import Journal, raw

Doctor = Callable[[Journal, Evidence], None]


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Attack:
    """A small attack with two kills on the service as it is."""
    folder = tmp_path_factory.mktemp("chaos")
    return asyncio.run(attack(Setup(folder), 7, Size(conversations=30, kills=2)))


def test_a_killed_service_loses_and_doubles_nothing(attacked: Attack) -> None:
    """Servers on one file are killed under load; the checker finds nothing, and there was something to check."""
    assert [*attacked.journal.findings, *check(attacked.journal, attacked.evidence), *attacked.crashes] == []
    assert attacked.kills >= 2
    assert len(attacked.evidence.runs) >= 30
    assert attacked.evidence.executions


def _run(evidence: Evidence, *kinds: str) -> str:
    """A run that is over and has events of these kinds."""
    for run_id, events in evidence.events.items():
        if set(kinds) <= {event.WhichOneof("payload") for event in events} and events[-1].run_stopped.final:
            return run_id
    raise LookupError(kinds)


def _events(evidence: Evidence, *kinds: str) -> list[events_pb2.RunEvent]:
    return evidence.events[_run(evidence, *kinds)]


def _message(evidence: Evidence, good: Callable[[messages_pb2.Message], bool]) -> messages_pb2.Message:
    """A message of a run that is over."""
    over = {run_id for run_id, run in evidence.runs.items() if run.status == runs_pb2.RUN_STATUS_COMPLETED}
    return next(m for messages in evidence.messages.values() for m in messages if m.run_id in over and good(m))


def _return(evidence: Evidence, name: str) -> messages_pb2.ToolReturnMessage:
    good = {"tool_return": name}
    found = _message(evidence, lambda m: m.tool_return.name == good["tool_return"] and m.tool_return.outcome == 1)
    return found.tool_return


def every_run_is_settled(_: Journal, evidence: Evidence) -> None:
    evidence.runs[_run(evidence)].status = runs_pb2.RUN_STATUS_RUNNING


def numbers_have_no_gap(_: Journal, evidence: Evidence) -> None:
    del _events(evidence)[2]


def one_clock_tells_the_times(_: Journal, evidence: Evidence) -> None:
    _events(evidence)[0].create_time.seconds += 3600


def runs_begin_and_end_once(_: Journal, evidence: Evidence) -> None:
    events = _events(evidence)
    events.append(events[-1])


def the_last_stop_is_the_run(_: Journal, evidence: Evidence) -> None:
    _events(evidence)[-1].run_stopped.usage.prompt_tokens += 1


def owners_follow_each_other(_: Journal, evidence: Evidence) -> None:
    event = next(e for e in _events(evidence, "run_resumed") if e.HasField("run_resumed"))
    event.run_resumed.epoch = 1


def each_full_answer_resumes_once(_: Journal, evidence: Evidence) -> None:
    resumed = ((events, e) for events in evidence.events.values() for e in events if e.HasField("run_resumed"))
    events, event = next(each for each in resumed if each[1].run_resumed.cause == events_pb2.RUN_CAUSE_SUBMIT)
    events.insert(-1, event)


def events_tell_the_messages(_: Journal, evidence: Evidence) -> None:
    event = next(e for e in _events(evidence) if e.HasField("message_stored"))
    event.message_stored.message.message_id = "another"


def lists_show_every_run(_: Journal, evidence: Evidence) -> None:
    evidence.listed.remove(_run(evidence))


def acknowledged_starts_are_there(journal: Journal, evidence: Evidence) -> None:
    journal.starts[_run(evidence)] = "another"


def events_seen_are_there(journal: Journal, evidence: Evidence) -> None:
    run_id = _run(evidence)
    journal.events[run_id][evidence.runs[run_id].last_sequence + 1] = b""


def messages_seen_are_there(journal: Journal, _: Evidence) -> None:
    journal.messages["lost"] = b""


def receipts_are_there(journal: Journal, evidence: Evidence) -> None:
    run_id = _run(evidence, "tool_returns_accepted")
    journal.taken[run_id].add("lost")


def ended_runs_stay_as_they_were_shown(journal: Journal, evidence: Evidence) -> None:
    run_id = _run(evidence)
    shown = deepcopy(evidence.runs[run_id])
    shown.last_sequence -= 1
    journal.finals[run_id] = raw(shown)


def deltas_are_pieces_of_their_messages(journal: Journal, evidence: Evidence) -> None:
    message = _message(evidence, lambda m: m.HasField("assistant"))
    delta = events_pb2.TextDelta(message_id=message.message_id, offset=1, text=message.assistant.text)
    journal.deltas.append(events_pb2.RunEvent(run_id=message.run_id, text_delta=delta))


def each_call_has_one_outcome(_: Journal, evidence: Evidence) -> None:
    found = _message(evidence, lambda m: m.HasField("tool_return"))
    evidence.messages[found.conversation_id].remove(found)


def outcomes_are_those_accepted(journal: Journal, evidence: Evidence) -> None:
    journal.outcomes[_return(evidence, "ask").tool_call_id] = "something else"


def accepted_once(_: Journal, evidence: Evidence) -> None:
    events = _events(evidence, "tool_returns_accepted")
    events.append(next(e for e in events if e.HasField("tool_returns_accepted")))


def server_tools_run_once(_: Journal, evidence: Evidence) -> None:
    evidence.executions[_return(evidence, "charge").tool_call_id].append("charge again")


def server_tools_did_what_is_stored(_: Journal, evidence: Evidence) -> None:
    evidence.executions[_return(evidence, "look_up").tool_call_id] = ["something else"]


def the_model_sees_the_stored_outcomes(_: Journal, evidence: Evidence) -> None:
    _return(evidence, "ask").text = "something else"


def the_endpoint_took_every_request(_: Journal, evidence: Evidence) -> None:
    evidence.problems = ["no reply"]


def requests_extend_each_other(_: Journal, evidence: Evidence) -> None:
    body: dict[str, Any] = deepcopy(evidence.requests[0].body)
    body["messages"].insert(-1, {"role": "user", "content": "never said"})
    evidence.requests = [*evidence.requests, replace(evidence.requests[0], body=body)]


def requests_show_what_is_stored(_: Journal, evidence: Evidence) -> None:
    found = _message(evidence, lambda m: m.HasField("summary"))
    found.summary.text += "!"


def summaries_are_told(_: Journal, evidence: Evidence) -> None:
    event = next(e for e in _events(evidence, "compaction") if e.HasField("compaction"))
    event.compaction.message_id = "another"


def answers_are_stored_once(_: Journal, evidence: Evidence) -> None:
    found = _message(evidence, lambda m: m.HasField("assistant"))
    evidence.messages[found.conversation_id].append(found)


def answers_follow_the_whole_returns(_: Journal, evidence: Evidence) -> None:
    found = _message(evidence, lambda m: m.HasField("tool_return"))
    evidence.messages[found.conversation_id].remove(found)


def steps_and_usage_are_those_stored(_: Journal, evidence: Evidence) -> None:
    evidence.runs[_run(evidence)].steps_taken += 1


def steps_are_whole(_: Journal, evidence: Evidence) -> None:
    found = _message(evidence, lambda m: m.HasField("tool_call"))
    found.tool_call.tool_calls[0].arguments_json = '{"what": "[0000000000000000.1] 0"}'


def each_message_is_read_once(_: Journal, evidence: Evidence) -> None:
    evidence.due[next(iter(evidence.due))] += 1


def each_edit_is_made_once(_: Journal, evidence: Evidence) -> None:
    evidence.notes += evidence.notes.splitlines()[0] + "\n"


def memory_runs_come_one_by_one(_: Journal, evidence: Evidence) -> None:
    run = evidence.runs[next(iter(evidence.parts))]
    run.end_time.seconds += 3600


def memory_runs_name_their_cause(_: Journal, evidence: Evidence) -> None:
    evidence.runs[next(iter(evidence.parts))].parent_run_id = _run(evidence)


DOCTORS: tuple[Doctor, ...] = (
    every_run_is_settled,
    numbers_have_no_gap,
    one_clock_tells_the_times,
    runs_begin_and_end_once,
    the_last_stop_is_the_run,
    owners_follow_each_other,
    each_full_answer_resumes_once,
    events_tell_the_messages,
    lists_show_every_run,
    acknowledged_starts_are_there,
    events_seen_are_there,
    messages_seen_are_there,
    receipts_are_there,
    ended_runs_stay_as_they_were_shown,
    deltas_are_pieces_of_their_messages,
    each_call_has_one_outcome,
    outcomes_are_those_accepted,
    accepted_once,
    server_tools_run_once,
    server_tools_did_what_is_stored,
    the_model_sees_the_stored_outcomes,
    the_endpoint_took_every_request,
    requests_extend_each_other,
    requests_show_what_is_stored,
    summaries_are_told,
    answers_are_stored_once,
    answers_follow_the_whole_returns,
    steps_and_usage_are_those_stored,
    steps_are_whole,
    each_message_is_read_once,
    each_edit_is_made_once,
    memory_runs_come_one_by_one,
    memory_runs_name_their_cause,
)
"""One for each rule, named like it: it makes the evidence break that rule."""


def test_every_rule_is_tried() -> None:
    """A rule without evidence against it could be one that finds nothing."""
    assert [doctor.__name__ for doctor in DOCTORS] == [rule.__name__ for rule in RULES]


@pytest.fixture
def copied(attacked: Attack) -> Iterator[tuple[Journal, Evidence]]:
    """What was left of the attack, to be changed."""
    yield deepcopy(attacked.journal), deepcopy(attacked.evidence)


@pytest.mark.parametrize("doctor", DOCTORS, ids=lambda doctor: doctor.__name__)
def test_a_rule_finds_what_breaks_it(doctor: Doctor, copied: tuple[Journal, Evidence]) -> None:
    """Evidence that breaks one rule is found by that rule."""
    journal, evidence = copied
    doctor(journal, evidence)
    assert doctor.__name__ in {finding.split(":")[0] for finding in check(journal, evidence)}
