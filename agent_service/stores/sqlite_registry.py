"""Agents and conversations of the SQLite store."""

from __future__ import annotations

import json
import sqlite3

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
from agent_service.stores.sqlite_blocks import SqliteBlocks
from agent_service.stores.sqlite_lists import load_conversation_value, load_conversations
from agent_service.stores.sqlite_rows import bury_run, delete_run_rows, find_conversation
from agent_service.stores.sqlite_work import forget


class SqliteRegistry(SqliteBlocks):
    """Implements Registry, on the connections of a store."""

    async def create_agent(self, tenant: str, definition: AgentDefinition) -> AgentRecord:
        """See Registry."""

        def work(db: sqlite3.Connection) -> AgentRecord:
            existing = _find_agent(db, tenant, definition.agent_id)
            if existing is not None:
                return check_same_agent(existing, definition)
            now = self._clock()
            return _put_agent(db, tenant, AgentRecord(definition, 1, now, now))

        return await self._write(work)

    async def get_agent(self, tenant: str, agent_id: str) -> AgentRecord:
        """See Registry."""
        return await self._read(lambda db: _load_agent(db, tenant, agent_id))

    async def list_agents(self, tenant: str, after_id: str, limit: int) -> tuple[AgentRecord, ...]:
        """See Registry."""

        def work(db: sqlite3.Connection) -> tuple[AgentRecord, ...]:
            rows = db.execute(
                "SELECT codec, body FROM agents WHERE tenant = ? AND agent_id > ? ORDER BY agent_id LIMIT ?",
                (tenant, after_id, limit),
            )
            return tuple(codec.decode_agent(version, body) for version, body in rows)

        return await self._read(work)

    async def update_agent(self, tenant: str, agent_id: str, edit: EditAgent) -> AgentRecord:
        """See Registry."""

        def work(db: sqlite3.Connection) -> AgentRecord:
            record = _load_agent(db, tenant, agent_id)
            return _put_agent(db, tenant, record.changed(edit(record), self._clock()))

        return await self._write(work)

    async def delete_agent(self, tenant: str, agent_id: str, etag: str) -> None:
        """See Registry."""

        def work(db: sqlite3.Connection) -> None:
            _load_agent(db, tenant, agent_id).expect(etag)
            db.execute("DELETE FROM agents WHERE tenant = ? AND agent_id = ?", (tenant, agent_id))

        await self._write(work)

    async def create_conversation(self, tenant: str, conversation_id: str, labels: dict[str, str]) -> Conversation:
        """See Registry."""

        def work(db: sqlite3.Connection) -> Conversation:
            existing = load_conversation_value(db, tenant, conversation_id)
            if existing is not None:
                return check_same_conversation(existing, labels)
            now = self._clock()
            db.execute(
                "INSERT INTO conversations (tenant, conversation_id, create_time, labels) VALUES (?, ?, ?, ?)",
                (tenant, conversation_id, now, json.dumps(labels)),
            )
            return Conversation(conversation_id, now, labels)

        return await self._write(work)

    async def get_conversation(self, tenant: str, conversation_id: str) -> Conversation:
        """See Registry."""

        def work(db: sqlite3.Connection) -> Conversation:
            found = load_conversation_value(db, tenant, conversation_id)
            if found is None:
                raise conversation_not_found(conversation_id)
            return found

        return await self._read(work)

    async def list_conversations(
        self, tenant: str, labels: tuple[tuple[str, str], ...], page: Page
    ) -> tuple[Conversation, ...]:
        """See Registry."""
        return await self._read(lambda db: load_conversations(db, tenant, labels, page))

    async def delete_conversation(self, tenant: str, conversation_id: str) -> None:
        """See Registry."""
        await self._write(lambda db: _delete_conversation(db, tenant, conversation_id, self._clock()))


def _find_agent(db: sqlite3.Connection, tenant: str, agent_id: str) -> AgentRecord | None:
    row = db.execute("SELECT codec, body FROM agents WHERE tenant = ? AND agent_id = ?", (tenant, agent_id)).fetchone()
    return codec.decode_agent(*row) if row else None


def _load_agent(db: sqlite3.Connection, tenant: str, agent_id: str) -> AgentRecord:
    found = _find_agent(db, tenant, agent_id)
    if found is None:
        raise agent_not_found(agent_id)
    return found


def _put_agent(db: sqlite3.Connection, tenant: str, record: AgentRecord) -> AgentRecord:
    db.execute(
        "INSERT INTO agents (tenant, agent_id, codec, body) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (tenant, agent_id) DO UPDATE SET codec = excluded.codec, body = excluded.body",
        (tenant, record.definition.agent_id, codec.CODEC_VERSION, codec.encode(record)),
    )
    return record


def _delete_conversation(db: sqlite3.Connection, tenant: str, conversation_id: str, now: int) -> None:
    found = find_conversation(db, tenant, conversation_id)
    if found is None:
        raise conversation_not_found(conversation_id)
    runs = db.execute("SELECT run_key, run_id, status FROM runs WHERE conversation_key = ?", (found[0],)).fetchall()
    for _, run_id, status in runs:
        if RunStatus(status).active:
            raise run_active("conversation_id", run_id, RunStatus(status))
    forget(db, tenant, found[0], [run_id for _, run_id, _ in runs], now)
    for run_key, run_id, _ in runs:
        delete_run_rows(db, run_key)
        bury_run(db, tenant, run_id, now)
    db.execute("DELETE FROM messages WHERE conversation_key = ?", (found[0],))
    db.execute("DELETE FROM conversations WHERE conversation_key = ?", (found[0],))
