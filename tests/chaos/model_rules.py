"""Rules about model answers: each stored once, for the history that was sent, and counted once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from agentrpc.v1 import messages_pb2, runs_pb2

from tests.chaos.evidence import Evidence
from tests.chaos.journal import Journal
from tests.chaos.model import (
    MARK,
    asks_for_summary,
    conversation_of,
    history_digest,
    of_memory,
    repeats_memory,
    usage_of,
)
from tests.scripted_openai import Request, check_histories
from tests.scripted_openai.request import text
from tests.shown import shown

Messages = list[messages_pb2.Message]
_COMPLETED = runs_pb2.RUN_STATUS_COMPLETED


def the_endpoint_took_every_request(_: Journal, evidence: Evidence) -> Iterator[str]:
    """None was malformed, such as a call without its return."""
    yield from (f"refused with {r.status}: {r.message}" for r in evidence.rejections)
    yield from evidence.problems


def requests_extend_each_other(_: Journal, evidence: Evidence) -> Iterator[str]:
    """Each request of a conversation repeats or extends the one before, with the same returns, or begins anew with a
    summary that is stored."""
    told = {m.summary.text for messages in evidence.messages.values() for m in messages if m.summary.text}

    def may_restart(request: Request) -> bool:
        return repeats_memory(request) or any(text(request.history[0]).endswith(summary) for summary in told)

    try:
        check_histories(_turns(evidence), conversation=conversation_of, may_restart=may_restart)
    except AssertionError as error:
        yield from str(error).splitlines()


def requests_show_what_is_stored(_: Journal, evidence: Evidence) -> Iterator[str]:
    """Each shows its conversation as it stood at some moment: the newest summary, and all that came after it."""
    moments: dict[int | str, list[list[dict[str, Any]]]] = {}
    for run_id, run in evidence.runs.items():
        if run_id in evidence.parts:
            continue
        number = int(run_id.split("-")[1])
        if number not in moments:
            messages = evidence.messages[run.conversation_id]
            moments[number] = [shown(messages[:end]) for end in range(1, len(messages) + 1)]
    for request in _turns(evidence):
        if not of_memory(request) and request.history not in moments.get(conversation_of(request), ()):
            yield f"request {request.number} shows what its conversation never was: {str(request.history)[:500]}"


def summaries_are_told(_: Journal, evidence: Evidence) -> Iterator[str]:
    """Each has its event right behind it, stands for more than the one before, and parts no call from its return."""
    told = {e.compaction.message_id: e for events in evidence.events.values() for e in events if e.compaction.position}
    for conversation_id, messages in evidence.messages.items():
        through = 0
        for message in messages:
            if not message.HasField("summary"):
                continue
            event, cut = told.get(message.message_id), message.summary.through_position
            if event is None or event.compaction.through_position != cut or event.run_id != message.run_id:
                yield f"{conversation_id}: the summary at {message.position} is not told as it is stored"
            elif not through < cut < message.position:
                yield f"{conversation_id}: the summary at {message.position} stands for {through} to {cut}"
            elif messages[cut - 1].step_id and messages[cut - 1].step_id == messages[cut].step_id:
                yield f"{conversation_id}: the summary at {message.position} parts {messages[cut].step_id}"
            through = cut


def answers_are_stored_once(_: Journal, evidence: Evidence) -> Iterator[str]:
    """No history has two stored answers, and each stored answer is one that the endpoint gave. What a cancelled memory
    run was given is given again."""
    sent = Counter(history_digest(request.history) for request in evidence.requests)
    runs = (run_id for run_id, run in evidence.runs.items() if run_id not in evidence.parts or run.status == _COMPLETED)
    stored = [mark for run_id in runs for _, mark in _marks(evidence.messages_of(run_id))]
    for digest, times in Counter(digest for digest, _ in stored).items():
        if times > 1:
            yield f"{times} answers to the history {digest} are stored"
    for digest, count in stored:
        if not 1 <= int(count) <= sent[digest]:
            yield f"an answer {digest}.{count} is stored that was not given"


def answers_follow_the_whole_returns(_: Journal, evidence: Evidence) -> Iterator[str]:
    """Between two answers of a run are the outcomes of all calls of the first, and after one without calls none."""
    for run_id in evidence.runs:
        open_calls: set[str] | None = set()
        for message in evidence.messages_of(run_id):
            kind = message.WhichOneof("content")
            if kind == "assistant":
                if open_calls is None or open_calls:
                    yield f"{run_id} has an answer at {message.position} that nothing asked for"
                open_calls = None
            elif kind == "tool_call":
                open_calls = {call.tool_call_id for call in message.tool_call.tool_calls}
            elif kind == "tool_return" and open_calls is not None:
                open_calls.discard(message.tool_return.tool_call_id)


def steps_and_usage_are_those_stored(_: Journal, evidence: Evidence) -> Iterator[str]:
    """A run counts each stored answer once."""
    for run_id, run in evidence.runs.items():
        marks = _marks(evidence.messages_of(run_id))
        steps = [step_id for step_id, _ in marks if step_id]
        usages = [usage_of(digest) for _, (digest, _) in marks]
        spent = (sum(u.prompt for u in usages), sum(u.completion for u in usages))
        if run.steps_taken != len(steps) or len(set(steps)) != len(steps):
            yield f"{run_id} says it took {run.steps_taken} steps; {len(steps)} answers are stored"
        if spent != (run.usage.prompt_tokens, run.usage.completion_tokens):
            yield f"{run_id} says it used {run.usage}; its answers cost {spent}"
        if run.model_attempts < len(marks):
            yield f"{run_id} has {run.model_attempts} attempts for {len(marks)} answers and summaries"


def steps_are_whole(_: Journal, evidence: Evidence) -> Iterator[str]:
    """The text and the calls of a step are of one answer."""
    for run_id in evidence.runs:
        for step_id, messages in groupby(evidence.messages_of(run_id), key=lambda m: m.step_id):
            texts = [_text(message) for message in messages if _text(message)]
            marks = {found.group() for text in texts for found in MARK.finditer(text)}
            if step_id and len(marks) != 1:
                yield f"{run_id}: {step_id} is made of {sorted(marks)}"


def _turns(evidence: Evidence) -> list[Request]:
    """The requests for answers."""
    return [request for request in evidence.requests if not asks_for_summary(request)]


def _text(message: messages_pb2.Message) -> str:
    return message.assistant.text + "".join(call.arguments_json for call in message.tool_call.tool_calls)


def _marks(messages: Messages) -> list[tuple[str, tuple[str, str]]]:
    """The step and the mark of each answer, by its text; of a summary the step is empty."""
    found = [(message.step_id, MARK.match(message.assistant.text or message.summary.text)) for message in messages]
    return [(step_id, (mark.group(1), mark.group(2))) for step_id, mark in found if mark]


RULES = (
    the_endpoint_took_every_request,
    requests_extend_each_other,
    requests_show_what_is_stored,
    summaries_are_told,
    answers_are_stored_once,
    answers_follow_the_whole_returns,
    steps_and_usage_are_those_stored,
    steps_are_whole,
)
