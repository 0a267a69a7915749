"""LangGraph's prebuilt agent with its SQLite saver; the tool interrupts the graph, as its documentation shows it."""

from __future__ import annotations

from typing import Any

import aiosqlite
import grpc
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.prebuilt import create_react_agent
from langgraph.types import Command, interrupt

from bench.references.shell import INSTRUCTIONS, STORE, Reply, serve


def get_secret_code(name: str) -> str:
    """Returns the secret code of a person."""
    return str(interrupt({"name": name}))


class Graph:
    """Its thread is the conversation; the default durability stores a checkpoint after each node."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph

    async def ask(self, conversation_id: str, text: str) -> Reply:
        """See Agent."""
        return await self._invoke(conversation_id, {"messages": [{"role": "user", "content": text}]})

    async def answer(self, conversation_id: str, call_id: str, text: str) -> Reply:
        """See Agent."""
        return await self._invoke(conversation_id, Command(resume=text))

    async def history(self, conversation_id: str) -> list[tuple[str, str]]:
        """See Agent."""
        state = await self._graph.aget_state(_config(conversation_id))
        return [("user" if one.type == "human" else one.type, str(one.content)) for one in state.values["messages"]]

    async def _invoke(self, conversation_id: str, given: Any) -> Reply:
        result = await self._graph.ainvoke(given, _config(conversation_id))
        last = result["messages"][-1]
        if last.tool_calls:
            return Reply(call_id=last.tool_calls[0]["id"], arguments=str(last.tool_calls[0]["args"]))
        return Reply(str(last.content))


def _config(conversation_id: str) -> dict[str, Any]:
    return {"configurable": {"thread_id": conversation_id}}


async def add(server: grpc.aio.Server, name: str, base_url: str) -> None:
    """Adds its services."""
    model = ChatOpenAI(model="tool", base_url=base_url, api_key="none", streaming=True)
    saver = AsyncSqliteSaver(await aiosqlite.connect(STORE))
    graph = create_react_agent(model, [get_secret_code], prompt=INSTRUCTIONS, checkpointer=saver)
    serve(server, Graph(graph))
