"""The client of OpenAI-compatible Chat Completions endpoints."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from agent_service.domain.message import Message
from agent_service.engine.model import (
    AnswerSink,
    BuiltRequest,
    Expect,
    ModelAnswer,
    ModelError,
    ModelRequest,
    ToolMode,
)
from agent_service.models.answer import AnswerLimits, AnswerReader, invalid
from agent_service.models.encoding import encode_messages, native_answer, native_body, native_returns
from agent_service.models.endpoint import DEFAULT_BASE_URL, Endpoint, Stream, Timeouts
from agent_service.models.json_schema import (
    asking_returns,
    read_schema_answer,
    schema_answer,
    schema_request,
    schema_returns,
    unsaid_answer,
)
from agent_service.models.sse import EventTooLargeError, SseParser


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


_TIMEOUTS = Timeouts()
_LIMITS = AnswerLimits()
_MOST_IDLE_BYTES = 16 * 1024 * 1024
"""So much of a stream may hold nothing of the answer: some endpoints send comments while they wait."""
_JSON_ANSWERS = (Expect.CALL, Expect.EITHER, Expect.FORMATTED)


class OpenAIChatModel:
    """A `ModelClient` for one endpoint.

    `base_url` None is OpenAI's own; an empty `api_key` sends none. `max_retries` are the retries of a request before
    its answer begins, each after a growing pause or the one that the endpoint asks for. With `answers_after_return`,
    in JSON_SCHEMA mode, the model is asked for text once a tool has returned: for models that, given the choice, call
    for ever. `keep_alive` False opens a connection per request: for servers that close it after an answer without
    saying so. Nothing is read from the environment, except proxies for endpoints that are not on this host. `now` is
    Unix time in seconds, against which dates in Retry-After headers are read. `trace_headers` go with each request for
    an answer. Raises ValueError for a `base_url` that
    is no URL or holds credentials.
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_key: str = "",
        name: str = "openai_chat",
        tool_mode: ToolMode = ToolMode.NATIVE,
        answers_after_return: bool = False,
        max_retries: int = 2,
        keep_alive: bool = True,
        timeouts: Timeouts = _TIMEOUTS,
        limits: AnswerLimits = _LIMITS,
        now: Callable[[], float] = time.time,
        trace_headers: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.name = name
        self._tool_mode = tool_mode
        self._answers_after_return = answers_after_return
        self._limits = limits
        self._endpoint = Endpoint(
            base_url or DEFAULT_BASE_URL,
            api_key,
            max_retries=max_retries,
            keep_alive=keep_alive,
            timeouts=timeouts,
            now=now,
            trace_headers=trace_headers,
        )

    def encode(self, messages: Sequence[Message]) -> bytes:
        """As the port says. Raises ValueError for a call without its return, or the reverse."""
        if self._tool_mode is ToolMode.NATIVE:
            return encode_messages(messages, native_answer, native_returns)
        if self._answers_after_return:
            return encode_messages(messages, unsaid_answer, asking_returns)
        return encode_messages(messages, schema_answer, schema_returns)

    def build(self, request: ModelRequest) -> BuiltRequest:
        """As the port says."""
        if self._tool_mode is ToolMode.NATIVE:
            return BuiltRequest(native_body(request), Expect.NATIVE)
        return schema_request(request, answers_after_return=self._answers_after_return)

    async def complete(self, request: BuiltRequest, sink: AnswerSink) -> ModelAnswer:
        """As the port says. An answer that is a JSON call is told to the sink once it is whole."""
        is_json = request.expect in _JSON_ANSWERS
        reader = AnswerReader(sink, self._limits, shows_text=not is_json)
        begun = False
        try:
            async with self._endpoint.post("/chat/completions", request.body) as stream:
                begun = True
                answer = await _read(stream, reader)
                return read_schema_answer(answer, request.expect, sink) if is_json else answer
        except ModelError as error:
            error.started = begun
            raise

    async def list_models(self) -> tuple[str, ...]:
        """As the port says, in the endpoint's order."""
        found = await self._endpoint.get("/models")
        try:
            return tuple(model.id for model in msgspec.json.decode(found, type=_Models).data)
        except msgspec.DecodeError:
            raise invalid("the endpoint's list of models cannot be read") from None

    async def close(self) -> None:
        """As the port says."""
        await self._endpoint.close()


async def _read(stream: Stream, reader: AnswerReader) -> ModelAnswer:
    if stream.content_type != "text/event-stream":
        shown = stream.content_type[:100] or "an unnamed type"
        raise invalid(f"the endpoint answered with {shown} instead of a stream (text/event-stream)")
    try:
        done = await _read_events(stream, reader)
    except EventTooLargeError as error:
        raise invalid(str(error)) from None
    if done:
        await stream.drain()
    return reader.answer(done=done, attempts=stream.attempts)


async def _read_events(stream: Stream, reader: AnswerReader) -> bool:
    """Reads to the end; whether the end was announced by `[DONE]`."""
    parser = SseParser()
    idle_bytes, room = 0, reader.room
    while chunk := await _next(stream, reader):
        for payload in parser.feed(chunk):
            if payload.startswith(b"[DONE]"):
                return True
            reader.feed(payload)
        idle_bytes, room = (0 if reader.room != room else idle_bytes + len(chunk)), reader.room
        if idle_bytes > _MOST_IDLE_BYTES:
            raise invalid(f"nothing but empty events in {idle_bytes} bytes of the answer")
        # Bytes that are there already are read without waiting; let the readers of this answer have their turn.
        await asyncio.sleep(0)
    return False


async def _next(stream: Stream, reader: AnswerReader) -> bytes:
    try:
        return await stream.read()
    except ModelError:
        if reader.finished:
            # The answer is whole; only the announcement of its end is missing.
            return b""
        raise
