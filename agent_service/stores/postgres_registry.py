"""Agents and conversations of the PostgreSQL store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from agent_service.domain.registry import (
    AgentRecord,
    Conversation,
    Page,
    check_same_agent,
    check_same_conversation,
    run_active,
)
from agent_service.domain.run import AgentDefinition, RunStatus
from agent_service.engine.registry import EditAgent
from agent_service.stores import codec
from agent_service.stores.errors import agent_not_found, conversation_not_found
from agent_service.stores.postgres_blocks import PostgresBlocks
from agent_service.stores.postgres_database import Connection
from agent_service.stores.postgres_lists import load_conversation_value, load_conversations
from agent_service.stores.postgres_rows import column, delete_runs
from agent_service.stores.postgres_work import forget

if TYPE_CHECKING:
    from agent_service.stores.postgres_rows import Reader


class PostgresRegistry(PostgresBlocks):
    """Implements Registry, on the connections of a store."""

    async def create_agent(self, tenant: str, definition: AgentDefinition) -> AgentRecord:
        """See Registry."""

        async def work(db: Connection) -> AgentRecord:
            existing = await _find_agent(db, tenant, definition.agent_id, lock=True)
            if existing is not None:
                return check_same_agent(existing, definition)
            now = await self._now(db)
            record = AgentRecord(definition, 1, now, now)
            await db.execute("INSERT INTO agents VALUES ($1, $2, $3, $4)", *_agent_row(tenant, record))
            return record

        return await self._database.write(work)

    async def get_agent(self, tenant: str, agent_id: str) -> AgentRecord:
        """See Registry."""
        return await _load_agent(self._database, tenant, agent_id)

    async def list_agents(self, tenant: str, after_id: str, limit: int) -> tuple[AgentRecord, ...]:
        """See Registry."""
        found = await self._database.fetch(
            "SELECT codec, body FROM agents WHERE tenant = $1 AND agent_id > $2 ORDER BY agent_id LIMIT $3",
            tenant,
            after_id,
            limit,
        )
        return tuple(codec.decode_agent(version, body) for version, body in found)

    async def update_agent(self, tenant: str, agent_id: str, edit: EditAgent) -> AgentRecord:
        """See Registry."""

        async def work(db: Connection) -> AgentRecord:
            record = await _load_agent(db, tenant, agent_id, lock=True)
            record = record.changed(edit(record), await self._now(db))
            await db.execute(
                "UPDATE agents SET codec = $3, body = $4 WHERE tenant = $1 AND agent_id = $2",
                *_agent_row(tenant, record),
            )
            return record

        return await self._database.write(work)

    async def delete_agent(self, tenant: str, agent_id: str, etag: str) -> None:
        """See Registry."""

        async def work(db: Connection) -> None:
            (await _load_agent(db, tenant, agent_id, lock=True)).expect(etag)
            await db.execute("DELETE FROM agents WHERE tenant = $1 AND agent_id = $2", tenant, agent_id)

        await self._database.write(work)

    async def create_conversation(self, tenant: str, conversation_id: str, labels: dict[str, str]) -> Conversation:
        """See Registry."""
        labels = {key: column(value) for key, value in labels.items()}

        async def work(db: Connection) -> Conversation:
            existing = await load_conversation_value(db, tenant, conversation_id)
            if existing is not None:
                return check_same_conversation(existing, labels)
            now = await self._now(db)
            await db.execute(
                "INSERT INTO conversations (tenant, conversation_id, create_time, labels) VALUES ($1, $2, $3, $4)",
                tenant,
                conversation_id,
                now,
                json.dumps(labels),
            )
            return Conversation(conversation_id, now, labels)

        return await self._database.write(work)

    async def get_conversation(self, tenant: str, conversation_id: str) -> Conversation:
        """See Registry."""
        found = await load_conversation_value(self._database, tenant, conversation_id)
        if found is None:
            raise conversation_not_found(conversation_id)
        return found

    async def list_conversations(
        self, tenant: str, labels: tuple[tuple[str, str], ...], page: Page
    ) -> tuple[Conversation, ...]:
        """See Registry."""
        return await load_conversations(self._database, tenant, labels, page)

    async def delete_conversation(self, tenant: str, conversation_id: str) -> None:
        """See Registry."""

        async def work(db: Connection) -> None:
            key = await db.fetchval(
                "SELECT conversation_key FROM conversations WHERE tenant = $1 AND conversation_id = $2 FOR UPDATE",
                tenant,
                conversation_id,
            )
            if key is None:
                raise conversation_not_found(conversation_id)
            runs = await db.fetch(
                "SELECT run_key, run_id, status FROM runs WHERE conversation_key = $1 ORDER BY run_key FOR UPDATE", key
            )
            for _, run_id, status in runs:
                if RunStatus(status).active:
                    raise run_active("conversation_id", run_id, RunStatus(status))
            now = await self._now(db)
            await forget(db, tenant, key, [run_id for _, run_id, _ in runs], now)
            await delete_runs(db, [run_key for run_key, _, _ in runs], now)
            await db.execute("DELETE FROM messages WHERE conversation_key = $1", key)
            await db.execute("DELETE FROM conversations WHERE conversation_key = $1", key)

        await self._database.write(work)


async def _find_agent(db: Reader, tenant: str, agent_id: str, *, lock: bool = False) -> AgentRecord | None:
    found = await db.fetch(
        f"SELECT codec, body FROM agents WHERE tenant = $1 AND agent_id = $2 {'FOR UPDATE' if lock else ''}",
        tenant,
        agent_id,
    )
    return codec.decode_agent(*found[0]) if found else None


async def _load_agent(db: Reader, tenant: str, agent_id: str, *, lock: bool = False) -> AgentRecord:
    found = await _find_agent(db, tenant, agent_id, lock=lock)
    if found is None:
        raise agent_not_found(agent_id)
    return found


def _agent_row(tenant: str, record: AgentRecord) -> tuple[str, str, int, str]:
    return (tenant, record.definition.agent_id, codec.CODEC_VERSION, codec.encode(record))
