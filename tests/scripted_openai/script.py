"""A test's script: which reply answers which request, and whether the two fit together."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from .replies import Ending, Reply
from .request import Request

Script = Sequence[Reply] | Callable[[Request], Reply]


class ScriptError(Exception):
    """The script has no reply for a request, or one that no model could give to it."""


class Replies:
    """Hands out the replies of a script. Safe to use from several threads."""

    def __init__(self, script: Script) -> None:
        self._function = script if callable(script) else None
        self._queue = deque(() if callable(script) else script)
        self._lock = threading.Lock()

    @property
    def unused(self) -> int:
        """How many replies of a list were not given yet."""
        return len(self._queue)

    def add(self, replies: Sequence[Reply]) -> None:
        """Puts more replies at the end of a list."""
        if self._function is not None:
            raise TypeError("the script is a function: it has no end to add replies to")
        with self._lock:
            self._queue.extend(replies)

    def next(self, request: Request) -> Reply:
        """The reply to this request; ScriptError if there is none that fits."""
        reply = self._call(request) if self._function is not None else self._pop(request)
        if not isinstance(reply, Reply):
            raise ScriptError(f"request {request.number}: the script gave {reply!r}, not a reply")
        if not reply.unruly:
            _check_fit(request, reply)
        return reply

    def _call(self, request: Request) -> Any:
        assert self._function is not None
        try:
            return self._function(request)
        except Exception as error:
            raise ScriptError(f"request {request.number}: the script raised {error!r}") from error

    def _pop(self, request: Request) -> Any:
        with self._lock:
            if not self._queue:
                last = str(request.last)[:300]
                raise ScriptError(f"request {request.number}: no reply left for {last}")
            return self._queue.popleft()


def _check_fit(request: Request, reply: Reply) -> None:
    for problem in _misfits(request, reply):
        raise ScriptError(f"request {request.number}: {problem} (unruly=True allows the reply to do so)")


def _misfits(request: Request, reply: Reply) -> list[str]:
    choice = request.body.get("tool_choice", "auto")
    forced = choice["function"]["name"] if isinstance(choice, dict) else None
    offered = request.tool_names
    called = reply.called
    strange = [name for name in called if name not in offered]
    one_call = request.body.get("parallel_tool_calls") is False
    plain = reply.ending is Ending.FINISHED and reply.finish_reason == "stop"
    must_call = choice == "required" or forced is not None
    checks = {
        "the reply calls a tool, but tool_choice is 'none'": called and choice == "none",
        f"the reply calls {strange}, but the tools on offer are {offered}": strange,
        f"the reply calls {list(called)}, but {forced} is forced": forced and set(called) - {forced},
        "the reply makes parallel calls, which are off": one_call and len(called) > 1,
        f"the reply calls no tool, but tool_choice is {choice!r}": (
            must_call and plain and reply.failure is None and not called
        ),
    }
    return [problem for problem, holds in checks.items() if holds]
