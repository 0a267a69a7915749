"""A strict OpenAI-compatible endpoint that answers from a script.

It is a real HTTP server on 127.0.0.1 speaking real server-sent events, so what a test sees is what
a provider would do. ``async with ScriptedOpenAI([...])`` runs it on the test's event loop;
``with ScriptedOpenAI([...])`` runs it in a thread of its own, for a client in another process.
A script is a list of replies, used in order, or a function from the request to a reply.

A request that the real endpoint refuses is refused here too, with the same error shape, and the
test fails when it leaves the context.
"""

from .conversations import check_histories
from .framing import Framing
from .replies import (
    Failure,
    Reply,
    Usage,
    breaks_off,
    calls,
    content_filter,
    cut_by_length,
    empty,
    error_in_stream,
    fails,
    garbage,
    gated,
    hangs_up,
    says,
    silent,
)
from .request import Rejection, Request
from .server import ScriptedOpenAI
from .strict import Rules
from .tallies import Gate, Happening, Tally

__all__ = [
    "Failure",
    "Framing",
    "Gate",
    "Happening",
    "Rejection",
    "Reply",
    "Request",
    "Rules",
    "ScriptedOpenAI",
    "Tally",
    "Usage",
    "breaks_off",
    "calls",
    "check_histories",
    "content_filter",
    "cut_by_length",
    "empty",
    "error_in_stream",
    "fails",
    "garbage",
    "gated",
    "hangs_up",
    "says",
    "silent",
]
