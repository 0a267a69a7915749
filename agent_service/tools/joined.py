"""Server tools of several kinds as one."""

from __future__ import annotations

from agent_service.domain.tool import ToolSchema
from agent_service.engine.tools import ServerTools, ToolContext, ToolOutput


class JoinedTools:
    """Implements ServerTools. The first part that has a tool of a name is asked."""

    def __init__(self, *parts: ServerTools) -> None:
        self._parts = parts

    @property
    def names(self) -> tuple[str, ...]:
        """See ServerTools."""
        return tuple(name for part in self._parts for name in part.names)

    def schema(self, name: str) -> ToolSchema | None:
        """See ServerTools."""
        return self._part(name).schema(name)

    async def call(self, name: str, arguments_json: str, context: ToolContext) -> ToolOutput:
        """See ServerTools."""
        return await self._part(name).call(name, arguments_json, context)

    def _part(self, name: str) -> ServerTools:
        return next((part for part in self._parts if part.schema(name) is not None), self._parts[0])
