"""The port to server tools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from agent_service.domain.tool import ToolSchema


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a server tool may know of its call. `tool_call_id` is its idempotency key, `attempt` counts its starts."""

    tenant: str
    run_id: str
    conversation_id: str
    tool_call_id: str
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What came of it: the text for the model, whether it is an error, and whether it was cut."""

    text: str
    failed: bool = False
    truncated: bool = False


class ServerTools(Protocol):
    """The server tools of this process, by name."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all of them."""

    def schema(self, name: str) -> ToolSchema | None:
        """A tool's schema; None if there is no such tool."""

    async def call(self, name: str, arguments_json: str, context: ToolContext) -> ToolOutput:
        """Executes a tool. Never raises for what the tool does: errors and timeouts are outputs that failed."""
