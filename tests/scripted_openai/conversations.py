"""Checks over the whole log of an endpoint: no conversation lost or rewrote its history."""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count, takewhile
from typing import Any

from .request import Request, canonical

Conversation = Callable[[Request], Hashable]


def check_histories(
    requests: Iterable[Request],
    *,
    conversation: Conversation | None = None,
    may_restart: Callable[[Request], bool] | None = None,
) -> list[list[Request]]:
    """The requests of each conversation, or AssertionError naming each that breaks a rule.

    Each request of a conversation must extend an earlier one, message for message and without
    regard to the system message, and repeat the same text for a tool call id. A repeated
    request counts as an extension (a retry). An earlier request can be extended once for each
    time that it was sent, so a conversation cannot fall back behind what it has told.

    Without `conversation`, which gives the key of the conversation that a request belongs to,
    requests belong together by what they extend, and one without assistant messages may start
    a conversation. With it only the first request of each key may. `may_restart` allows a
    request to start anew, as after a compaction that the test expects.
    """
    log = _Log(conversation, may_restart)
    for request in requests:
        log.add(request)
    if log.problems:
        raise AssertionError("\n".join(log.problems))
    return list(log.groups.values())


@dataclass
class _Log:
    conversation: Conversation | None
    may_restart: Callable[[Request], bool] | None
    groups: dict[Hashable, list[Request]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    # For the digest of each history that may still be extended: the groups it is the end of.
    ends: dict[bytes, list[Hashable]] = field(default_factory=dict)
    returns: dict[tuple[Hashable, str], tuple[str, int]] = field(default_factory=dict)
    numbers: Iterable[int] = field(default_factory=count)

    def add(self, request: Request) -> None:
        """Takes the next request of the log."""
        key = self.conversation(request) if self.conversation else None
        digests = _prefix_digests(key, request.history)
        group = self._group(request, key, digests)
        self.groups.setdefault(group, []).append(request)
        self.ends.setdefault(digests[-1], []).append(group)
        self._check_returns(request, group)

    def _group(self, request: Request, key: Hashable, digests: list[bytes]) -> Hashable:
        starts = self._may_start(request, key)
        parent = next((d for d in reversed(digests) if self.ends.get(d)), None)
        if parent is None:
            if not starts and not (self.may_restart and self.may_restart(request)):
                self.problems.append(self._lost(request))
            return self._new_group(key)
        if parent != digests[-1]:
            return self.ends[parent].pop()
        # The same words once more: a retry, or another conversation that begins alike.
        return self._new_group(key) if starts else self.ends[parent][-1]

    def _new_group(self, key: Hashable) -> Hashable:
        return key if self.conversation else next(iter(self.numbers))

    def _may_start(self, request: Request, key: Hashable) -> bool:
        if self.conversation:
            return key not in self.groups
        return all(message["role"] != "assistant" for message in request.history)

    def _lost(self, request: Request) -> str:
        earlier = [other for group in self.groups.values() for other in group]
        shared = {other.number: _shared(other.history, request.history) for other in earlier}
        nearest = max(shared, key=lambda number: (shared[number], number), default=None)
        where = (
            f"the nearest is request {nearest}, equal in the first {shared[nearest]} messages"
            if nearest is not None
            else "it is the first"
        )
        return f"request {request.number} does not extend an earlier request: {where}"

    def _check_returns(self, request: Request, group: Hashable) -> None:
        for call_id, content in request.returns.items():
            first, number = self.returns.setdefault((group, call_id), (content, request.number))
            if first != content:
                self.problems.append(
                    f"request {request.number} has another return for {call_id} than request"
                    f" {number}: {content[:200]!r}, not {first[:200]!r}"
                )


def _prefix_digests(key: Hashable, messages: Sequence[dict[str, Any]]) -> list[bytes]:
    running = hashlib.sha256(repr(key).encode())
    digests = []
    for message in messages:
        running.update(canonical(message).encode() + b"\0")
        digests.append(running.digest())
    return digests or [running.digest()]


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
