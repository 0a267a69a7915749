"""The loop without a library: aiohttp, JSON, and one table of messages in SQLite that flushes every commit."""

from __future__ import annotations

import sqlite3

import aiohttp
import grpc
import msgspec

from bench.references.shell import DESCRIPTION, INSTRUCTIONS, PARAMETERS, STORE, TOOL, Reply, serve

_TOOLS = [{"type": "function", "function": {"name": TOOL, "description": DESCRIPTION, "parameters": PARAMETERS}}]
_encode = msgspec.json.Encoder().encode


class _Function(msgspec.Struct):
    arguments: str = ""


class _Call(msgspec.Struct):
    id: str = ""
    function: _Function = msgspec.field(default_factory=_Function)


class _Delta(msgspec.Struct):
    content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta


class _Chunk(msgspec.Struct):
    choices: list[_Choice]


class _Stored(msgspec.Struct):
    role: str
    content: str | None = None


_decode = msgspec.json.Decoder(_Chunk).decode


class Loop:
    """Stores what is new of a step, and what the model answered to it, in one transaction."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        self._session = session
        self._url = f"{base_url}/chat/completions"
        self._db = sqlite3.connect(STORE, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute(
            "CREATE TABLE messages (conversation TEXT, position INTEGER, body BLOB, "
            "PRIMARY KEY (conversation, position)) WITHOUT ROWID"
        )

    async def ask(self, conversation_id: str, text: str) -> Reply:
        """See Agent."""
        return await self._step(conversation_id, {"role": "user", "content": text})

    async def answer(self, conversation_id: str, call_id: str, text: str) -> Reply:
        """See Agent."""
        return await self._step(conversation_id, {"role": "tool", "tool_call_id": call_id, "content": text})

    async def history(self, conversation_id: str) -> list[tuple[str, str]]:
        """See Agent."""
        stored = (msgspec.json.decode(body, type=_Stored) for body in self._bodies(conversation_id))
        return [(message.role, message.content or "") for message in stored]

    async def _step(self, conversation_id: str, message: dict[str, str]) -> Reply:
        bodies = self._bodies(conversation_id)
        new = _encode(message)
        # The accepted message is durable before the model is called, as in the service.
        self._store(conversation_id, len(bodies), new)
        reply = await self._complete([_encode({"role": "system", "content": INSTRUCTIONS}), *bodies, new])
        answer: dict[str, object] = {"role": "assistant", "content": reply.text}
        if reply.call_id:
            function = {"name": TOOL, "arguments": reply.arguments}
            answer["tool_calls"] = [{"id": reply.call_id, "type": "function", "function": function}]
        self._store(conversation_id, len(bodies) + 1, _encode(answer))
        return reply

    async def _complete(self, messages: list[bytes]) -> Reply:
        body = b'{"model":"tool","stream":true,"tools":%b,"messages":[%b]}' % (_encode(_TOOLS), b",".join(messages))
        text: list[str] = []
        call_id = arguments = ""
        async with self._session.post(self._url, data=body) as response:
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                delta = _decode(line[6:]).choices[0].delta
                text.append(delta.content or "")
                for call in delta.tool_calls or ():
                    call_id, arguments = call_id or call.id, arguments + call.function.arguments
        return Reply("".join(text), call_id, arguments)

    def _bodies(self, conversation_id: str) -> list[bytes]:
        found = self._db.execute(
            "SELECT body FROM messages WHERE conversation = ? ORDER BY position", (conversation_id,)
        )
        return [body for (body,) in found]

    def _store(self, conversation_id: str, position: int, body: bytes) -> None:
        self._db.execute("INSERT INTO messages VALUES (?, ?, ?)", (conversation_id, position, body))


async def add(server: grpc.aio.Server, name: str, base_url: str) -> None:
    """Adds its services."""
    serve(server, Loop(aiohttp.ClientSession(), base_url))
