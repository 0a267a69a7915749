"""What the model reads of a server tool call, whatever kind of tool it was."""

from __future__ import annotations

import structlog

from agent_service.engine.tools import ToolContext, ToolOutput
from agent_service.functions import in_words, too_long

log = structlog.get_logger()


def bounded(text: str, most: int) -> ToolOutput:
    """The text, cut between two code points and marked if it has more than `most` bytes."""
    data = text.encode(errors="replace")  # a lone surrogate has no UTF-8
    if len(data) <= most:
        return ToolOutput(data.decode())
    room = most - len(_cut_mark(len(data)))
    kept = data[: max(room, 0)].decode(errors="ignore")
    return ToolOutput((kept + _cut_mark(len(data) - len(kept.encode())))[:most], truncated=True)


def _cut_mark(cut: int) -> str:
    return f"\n[{cut} bytes were cut here]"


def failed(problem: str) -> ToolOutput:
    """An error return."""
    return ToolOutput(f"Error: {problem}".encode(errors="replace").decode(), failed=True)


def timed_out(seconds: float) -> ToolOutput:
    """The error return of a tool that was started and did not end in time."""
    return failed(too_long(seconds))


def raised(name: str, error: BaseException, context: ToolContext) -> ToolOutput:
    """The error return for an exception, which is logged."""
    log.warning("tool.failed", tool=name, tool_call_id=context.tool_call_id, exc_info=error)
    return failed(in_words(error))
