"""The port to model endpoints, and the values that cross it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from agent_service.domain.errors import Reason
from agent_service.domain.message import Message
from agent_service.domain.run import Pinned, Usage
from agent_service.domain.tool import ToolChoice


class ToolMode(StrEnum):
    """How an endpoint is made to call tools: its own tool calls, or output constrained by a JSON schema."""

    NATIVE = "native"
    JSON_SCHEMA = "json_schema"


class Expect(StrEnum):
    """What the answer to a built request is, so that it can be read."""

    NATIVE = "native"
    TEXT = "text"
    CALL = "call"
    EITHER = "either"
    FORMATTED = "formatted"


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What is asked: the pinned agent, the encoded history, and the tool choice of this one request.

    `history` are pieces made by `ModelClient.encode`, in order. `returned` says that a tool has returned since the last
    answer, or that it was an answer in text, which has to be corrected.
    """

    pinned: Pinned
    history: Sequence[bytes]
    tool_choice: ToolChoice
    returned: bool


@dataclass(frozen=True, slots=True)
class BuiltRequest:
    """The exact body that goes to the endpoint, and how to read its answer."""

    body: bytes
    expect: Expect


class FinishReason(StrEnum):
    """Why the model stopped writing."""

    STOP = "stop"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"


@dataclass(frozen=True, slots=True)
class AnsweredCall:
    """A call in an answer: the endpoint's id (may be empty or re-used by it), and name and arguments as written."""

    provider_call_id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """A whole answer. `attempts` counts the HTTP requests it took (1 + retries)."""

    text: str
    reasoning: str
    calls: tuple[AnsweredCall, ...]
    finish: FinishReason
    usage: Usage
    attempts: int


class ModelError(Exception):
    """The endpoint gave no usable answer.

    `reason` is one of LLM_UNAVAILABLE (retryable), LLM_INSUFFICIENT_CREDITS (retryable), LLM_REFUSED (the request
    itself was refused, or stopped by the endpoint's content filter), CONTEXT_TOO_LARGE (it is longer than the context
    window, which has `window_tokens` if the endpoint said how many, else 0) and LLM_INVALID_RESPONSE. `message` is one
    line without secrets. `retry_after` is in seconds. `started` says that the endpoint had begun an answer, of which
    parts may have reached the sink: the client does not repeat the request by itself then.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        attempts: int = 1,
        retry_after: float | None = None,
        http_status: int | None = None,
        started: bool = False,
        window_tokens: int = 0,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.attempts = attempts
        self.retry_after = retry_after
        self.http_status = http_status
        self.started = started
        self.window_tokens = window_tokens

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.reason in (Reason.LLM_UNAVAILABLE, Reason.LLM_INSUFFICIENT_CREDITS)


class AnswerSink(Protocol):
    """Sees an answer while it is written. Plain calls with plain text: no object per token, nothing to await."""

    def text(self, fragment: str) -> None:
        """A piece of the assistant text."""

    def reasoning(self, fragment: str) -> None:
        """A piece of the reasoning."""

    def arguments(self, index: int, name: str, fragment: str) -> None:
        """A piece of the arguments of call `index`; called once with an empty fragment when the call begins."""


class ModelClient(Protocol):
    """A model endpoint. Stateless between calls; `encode` and `build` are pure."""

    name: str
    """Names the client in what is pinned on runs; holds no secret."""

    def encode(self, messages: Sequence[Message]) -> bytes:
        """The endpoint's form of these stored messages: JSON objects joined by commas, without brackets; may be empty.

        Each call among `messages` must have its return there; returns are put in the order of their calls.
        For a split at such a boundary, `encode(a + b)` equals `encode(a)` and `encode(b)` joined (empty ones left out).
        """

    def build(self, request: ModelRequest) -> BuiltRequest:
        """The body for a request; the same input gives the same bytes."""

    async def complete(self, request: BuiltRequest, sink: AnswerSink) -> ModelAnswer:
        """Sends the body, streams the answer into `sink`, returns it whole. Raises ModelError.

        Cancelling the awaiting task closes the connection to the endpoint.
        """

    async def list_models(self) -> tuple[str, ...]:
        """The model names the endpoint offers. Raises ModelError."""

    async def close(self) -> None:
        """Closes connections."""
