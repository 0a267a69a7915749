"""The port to agents, memory blocks and conversations. On the same store as RunStore, with the same guarantees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from agent_service.domain.memory import BlockFilter, BlockRecord, MemoryBlock
from agent_service.domain.registry import AgentRecord, Conversation, Page
from agent_service.domain.run import AgentDefinition

EditAgent = Callable[[AgentRecord], AgentDefinition]
"""From an agent as it is to its definition as it shall be; may raise AgentServiceError, and then nothing is stored."""


EditBlock = Callable[[BlockRecord], MemoryBlock]
"""From a memory block as it is to what it shall be; may raise AgentServiceError, and then nothing is stored."""


class Blocks(Protocol):
    """Keeps memory blocks. Raises AgentServiceError: MEMORY_BLOCK_NOT_FOUND, ..."""

    async def create_block(self, tenant: str, block: MemoryBlock) -> BlockRecord:
        """A new memory block, or the present one if it equals (else MEMORY_BLOCK_ID_REUSED)."""

    async def get_block(self, tenant: str, block_id: str) -> BlockRecord:
        """The memory block as it is now."""

    async def list_blocks(self, tenant: str, which: BlockFilter, after_id: str, limit: int) -> tuple[BlockRecord, ...]:
        """At most `limit` memory blocks with ids above `after_id`, by id."""

    async def update_block(self, tenant: str, block_id: str, edit: EditBlock) -> BlockRecord:
        """Changes a memory block; of racing changes, also those of runs, each sees the one before."""

    async def delete_block(self, tenant: str, block_id: str, etag: str) -> None:
        """Deletes a memory block, if the etag is empty or its present one (else ETAG_MISMATCH)."""


class Registry(Blocks, Protocol):
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
