"""A model endpoint that does what none should: a raw HTTP server, since libraries would not write such answers.

What it is asked is checked by the rules of the real API, whatever it answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.fuzz import replies
from tests.fuzz.replies import Asked, Writer
from tests.scripted_openai.refusals import RefusedError
from tests.scripted_openai.strict import Rules, check_body

_DO = re.compile(r"do: ([a-z_]+)")
_RULES = Rules(any_schema=True)


@dataclass
class HostileEndpoint:
    """A running endpoint. `refused` are the requests that the API would refuse, with why."""

    port: int = 0
    refused: list[str] = field(default_factory=list)
    asked: int = 0

    @property
    def base_url(self) -> str:
        """As the service wants it."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while True:
                body, out = await _request(reader), Writer(writer)
                self.asked += 1
                if body is None:
                    await out.failure(405, "")
                elif not await self._answer(body, out):
                    break
        writer.close()

    async def _answer(self, body: bytes, out: Writer) -> bool:
        """Whether the connection can be used again."""
        try:
            request = check_body(body, _RULES)
        except RefusedError as refusal:
            self.refused.append(f"{refusal.message}: {body[:1_500]!r}")
            await out.failure(400, json.dumps({"error": {"message": refusal.message}}))
            return True
        asked = _asked(request, body)
        return await replies.REPLIES.get(asked.kind, replies.REPLIES["says"])(out, asked)


async def _request(reader: asyncio.StreamReader) -> bytes | None:
    """The body; None if the request has none, as after a redirect."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    found = re.search(rb"content-length: *(\d+)", head)
    return await reader.readexactly(int(found[1])) if found else None


def _asked(request: dict[str, Any], body: bytes) -> Asked:
    said = [message for message in request["messages"] if message["role"] == "user"]
    wanted = _DO.findall(json.dumps(said[-1]["content"])) if said else []
    done = sum(1 for message in request["messages"] if message["role"] == "assistant")
    # The kinds are for one answer each; whoever lists several gets them in turn.
    kind = wanted[min(done, len(wanted) - 1)] if wanted else "calls"
    if done >= max(len(wanted), 1) and done:
        kind = "says"
    names = tuple(tool["function"]["name"] for tool in request.get("tools", ()))
    return Asked(kind, names, Random(body))


@asynccontextmanager
async def hostile_endpoint() -> AsyncIterator[HostileEndpoint]:
    """Running for this block."""
    endpoint = HostileEndpoint()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await endpoint.serve(reader, writer)
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20)
    endpoint.port = server.sockets[0].getsockname()[1]
    try:
        yield endpoint
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
