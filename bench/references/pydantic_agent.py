"""pydantic-ai with an external tool. It has no store of its own: its messages are kept in SQLite as it dumps them."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterable
from typing import Any

import grpc
from pydantic_ai import Agent, DeferredToolRequests, DeferredToolResults, ExternalToolset, ToolDefinition
from pydantic_ai.messages import ModelMessagesTypeAdapter
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from bench.references.shell import DESCRIPTION, INSTRUCTIONS, PARAMETERS, STORE, TOOL, Reply, serve


class Kept:
    """One row for each conversation, flushed when a step is over."""

    def __init__(self, agent: Any) -> None:
        self._agent = agent
        self._db = sqlite3.connect(STORE, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("CREATE TABLE conversations (conversation TEXT PRIMARY KEY, messages BLOB) WITHOUT ROWID")

    async def ask(self, conversation_id: str, text: str) -> Reply:
        """See Agent."""
        return await self._run(conversation_id, user_prompt=text)

    async def answer(self, conversation_id: str, call_id: str, text: str) -> Reply:
        """See Agent."""
        return await self._run(conversation_id, deferred_tool_results=DeferredToolResults(calls={call_id: text}))

    async def history(self, conversation_id: str) -> list[tuple[str, str]]:
        """See Agent."""
        return [
            ("user" if part.part_kind == "user-prompt" else "assistant", str(getattr(part, "content", "")))
            for message in self._messages(conversation_id)
            for part in message.parts
        ]

    async def _run(self, conversation_id: str, **given: Any) -> Reply:
        result = await self._agent.run(
            message_history=self._messages(conversation_id), event_stream_handler=_read, **given
        )
        self._db.execute(
            "INSERT OR REPLACE INTO conversations VALUES (?, ?)", (conversation_id, result.all_messages_json())
        )
        if isinstance(result.output, DeferredToolRequests):
            call = result.output.calls[0]
            return Reply(call_id=call.tool_call_id, arguments=call.args_as_json_str())
        return Reply(result.output)

    def _messages(self, conversation_id: str) -> Any:
        found = self._db.execute("SELECT messages FROM conversations WHERE conversation = ?", (conversation_id,))
        row = found.fetchone()
        return ModelMessagesTypeAdapter.validate_json(row[0]) if row else []


async def _read(_: Any, events: AsyncIterable[Any]) -> None:
    """With a reader of its events the agent asks the model for a stream, as the service does."""
    async for _event in events:
        pass


async def add(server: grpc.aio.Server, name: str, base_url: str) -> None:
    """Adds its services."""
    model = OpenAIChatModel("tool", provider=OpenAIProvider(base_url=base_url, api_key="none"))
    tool = ToolDefinition(name=TOOL, description=DESCRIPTION, parameters_json_schema=PARAMETERS)
    agent = Agent(
        model,
        instructions=INSTRUCTIONS,
        output_type=[str, DeferredToolRequests],
        toolsets=[ExternalToolset([tool])],
    )
    serve(server, Kept(agent))
