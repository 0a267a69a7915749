"""Compaction: which of the older messages the model is not shown any more, and the move that stores it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from agent_service.domain.draft import Draft
from agent_service.domain.event import Compaction
from agent_service.domain.message import Message, SummaryContent, ToolCallsContent, ToolReturnContent
from agent_service.domain.policy import Strategy
from agent_service.domain.run import Usage
from agent_service.domain.values import replace

_Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring messages that stay together: input that a run was given at once, or an answer of the model with the
    outcomes of its calls. `tokens` is an estimate of what the model is shown of them, `count` how many they are."""

    key: _Key
    last_position: int
    tokens: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class CompactionRecord:
    """A compaction, ready to be stored; `usage` and `attempts` are those of the requests for the summary."""

    strategy: Strategy
    text: str
    through_position: int
    tokens_before: int
    tokens_after: int
    left_out: int
    usage: Usage = Usage()
    attempts: int = 0


def grouped(messages: Iterable[Message], tokens_of: Callable[[Message], int]) -> list[Group]:
    """The messages in their groups. Each call among them has its return there."""
    groups: list[Group] = []
    unanswered: set[str] = set()
    for message in messages:
        group = Group((message.run_id, message.step_id), message.position, tokens_of(message))
        if groups and unanswered:
            group = replace(group, key=groups[-1].key)
        append(groups, group)
        content = message.content
        if isinstance(content, ToolCallsContent):
            unanswered.update(call.tool_call_id for call in content.calls)
        elif isinstance(content, ToolReturnContent):
            unanswered.discard(content.tool_call_id)
    return groups


def append(groups: list[Group], new: Group) -> None:
    """Adds a group, or lengthens the last one if both are parts of one."""
    last = groups[-1] if groups else None
    if last is not None and last.key == new.key:
        groups[-1] = replace(new, tokens=last.tokens + new.tokens, count=last.count + new.count)
    else:
        groups.append(new)


def cut(groups: Sequence[Group], most: float) -> int:
    """How many of the oldest groups have to go so that at most `most` tokens are left; never the newest one."""
    left = sum(group.tokens for group in groups)
    for number, group in enumerate(groups[:-1]):
        if left <= most:
            return number
        left -= group.tokens
    return max(len(groups) - 1, 0)


def compact(draft: Draft, record: CompactionRecord) -> None:
    """Stores a compaction: from now on the model is shown its text and what came after `through_position`."""
    run = draft.run
    draft.run = replace(
        run, usage=run.usage + record.usage, model_attempts=run.model_attempts + record.attempts, losses=0
    )
    message = draft.add_message(SummaryContent(record.text, record.through_position))
    draft.emit(
        Compaction(
            record.strategy,
            message.message_id,
            message.position,
            record.through_position,
            record.tokens_before,
            record.tokens_after,
            record.left_out,
        )
    )
