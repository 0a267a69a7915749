"""Agents and conversations of the memory store."""

from __future__ import annotations

from collections.abc import Callable

from agent_service.domain.registry import (
    AgentRecord,
    Conversation,
    Page,
    check_same_agent,
    check_same_conversation,
    run_active,
)
from agent_service.domain.run import AgentDefinition
from agent_service.engine.registry import EditAgent
from agent_service.stores.errors import agent_not_found, conversation_not_found
from agent_service.stores.memory import MemoryStore, StoredConversation, has_labels, in_page
from agent_service.stores.memory_blocks import MemoryBlocks


class MemoryRegistry(MemoryBlocks):
    """Implements Registry."""

    def __init__(self, store: MemoryStore, clock: Callable[[], int]) -> None:
        super().__init__(store, clock)
        self._agents: dict[tuple[str, str], AgentRecord] = {}

    async def create_agent(self, tenant: str, definition: AgentDefinition) -> AgentRecord:
        """See Registry."""
        existing = self._agents.get((tenant, definition.agent_id))
        if existing is not None:
            return check_same_agent(existing, definition)
        now = self._clock()
        return self._put(tenant, AgentRecord(definition, 1, now, now))

    async def get_agent(self, tenant: str, agent_id: str) -> AgentRecord:
        """See Registry."""
        record = self._agents.get((tenant, agent_id))
        if record is None:
            raise agent_not_found(agent_id)
        return record

    async def list_agents(self, tenant: str, after_id: str, limit: int) -> tuple[AgentRecord, ...]:
        """See Registry."""
        ids = sorted(agent_id for owner, agent_id in self._agents if owner == tenant and agent_id > after_id)
        return tuple(self._agents[tenant, agent_id] for agent_id in ids[:limit])

    async def update_agent(self, tenant: str, agent_id: str, edit: EditAgent) -> AgentRecord:
        """See Registry."""
        record = await self.get_agent(tenant, agent_id)
        return self._put(tenant, record.changed(edit(record), self._clock()))

    async def delete_agent(self, tenant: str, agent_id: str, etag: str) -> None:
        """See Registry."""
        (await self.get_agent(tenant, agent_id)).expect(etag)
        del self._agents[tenant, agent_id]

    async def create_conversation(self, tenant: str, conversation_id: str, labels: dict[str, str]) -> Conversation:
        """See Registry."""
        if (tenant, conversation_id) in self._store.conversations:
            return check_same_conversation(await self.get_conversation(tenant, conversation_id), labels)
        self._store.conversations[tenant, conversation_id] = StoredConversation(self._clock(), labels)
        return await self.get_conversation(tenant, conversation_id)

    async def get_conversation(self, tenant: str, conversation_id: str) -> Conversation:
        """See Registry."""
        stored = self._store.conversations.get((tenant, conversation_id))
        if stored is None:
            raise conversation_not_found(conversation_id)
        return self._value(tenant, conversation_id, stored)

    async def list_conversations(
        self, tenant: str, labels: tuple[tuple[str, str], ...], page: Page
    ) -> tuple[Conversation, ...]:
        """See Registry."""
        values = [self._value(t, i, s) for (t, i), s in self._store.conversations.items() if t == tenant]
        wanted = [value for value in values if has_labels(value.labels, labels)]
        return tuple(in_page(wanted, page, lambda value: (value.create_time, value.conversation_id)))

    async def delete_conversation(self, tenant: str, conversation_id: str) -> None:
        """See Registry."""
        await self.get_conversation(tenant, conversation_id)
        runs = [s.run for (t, _), s in self._store.runs.items() if t == tenant]
        runs = [run for run in runs if run.conversation_id == conversation_id]
        for run in runs:
            if run.status.active:
                raise run_active("conversation_id", run.run_id, run.status)
        self._store.works.forget(tenant, conversation_id, lambda *key: self._store.runs[key].run)
        for run in runs:
            self._store.works.release(tenant, run.run_id, self._clock())
            self._store.forget(tenant, run.run_id)
        del self._store.conversations[tenant, conversation_id]

    def _put(self, tenant: str, record: AgentRecord) -> AgentRecord:
        self._agents[tenant, record.definition.agent_id] = record
        return record

    def _value(self, tenant: str, conversation_id: str, stored: StoredConversation) -> Conversation:
        last = self._store.runs.get((tenant, stored.last_run_id))
        active = stored.last_run_id if last is not None and last.run.status.active else ""
        return Conversation(conversation_id, stored.create_time, stored.labels, len(stored.messages), active)
