"""Rules about model answers: each stored once, for the history that was sent, and counted once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby

from agentrpc.v1 import messages_pb2, runs_pb2

from tests.chaos.evidence import Evidence
from tests.chaos.journal import Journal
from tests.chaos.model import MARK, conversation_of, history_digest, repeats_memory, usage_of
from tests.scripted_openai import check_histories

Messages = list[messages_pb2.Message]
_COMPLETED = runs_pb2.RUN_STATUS_COMPLETED


def the_endpoint_took_every_request(_: Journal, evidence: Evidence) -> Iterator[str]:
    """None was malformed, such as a call without its return."""
    yield from (f"refused with {r.status}: {r.message}" for r in evidence.rejections)
    yield from evidence.problems


def requests_extend_each_other(_: Journal, evidence: Evidence) -> Iterator[str]:
    """Each request of a conversation repeats or extends the one before, with the same returns."""
    try:
        check_histories(evidence.requests, conversation=conversation_of, may_restart=repeats_memory)
    except AssertionError as error:
        yield from str(error).splitlines()


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
        usages = [usage_of(digest) for _, (digest, _) in marks]
        spent = (sum(u.prompt for u in usages), sum(u.completion for u in usages))
        if run.steps_taken != len(marks) or len({step_id for step_id, _ in marks}) != len(marks):
            yield f"{run_id} says it took {run.steps_taken} steps; {len(marks)} answers are stored"
        if spent != (run.usage.prompt_tokens, run.usage.completion_tokens):
            yield f"{run_id} says it used {run.usage}; its answers cost {spent}"
        if run.model_attempts < run.steps_taken:
            yield f"{run_id} has {run.model_attempts} attempts for {run.steps_taken} steps"


def steps_are_whole(_: Journal, evidence: Evidence) -> Iterator[str]:
    """The text and the calls of a step are of one answer."""
    for run_id in evidence.runs:
        for step_id, messages in groupby(evidence.messages_of(run_id), key=lambda m: m.step_id):
            texts = [_text(message) for message in messages if _text(message)]
            marks = {found.group() for text in texts for found in MARK.finditer(text)}
            if step_id and len(marks) != 1:
                yield f"{run_id}: {step_id} is made of {sorted(marks)}"


def _text(message: messages_pb2.Message) -> str:
    return message.assistant.text + "".join(call.arguments_json for call in message.tool_call.tool_calls)


def _marks(messages: Messages) -> list[tuple[str, tuple[str, str]]]:
    """The step and the mark of each answer, by its text."""
    found = [(message.step_id, MARK.match(message.assistant.text)) for message in messages]
    return [(step_id, (mark.group(1), mark.group(2))) for step_id, mark in found if mark]


RULES = (
    the_endpoint_took_every_request,
    requests_extend_each_other,
    answers_are_stored_once,
    answers_follow_the_whole_returns,
    steps_and_usage_are_those_stored,
    steps_are_whole,
)
