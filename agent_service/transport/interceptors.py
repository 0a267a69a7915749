"""The one interceptor around every RPC: errors become statuses, nothing leaks, each call leaves a line in the log."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, closing, contextmanager, suppress
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from grpc_status import rpc_status

from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.engine.telemetry import NO_TELEMETRY, Telemetry
from agent_service.transport.access import Access, Admission, current_caller
from agent_service.transport.status import CODES, to_status
from agent_service.transport.writes import Writes

log = structlog.get_logger()
Context = grpc.aio.ServicerContext[Any, Any]

_QUIET = ("/grpc.health.", "/grpc.reflection.")


class Guard(grpc.aio.ServerInterceptor):
    """Wraps handlers. Must be the outermost interceptor. Without `access` every call is admitted.

    Server-streaming handlers are async generators; here they become coroutines that write, because only then a client
    that leaves during a write cancels the generator in its own task.
    """

    def __init__(
        self, max_request_bytes: int, stall_seconds: float, access: Access | None, telemetry: Telemetry = NO_TELEMETRY
    ) -> None:
        self._telemetry = telemetry
        self._access = access
        self._max_request_bytes = max_request_bytes
        self._stall_seconds = stall_seconds
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self, seconds: float) -> None:
        """Waits until no call is under way, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        self._calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_QUIET):
            return handler
        admission = None
        if self._access is not None:
            try:
                admission = await self._access.admit(method, handler_call_details.invocation_metadata)
            except Exception as error:
                # As a stream of requests, so that none is received.
                return grpc.stream_stream_rpc_method_handler(self._refusing(method, error))
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._streaming(method, handler.unary_stream, admission),
                request_deserializer=_parser(handler.request_deserializer),
                response_serializer=handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method, handler.unary_unary),
            request_deserializer=_parser(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _unary(self, method: str, inner: Any) -> Any:
        async def handle(request: Message | None, context: Context) -> Any:
            response = None
            with self._under_way():
                async with _Call(method, context, self._telemetry) as call:
                    self._check(request)
                    response = await inner(request, context)
                if call.status is not None:
                    await context.abort_with_status(call.status)
            return response

        return handle

    def _streaming(self, method: str, inner: Any, admission: Admission | None) -> Any:
        async def handle(request: Message | None, context: Context) -> None:
            with self._under_way():
                async with _Call(method, context, self._telemetry) as call:
                    self._check(request)
                    async with aclosing(inner(request, context)) as responses:
                        with closing(Writes(context, self._stall_seconds)) as writes:
                            async for response in responses:
                                if admission is not None:
                                    await admission.keep()
                                await writes.write(response)
                if call.status is not None:
                    await context.abort_with_status(call.status)

        return handle

    def _refusing(self, method: str, error: Exception) -> Any:
        async def handle(requests: object, context: Context) -> None:
            async with _Call(method, context, self._telemetry) as call:
                raise error
            await context.abort_with_status(call.status)

        return handle

    def _check(self, request: Message | None) -> None:
        if request is None:
            raise AgentServiceError(Reason.INVALID_FIELD, "the request is not a message of this method in valid UTF-8")
        size = request.ByteSize()
        if size > self._max_request_bytes:
            raise AgentServiceError(
                Reason.TOO_LARGE, f"the request has {size} bytes; at most {self._max_request_bytes} are allowed"
            )


def _parser(parse: Any) -> Callable[[bytes], Message | None]:
    """Reads a request, or gives None for bytes that are none: gRPC itself would call that an UNKNOWN error."""

    def parsed(data: bytes) -> Message | None:
        try:
            return parse(data)  # type: ignore[no-any-return]  # generated code, of the type of the request
        except DecodeError:
            return None

    return parsed


class _Call:
    """Logs one call. Swallows its error, whose status is in `status`; cancellation passes."""

    def __init__(self, method: str, context: Context, telemetry: Telemetry) -> None:
        self._method = method
        self._context = context
        self._telemetry = telemetry
        self.status: Any = None

    async def __aenter__(self) -> _Call:
        self._begun = time.monotonic()
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(rpc=self._method.rsplit("/", 1)[-1])
        self._answered = self._telemetry.call(self._method, self._context.invocation_metadata)
        caller = current_caller()
        if caller.name:
            structlog.contextvars.bind_contextvars(tenant=caller.tenant, caller=caller.name)
        return self

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if error is None:
            self._log("OK")
            return False
        if isinstance(error, asyncio.CancelledError | GeneratorExit | KeyboardInterrupt | SystemExit):
            self._log("CANCELLED")
            return False
        if not isinstance(error, AgentServiceError):
            error = self._unforeseen(error)
        self._log(CODES[error.reason].name, reason=error.reason.value, error=error.message)
        self.status = rpc_status.to_status(to_status(error))
        return True

    def _unforeseen(self, error: BaseException) -> AgentServiceError:
        error_id = secrets.token_hex(6)
        log.error("rpc.crashed", error_id=error_id, exc_info=error)
        return AgentServiceError(Reason.INTERNAL, f"internal error {error_id}; see the server's log")

    def _log(self, code: str, **more: str) -> None:
        self._answered(code, more.get("reason", ""))
        log.info("rpc", code=code, ms=round((time.monotonic() - self._begun) * 1000, 1), **more)
