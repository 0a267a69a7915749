"""The model endpoint of a campaign: it decides each answer from the request's messages alone, and marks it.

A mark is `[digest.count]`: the digest is of the history that was answered, the count tells how often that history was
sent. So a stored answer shows what it answers, and a history with two stored answers is seen. A summary tells what the
model has to know to go on: what it was asked last, and how much of it is done.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections import Counter
from typing import Any

from tests.scripted_openai import Framing, Gate, Reply, Request, ScriptedOpenAI, Usage, breaks_off, calls, gated, says
from tests.scripted_openai.request import canonical, text
from tests.sleepers import KEEPER_MODEL

MARK = re.compile(r"\[([0-9a-f]{16})\.(\d+)\]")
SUMMARY_PROMPT = "Say what was asked last, and how much of it is done."
_ASKED = re.compile(r'\{"conversation": .*\}')
"""What a turn says (see `plans.Turn.text`), in a message of its own, in a summary or in a transcript."""
_ANSWERED = re.compile(rf"^Assistant: {MARK.pattern}", re.MULTILINE)
_SLOW, _BROKEN = 5, 11
"""One answer of so many is written slowly; the first attempt of one of so many breaks off."""
_PIECE_SECONDS = 0.04
_MEMORY_STEPS = (("look_up", "memory_append"), ("memory_append",))
"""What a memory agent calls."""


class Pace(Gate):
    """Lets a step go out every now and then, so that kills hit the middle of an answer."""

    async def next_step(self) -> None:
        """See Gate."""
        await asyncio.sleep(_PIECE_SECONDS)


class Model:
    """The script of the endpoint."""

    def __init__(self) -> None:
        self._sent: Counter[str] = Counter()

    def __call__(self, request: Request) -> Reply:
        digest = history_digest(request.history)
        self._sent[digest] += 1
        reply = _reply(request, f"[{digest}.{self._sent[digest]}]", usage_of(digest))
        number = int(digest, 16)
        if of_memory(request):
            return reply
        if number % _BROKEN == 0 and self._sent[digest] == 1:
            return breaks_off(reply, after=2)
        return gated(reply, Pace()) if number % _SLOW == 0 else reply


def endpoint() -> ScriptedOpenAI:
    """The endpoint, to be used as a context. Refused requests are findings of the checker, not errors of the script."""
    return ScriptedOpenAI(Model(), allow_rejected=True, framing=Framing(cut=False))


def history_digest(history: list[dict[str, Any]]) -> str:
    """Tells one history from another; the system prompt does not count."""
    return hashlib.sha256(canonical(history).encode()).hexdigest()[:16]


def usage_of(digest: str) -> Usage:
    """The tokens that an answer to this history is said to have cost."""
    number = int(digest, 16)
    return Usage(prompt=number % 1009 + 1, completion=number % 97 + 1, cached=0, reasoning=0)


def asks_for_summary(request: Request) -> bool:
    """Whether a conversation is to be compacted."""
    return request.system == SUMMARY_PROMPT


def turn_of(request: Request) -> dict[str, Any]:
    """What the last user message asks for; `done` counts answers that a summary before it stands for."""
    said = [text(message) for message in request.history if message["role"] == "user"]
    asked: dict[str, Any] = json.loads(_ASKED.findall("\n".join(said))[-1])
    return asked


def of_memory(request: Request) -> bool:
    """Whether a memory agent asks."""
    return request.model == KEEPER_MODEL


def conversation_of(request: Request) -> int | str:
    """The number of the conversation that a request belongs to; that of a memory run is known by what it was given."""
    return text(request.history[0]) if of_memory(request) else int(turn_of(request)["conversation"])


def repeats_memory(request: Request) -> bool:
    """Whether a memory run begins, perhaps with the part of one that was cancelled."""
    return of_memory(request) and len(request.history) == 1


def _reply(request: Request, mark: str, usage: Usage) -> Reply:
    if asks_for_summary(request):
        return says(f"{mark} {json.dumps(_summed_up(request))}", usage=usage)
    turn: dict[str, Any] = {"steps": _MEMORY_STEPS} if of_memory(request) else turn_of(request)
    steps, done = turn["steps"], turn.get("done", 0) + _answers_since_user(request.history)
    if done >= len(steps):
        return says(f"{mark} All of that is done, and this is how it ended.", usage=usage)
    wanted = [(name, _arguments(name, f"{mark} {index}")) for index, name in enumerate(steps[done])]
    return calls(*wanted, text=f"{mark} Let me see.", usage=usage)


def _arguments(name: str, what: str) -> dict[str, str]:
    return {"label": "notes", "text": what} if name == "memory_append" else {"what": what}


def _summed_up(request: Request) -> dict[str, Any]:
    """The turn that was asked for last, with all its answers in the transcript."""
    turn, told = turn_of(request), text(request.last)
    after = told[list(_ASKED.finditer(told))[-1].end() :]
    return turn | {"done": turn.get("done", 0) + len(_ANSWERED.findall(after))}


def _answers_since_user(history: list[dict[str, Any]]) -> int:
    last = max(index for index, message in enumerate(history) if message["role"] == "user")
    return sum(1 for m in history[last:] if m["role"] == "assistant" and MARK.search(text(m)))
