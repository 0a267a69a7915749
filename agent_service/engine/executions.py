"""The server tool calls of a run that are executed at the same time."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from agent_service.domain.moves import CallResult
from agent_service.domain.run import Pinned
from agent_service.domain.tool import Call
from agent_service.engine.tools import ServerTools, ToolContext


class Executions:
    """Executes calls in tasks of their own, at most `most` at a time. On leaving, what still works is cancelled, and
    has ended."""

    def __init__(self, tools: ServerTools, pinned: Pinned, most: int) -> None:
        self._tools = tools
        self._pinned = pinned
        self._most = max(most, 1)
        self._working: set[asyncio.Task[CallResult]] = set()
        self._ended: asyncio.Queue[asyncio.Task[CallResult]] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for task in self._working:
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)

    @property
    def working(self) -> bool:
        """Whether there are calls whose result was not taken yet."""
        return bool(self._working)

    def admitted(self, runnable: tuple[Call, ...]) -> tuple[Call, ...]:
        """Those of these calls that may start now: the first by itself, or those of parallel-safe tools together.

        While calls are executed, none may be of another tool.
        """
        if runnable and not self._working and not self._parallel_safe(runnable[0]):
            return runnable[:1]
        safe = tuple(call for call in runnable if self._parallel_safe(call))
        return safe[: self._most - len(self._working)]

    def begin(self, call: Call, context: ToolContext) -> None:
        """Executes a call."""
        task = asyncio.create_task(self._execute(call, context))
        self._working.add(task)
        task.add_done_callback(self._ended.put_nowait)

    async def result(self) -> CallResult:
        """What came of the call that ended next."""
        task = await self._ended.get()
        self._working.discard(task)
        return task.result()

    async def _execute(self, call: Call, context: ToolContext) -> CallResult:
        output = await self._tools.call(call.name, call.effective_arguments_json, context)
        return CallResult(call.tool_call_id, output.text, output.failed, output.truncated)

    def _parallel_safe(self, call: Call) -> bool:
        tool = self._pinned.tool(call.name)
        return tool is not None and tool.parallel_safe
