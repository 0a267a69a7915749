"""The port to agents and conversations. It stands on the same store as RunStore, with the same guarantees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from agent_service.domain.registry import AgentRecord, Conversation, Page
from agent_service.domain.run import AgentDefinition

EditAgent = Callable[[AgentRecord], AgentDefinition]
"""From an agent as it is to its definition as it shall be; may raise AgentServiceError, and then nothing is stored."""


class Registry(Protocol):
    """Keeps agents and conversations. Raises AgentServiceError: AGENT_NOT_FOUND, CONVERSATION_NOT_FOUND, ..."""

    async def create_agent(self, tenant: str, definition: AgentDefinition) -> AgentRecord:
        """A new agent, or the present one if it equals (else AGENT_ID_REUSED)."""

    async def get_agent(self, tenant: str, agent_id: str) -> AgentRecord:
        """The agent as it is now."""

    async def list_agents(self, tenant: str, after_id: str, limit: int) -> tuple[AgentRecord, ...]:
        """At most `limit` agents with ids above `after_id`, by id."""

    async def update_agent(self, tenant: str, agent_id: str, edit: EditAgent) -> AgentRecord:
        """Changes an agent; of racing changes each sees the one before."""

    async def delete_agent(self, tenant: str, agent_id: str, etag: str) -> None:
        """Deletes an agent, if the etag is empty or its present one (else ETAG_MISMATCH)."""

    async def create_conversation(self, tenant: str, conversation_id: str, labels: dict[str, str]) -> Conversation:
        """A new conversation, or the present one if its labels equal (else CONVERSATION_ID_REUSED)."""

    async def get_conversation(self, tenant: str, conversation_id: str) -> Conversation:
        """The conversation as it is now."""

    async def list_conversations(
        self, tenant: str, labels: tuple[tuple[str, str], ...], page: Page
    ) -> tuple[Conversation, ...]:
        """Conversations with these labels, ordered by `(create_time, conversation_id)`."""

    async def delete_conversation(self, tenant: str, conversation_id: str) -> None:
        """Deletes a conversation with its runs and messages, unless one of its runs is active (RUN_ACTIVE)."""
