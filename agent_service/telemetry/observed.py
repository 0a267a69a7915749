"""The model, the server tools and the store, seen from outside: what each call took and what came of it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from opentelemetry.trace import Span, SpanKind, StatusCode

from agent_service.domain.draft import Draft
from agent_service.domain.errors import AgentServiceError, StaleClaimError
from agent_service.domain.run import Claim
from agent_service.domain.tool import ToolSchema
from agent_service.domain.values import replace
from agent_service.engine.model import AnswerSink, BuiltRequest, ModelAnswer, ModelClient, ModelError
from agent_service.engine.store import Move, RunStore
from agent_service.engine.tools import ServerTools, ToolContext, ToolOutput
from agent_service.telemetry import instruments as names

if TYPE_CHECKING:
    from agent_service.telemetry.adapter import OpenTelemetry

T = TypeVar("T")

MAX_NAMES = 100
"""So many models and tools are told apart as labels; callers may name any model they like."""
OTHER = "other"
_WRITES = ("start", "move", "begin", "claim_calls", "delete_run", "renew", "trim_events")


class _Names:
    """The first names that are seen; all others are one."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, name: str) -> str:
        if name not in self._seen:
            if len(self._seen) >= MAX_NAMES:
                return OTHER
            self._seen.add(name)
        return name


class _FirstToken:
    """Tells when an answer begins. From then on its methods are those of the sink itself: tokens pass by."""

    def __init__(self, sink: AnswerSink, begins: Callable[[], None]) -> None:
        self._sink = sink
        self._begins = begins

    def _begun(self) -> None:
        self._begins()
        self.text = self._sink.text  # type: ignore[method-assign]  # the point of this class
        self.reasoning = self._sink.reasoning  # type: ignore[method-assign]  # as above
        self.arguments = self._sink.arguments  # type: ignore[method-assign]  # as above

    def text(self, fragment: str) -> None:
        """See AnswerSink."""
        self._begun()
        self._sink.text(fragment)

    def reasoning(self, fragment: str) -> None:
        """See AnswerSink."""
        self._begun()
        self._sink.reasoning(fragment)

    def arguments(self, index: int, name: str, fragment: str) -> None:
        """See AnswerSink."""
        self._begun()
        self._sink.arguments(index, name, fragment)


class ObservedModel:
    """A ModelClient whose requests have spans and are measured."""

    def __init__(self, client: ModelClient, telemetry: OpenTelemetry) -> None:
        self._client = client
        self._telemetry = telemetry
        self._known = _Names()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def complete(self, request: BuiltRequest, sink: AnswerSink) -> ModelAnswer:
        """See ModelClient."""
        telemetry, stretch = self._telemetry, self._telemetry.present
        model = stretch.model if stretch is not None else ""
        shared = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": self._known(model),
        }
        begun = time.monotonic()

        def begins() -> None:
            now = time.monotonic()
            telemetry.record(names.FIRST_CHUNK, now - begun, shared)
            if stretch is not None and stretch.waits_for_token:
                stretch.waits_for_token = False
                telemetry.record(names.FIRST_TOKEN, now - stretch.begun)

        failed = {"error.type": "cancelled"}
        with telemetry.tracer.start_as_current_span(
            f"chat {model}",
            kind=SpanKind.CLIENT,
            attributes=shared | {"gen_ai.request.model": model, "gen_ai.request.stream": True},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                answer = await self._client.complete(request, _FirstToken(sink, begins))
                failed = {}
                self._answered(span, answer, shared)
            except ModelError as error:
                failed = {"error.type": error.reason.value}
                span.set_status(StatusCode.ERROR)
                span.set_attribute("agent_service.model.attempts", error.attempts)
                if error.http_status is not None:
                    span.set_attribute("http.response.status_code", error.http_status)
                raise
            finally:
                span.set_attributes(failed)
                telemetry.record(names.MODEL, time.monotonic() - begun, shared | failed)
        return answer

    def _answered(self, span: Span, answer: ModelAnswer, shared: dict[str, str]) -> None:
        usage = answer.usage
        span.set_attributes(
            {
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.output_tokens": usage.completion_tokens,
                "gen_ai.usage.cache_read.input_tokens": usage.cached_prompt_tokens,
                "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
                "gen_ai.response.finish_reasons": ("tool_calls" if answer.calls else answer.finish.value,),
                "agent_service.model.attempts": answer.attempts,
            }
        )
        for kind, count in (("input", usage.prompt_tokens), ("output", usage.completion_tokens)):
            self._telemetry.record(names.TOKENS, count, shared | {"gen_ai.token.type": kind})


class ObservedTools:
    """ServerTools whose calls have spans and are measured."""

    def __init__(self, tools: ServerTools, telemetry: OpenTelemetry) -> None:
        self._tools = tools
        self._telemetry = telemetry
        self._known = _Names()

    @property
    def names(self) -> tuple[str, ...]:
        """See ServerTools."""
        return self._tools.names

    def schema(self, name: str) -> ToolSchema | None:
        """See ServerTools."""
        return self._tools.schema(name)

    async def call(self, name: str, arguments_json: str, context: ToolContext) -> ToolOutput:
        """See ServerTools."""
        attributes: dict[str, str | int] = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.type": "function",
            "gen_ai.tool.call.id": context.tool_call_id,
            "agent_service.tool.attempt": context.attempt,
        }
        begun, failed = time.monotonic(), {"error.type": "cancelled"}
        with self._telemetry.tracer.start_as_current_span(
            f"execute_tool {name}", attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                output = await self._tools.call(name, arguments_json, context)
                failed = {"error.type": "tool_error"} if output.failed else {}
                if failed:
                    span.set_status(StatusCode.ERROR)
            finally:
                span.set_attributes(failed)
                labels = {"gen_ai.tool.name": self._known(name), **failed}
                self._telemetry.record(names.TOOL, time.monotonic() - begun, labels)
        return output


class ObservedStore:
    """A RunStore whose writes are measured, and keep on each run which work on it was the last."""

    def __init__(self, store: RunStore, telemetry: OpenTelemetry) -> None:
        self._store = store
        self._telemetry = telemetry
        for name in _WRITES:
            setattr(self, name, self._measured(name, getattr(store, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def owner_move(self, claim: Claim, move: Move[T], **more: Any) -> T:
        """See RunStore."""
        stretch = self._telemetry.present
        kept = stretch.trace_context if stretch is not None else ""

        def traced(draft: Draft) -> T:
            if kept and draft.run.trace != kept:
                draft.run = replace(draft.run, trace=kept)
            return move(draft)

        with self._measuring("owner_move"):
            return await self._store.owner_move(claim, traced, **more)

    def _measured(self, name: str, write: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        @wraps(write)
        async def measured(*args: Any, **kwargs: Any) -> T:
            with self._measuring(name):
                return await write(*args, **kwargs)

        return measured

    @contextmanager
    def _measuring(self, name: str) -> Iterator[None]:
        begun, labels = time.monotonic(), {"agent_service.store.operation": name}
        try:
            yield
        except AgentServiceError as error:
            labels["error.type"] = error.reason.value
            raise
        except StaleClaimError:
            labels["error.type"] = "stale_claim"
            raise
        finally:
            self._telemetry.record(names.WRITE, time.monotonic() - begun, labels)
