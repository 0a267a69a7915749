"""What each conversation does: drawn from the seed, so that a campaign can be repeated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from tests.chaos.memory import AGENT

STARTS = ("step", "stream", "tokens", "background", "twice")
"""How a run is started: blocking, as events, as events with tokens, in the background, two at once with one id."""
ANSWERS = ("whole", "bare", "split", "race", "twice", "conflict", "late")
"""How pending calls are answered: in one submit; in one without a request_id; one after the other; all at once in a
submit each; in two equal submits at once; in two that differ, at once; in one, and then again with other outcomes."""
ENDINGS = ("finish", "cancel", "cancel_running", "expire", "abandon")
"""What the client does in the end: goes on to the end; cancels at the first pause; cancels at any moment; lets the
calls of its own tool run out of time; leaves."""
BUSY = ("", "enqueue", "supersede")
"""When a turn is started: after the one before it; while that one still goes on, behind it or in its place."""

_READ = 4
"""Of so many conversations memory agents read one."""
COMPACTING = "compacting"
"""The agent whose conversations are compacted again and again."""
_COMPACTED = 3
"""One conversation of so many has it."""

_STEPS: Sequence[tuple[str, ...]] = (
    ("ask",),
    ("ask",),
    ("ask", "ask"),
    ("ask", "ask", "ask"),
    ("charge",),
    ("charge", "look_up"),
    ("look_up",),
    ("ask", "charge"),
    ("look_up", "ask", "ask"),
    ("refund",),
    ("refund", "ask"),
    ("charge", "refund", "ask"),
)


@dataclass(frozen=True)
class Turn:
    """One message of a conversation. `steps` are the calls that the model makes, answer by answer; then it is done."""

    conversation: int
    number: int
    steps: tuple[tuple[str, ...], ...]
    start: str
    answer: str
    ending: str
    busy: str = ""

    @property
    def run_id(self) -> str:
        """The run of this turn."""
        return f"run-{self.conversation}-{self.number}"

    @property
    def agent_id(self) -> str:
        """The one whose conversations are compacted, the sleeptime agent, or the default one."""
        if self.compacts:
            return COMPACTING
        return AGENT if self.conversation % _READ == 0 else ""

    @property
    def compacts(self) -> bool:
        """Whether its conversation is compacted."""
        return self.conversation % _COMPACTED == 0

    @property
    def text(self) -> str:
        """The user's message, by which the model knows what to do."""
        return json.dumps({"conversation": self.conversation, "turn": self.number, "steps": self.steps})


def turns(conversation: int, rng: Random, answer: str = "", ending: str = "") -> list[Turn]:
    """The turns of one conversation, with this answer and ending where given. Only in the last one the client may
    leave."""
    count = rng.choice((1, 1, 2, 2, 3))
    drawn = [_turn(conversation, number, rng, last=number == count - 1) for number in range(count)]
    return [replace(turn, answer=answer or turn.answer, ending=ending or turn.ending) for turn in drawn]


def _turn(conversation: int, number: int, rng: Random, *, last: bool) -> Turn:
    steps = tuple(rng.choice(_STEPS) for _ in range(rng.choice((0, 1, 1, 2, 2, 3))))
    ending = rng.choices(ENDINGS, (74, 8, 8, 6, 4 if last else 0))[0]
    busy = rng.choices(BUSY, (60, 20, 20))[0] if number else ""
    start = "background" if busy else rng.choice(STARTS)
    return Turn(conversation, number, steps, start, rng.choice(ANSWERS), ending, busy)
