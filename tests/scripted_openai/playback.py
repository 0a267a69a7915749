"""Sends one reply over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from .framing import Framing
from .replies import Delta, Ending, Raw, Reply
from .request import Request

# The same in every run (2023-11-14), so that recorded streams can be compared.
_CREATED = 1_700_000_000
_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}


class Playback:
    """Plays one reply to one request.

    `complete` tells whether all that the reply holds was written: a client that leaves only
    then has missed nothing.
    """

    def __init__(self, request: Request, reply: Reply, framing: Framing) -> None:
        self._request = request
        self._reply = reply
        self._framing = reply.framing or framing
        self._with_usage = bool(request.body.get("stream_options", {}).get("include_usage"))
        self.complete = False

    async def play(self, http: web.Request) -> web.StreamResponse:
        """Answers; raises CancelledError or ConnectionError when the client goes away."""
        if self._reply.failure is not None:
            return await self._fail(http)
        response = web.StreamResponse(headers=_HEADERS)
        if not self._reply.mute:
            await response.prepare(http)
            await self._send_chunks(response)
        if self._reply.ending is Ending.HELD:
            await asyncio.Event().wait()
        async with self._step():
            await self._finish(http, response)
        return response

    @asynccontextmanager
    async def _step(self) -> AsyncIterator[None]:
        gate = self._reply.gate
        if gate is not None:
            await gate.next_step()
        yield
        if gate is not None:
            gate.step_sent()

    async def _fail(self, http: web.Request) -> web.Response:
        failure = self._reply.failure
        assert failure is not None
        async with self._step():
            response = web.Response(status=failure.status, body=failure.body.encode(), headers=failure.headers)
            self.complete = True
            await response.prepare(http)
            await response.write_eof()
        return response

    async def _send_chunks(self, response: web.StreamResponse) -> None:
        if self._reply.opening:
            opening = self._chunk([_choice({"role": "assistant", "content": ""})])
            await self._send(response, opening)
        for chunk in self._reply.chunks:
            async with self._step():
                await self._send(response, self._payload(chunk))

    async def _finish(self, http: web.Request, response: web.StreamResponse) -> None:
        if self._reply.ending is Ending.FINISHED:
            last = self._last_events()
            for payload in last[:-1]:
                await self._send(response, payload)
            self.complete = True
            await self._send(response, last[-1])
        self.complete = True
        if self._reply.ending is Ending.CUT and http.transport is not None:
            # Not abort(): what was written before the break must still arrive.
            http.transport.close()
        else:
            await response.write_eof()

    def _last_events(self) -> Sequence[Mapping[str, Any] | str]:
        finish = self._chunk([_choice({}, self._reply.finish_reason)])
        usage = self._chunk([]) | {"usage": self._reply.usage.as_json()}
        return [finish, usage, "[DONE]"] if self._with_usage else [finish, "[DONE]"]

    def _payload(self, chunk: Delta | Raw) -> Mapping[str, Any] | str:
        return chunk.data if isinstance(chunk, Raw) else self._chunk([_choice(chunk.fields)])

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = {
            "id": f"chatcmpl-{self._request.number}",
            "object": "chat.completion.chunk",
            "created": _CREATED,
            "model": self._request.model,
            "choices": choices,
        }
        return chunk | {"usage": None} if self._with_usage else chunk

    async def _send(self, response: web.StreamResponse, payload: Mapping[str, Any] | str) -> None:
        for piece in self._framing.event(payload):
            await response.write(piece)


def _choice(delta: Mapping[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": finish_reason}
