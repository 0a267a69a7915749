"""Reads one streamed answer: the data of its events in, a whole answer out, the sink told on the way."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from agent_service.domain.errors import Reason
from agent_service.domain.run import Usage
from agent_service.engine.model import AnsweredCall, AnswerSink, FinishReason, ModelAnswer, ModelError
from agent_service.models.failures import error_in_stream
from agent_service.models.json_text import repaired

MAX_CALLS = 128
"""What the API takes back in one assistant message."""

_MOST_TOKENS = 2**31 - 1
"""Above this a count is nonsense; the sum over all steps of a run still fits into 64 bits."""

_FINISH = {"length": FinishReason.LENGTH, "content_filter": FinishReason.CONTENT_FILTER}


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """How large an answer may be, in bytes of UTF-8: its text with its reasoning, and the arguments of its calls."""

    text_bytes: int = 2 * 1024 * 1024
    arguments_bytes: int = 8 * 1024 * 1024


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _CallDelta(msgspec.Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    tool_calls: list[_CallDelta] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    finish_reason: str | None = None
    index: int = 0


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_usage = msgspec.json.Decoder(_Usage).decode


class _Call:
    """A call while it is written; `index` is its place in the answer."""

    __slots__ = ("arguments", "id", "index", "name")

    def __init__(self, index: int, call_id: str, name: str) -> None:
        self.index = index
        self.id = call_id
        self.name = name
        self.arguments: list[str] = []


class AnswerReader:
    """Collects one answer. With `shows_text` false the sink is not told the text (it is not prose, but a call).

    `finished` says that the endpoint gave a finish reason.
    """

    def __init__(self, sink: AnswerSink, limits: AnswerLimits, *, shows_text: bool = True) -> None:
        self._sink = sink
        self._shows_text = shows_text
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._limits = limits
        self._text_left = limits.text_bytes
        self._arguments_left = limits.arguments_bytes
        self._finish: str | None = None
        self._usage: msgspec.Raw | None = None

    @property
    def finished(self) -> bool:
        """Whether a finish reason came."""
        return self._finish is not None

    @property
    def room(self) -> int:
        """Bytes that the answer may still have."""
        return self._text_left + self._arguments_left

    def feed(self, payload: bytes) -> None:
        """Takes the data of one event. Raises ModelError."""
        try:
            chunk = _decode_chunk(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            chunk = _decode_repaired(payload)
        except RecursionError:
            raise _too_deep() from None
        choices = chunk.choices
        if choices:
            choice = choices[0]
            if choice.index == 0:
                if choice.delta is not None:
                    self._take(choice.delta)
                if choice.finish_reason:
                    self._finish = choice.finish_reason
        if choices is None or len(chunk.usage) > 4 or len(chunk.error) > 4:
            self._take_rest(chunk)

    def _take_rest(self, chunk: _Chunk) -> None:
        if bytes(chunk.error) not in (b"null", b"{}", b'""'):
            raise error_in_stream(bytes(chunk.error))
        if bytes(chunk.usage) != b"null":
            # A copy: a Raw keeps the whole event in memory.
            self._usage = chunk.usage.copy()
        elif chunk.choices is None:
            raise invalid("an event of the answer is not a chat completion chunk")

    def _take(self, delta: _Delta) -> None:
        if delta.content:
            self._take_text(delta.content)
        thought = delta.reasoning_content or delta.reasoning
        if thought:
            self._take_reasoning(thought)
        if delta.tool_calls:
            for fragment in delta.tool_calls:
                self._take_call(fragment)
        if delta.refusal:
            self._take_text(delta.refusal)

    def _take_text(self, fragment: str) -> None:
        self._count_text(fragment)
        self._text.append(fragment)
        if self._shows_text:
            self._sink.text(fragment)

    def _take_reasoning(self, fragment: str) -> None:
        self._count_text(fragment)
        self._reasoning.append(fragment)
        self._sink.reasoning(fragment)

    def _count_text(self, fragment: str) -> None:
        self._text_left -= _utf8_bytes(fragment)
        if self._text_left < 0:
            raise invalid(f"the answer is larger than {self._limits.text_bytes} bytes")

    def _take_call(self, delta: _CallDelta) -> None:
        function = delta.function or _Function()
        call = self._call_of(delta, function.name or "")
        if function.name and not call.name:
            call.name = function.name
        if function.arguments:
            self._count_arguments(function.arguments)
            call.arguments.append(function.arguments)
            self._sink.arguments(call.index, call.name, function.arguments)

    def _call_of(self, delta: _CallDelta, name: str) -> _Call:
        """The call that a fragment belongs to.

        By index; endpoints that leave it out are read by id, else by position. Some give each of several calls index 0
        and tell them apart by id.
        """
        call_id = delta.id or ""
        if delta.index is not None:
            call = self._by_index.get(delta.index)
            if call is not None and call_id and call.id and call_id != call.id and name:
                call = None
        elif call_id:
            call = next((call for call in self._calls if call.id == call_id), None)
        else:
            call = self._calls[-1] if self._calls and not name else None
        return call or self._begin_call(delta.index, call_id, name)

    def _begin_call(self, index: int | None, call_id: str, name: str) -> _Call:
        if len(self._calls) == MAX_CALLS:
            raise invalid(f"the answer makes more than {MAX_CALLS} tool calls")
        self._count_arguments(name)
        self._count_arguments(call_id)
        call = _Call(len(self._calls), call_id, name)
        self._calls.append(call)
        if index is not None:
            self._by_index[index] = call
        self._sink.arguments(call.index, name, "")
        return call

    def _count_arguments(self, fragment: str) -> None:
        self._arguments_left -= _utf8_bytes(fragment)
        if self._arguments_left < 0:
            raise invalid(f"the tool calls of the answer are larger than {self._limits.arguments_bytes} bytes")

    def answer(self, *, done: bool, attempts: int) -> ModelAnswer:
        """The whole answer; `done` says that the endpoint announced the end. Raises ModelError."""
        if not done and not self.finished:
            raise ModelError(Reason.LLM_UNAVAILABLE, "the endpoint broke the answer off")
        finish = _FINISH.get(self._finish or "", FinishReason.STOP)
        if finish is FinishReason.CONTENT_FILTER:
            raise ModelError(Reason.LLM_REFUSED, "the endpoint's content filter stopped the answer")
        if finish is FinishReason.STOP and not (self._text or self._reasoning or self._calls):
            raise invalid("empty answer")
        return ModelAnswer(
            text="".join(self._text),
            reasoning="".join(self._reasoning),
            calls=tuple(AnsweredCall(call.id, call.name, "".join(call.arguments)) for call in self._calls),
            finish=finish,
            usage=_read_usage(self._usage),
            attempts=attempts,
        )


def invalid(message: str) -> ModelError:
    """The error for an answer that cannot be used."""
    return ModelError(Reason.LLM_INVALID_RESPONSE, message)


def _decode_repaired(payload: bytes) -> _Chunk:
    try:
        return _decode_chunk(repaired(payload))
    except ValueError as error:
        raise invalid(f"an event of the answer cannot be read: {str(error)[:200]}") from None
    except RecursionError:
        raise _too_deep() from None


def _too_deep() -> ModelError:
    return invalid("an event of the answer cannot be read: nested too deeply")


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _read_usage(raw: msgspec.Raw | None) -> Usage:
    """What the endpoint counted; an answer is not refused for a count that cannot be read."""
    try:
        found = _decode_usage(raw) if raw is not None else _Usage()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = _Usage()
    prompt, completion = _tokens(found.prompt_tokens), _tokens(found.completion_tokens)
    cached = found.prompt_tokens_details or _PromptDetails()
    thought = found.completion_tokens_details or _CompletionDetails()
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=_tokens(found.total_tokens) or _tokens(prompt + completion),
        cached_prompt_tokens=_tokens(cached.cached_tokens),
        reasoning_tokens=_tokens(thought.reasoning_tokens),
    )


def _tokens(count: int | None) -> int:
    return min(max(count or 0, 0), _MOST_TOKENS)
