"""The one table from errors to gRPC codes, and the details that go into the trailers."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.transport.translate import duration

DOMAIN = "agentrpc.v1"
"""`ErrorInfo.domain` of every error."""
MAX_DETAILS_BYTES = 4096
"""Details and message together stay below this; gRPC itself drops trailers above 16 KiB."""
_MAX_MESSAGE = 1000
_MAX_DESCRIPTION = 300

_Code = grpc.StatusCode
CODES: dict[Reason, grpc.StatusCode] = {
    Reason.INVALID_FIELD: _Code.INVALID_ARGUMENT,
    Reason.INVALID_TOOL_SCHEMA: _Code.INVALID_ARGUMENT,
    Reason.UNKNOWN_TOOL_CALL: _Code.INVALID_ARGUMENT,
    Reason.SCHEMA_VIOLATION: _Code.INVALID_ARGUMENT,
    Reason.AGENT_NOT_FOUND: _Code.NOT_FOUND,
    Reason.RUN_NOT_FOUND: _Code.NOT_FOUND,
    Reason.CONVERSATION_NOT_FOUND: _Code.NOT_FOUND,
    Reason.CONVERSATION_PAUSED: _Code.FAILED_PRECONDITION,
    Reason.CONVERSATION_BUSY: _Code.ABORTED,
    Reason.CALL_EXPIRED: _Code.FAILED_PRECONDITION,
    Reason.CALL_CANCELLED: _Code.FAILED_PRECONDITION,
    Reason.CALL_ALREADY_SETTLED: _Code.ALREADY_EXISTS,
    Reason.CALL_NEEDS_TOOL_RETURN: _Code.FAILED_PRECONDITION,
    Reason.CALL_NEEDS_APPROVAL: _Code.FAILED_PRECONDITION,
    Reason.CALL_NOT_PENDING: _Code.FAILED_PRECONDITION,
    Reason.RUN_ID_REUSED: _Code.ALREADY_EXISTS,
    Reason.REQUEST_ID_REUSED: _Code.ALREADY_EXISTS,
    Reason.CURSOR_AHEAD: _Code.OUT_OF_RANGE,
    Reason.AGENT_CANNOT: _Code.FAILED_PRECONDITION,
    Reason.TOO_LARGE: _Code.RESOURCE_EXHAUSTED,
    Reason.STORE_UNAVAILABLE: _Code.UNAVAILABLE,
    Reason.SHUTTING_DOWN: _Code.UNAVAILABLE,
    Reason.WATCHER_TOO_SLOW: _Code.UNAVAILABLE,
    Reason.INTERNAL: _Code.INTERNAL,
}


def to_status(error: AgentServiceError) -> status_pb2.Status:
    """The error as google.rpc.Status: ErrorInfo always; BadRequest, PreconditionFailure, RetryInfo where they apply."""
    code = CODES[error.reason]
    status = status_pb2.Status(code=code.value[0], message=_cut(error.message, _MAX_MESSAGE))
    for detail in _details(error, code):
        packed = any_pb2.Any()
        packed.Pack(detail)
        if status.ByteSize() + packed.ByteSize() > MAX_DETAILS_BYTES:
            continue
        status.details.append(packed)
    return status


def _details(error: AgentServiceError, code: grpc.StatusCode) -> list[Message]:
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=f"ERROR_REASON_{error.reason.value}", domain=DOMAIN, metadata=error.metadata)
    ]
    if error.retry_after is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=duration(error.retry_after)))
    if code is _Code.FAILED_PRECONDITION:
        violation = error_details_pb2.PreconditionFailure.Violation(
            type=error.reason.value,
            subject=error.metadata.get("tool_call_id") or error.metadata.get("run_id", ""),
            description=_cut(error.message, _MAX_DESCRIPTION),
        )
        details.append(error_details_pb2.PreconditionFailure(violations=[violation]))
    if error.violations:
        details.append(_bad_request(error))
    return details


def _bad_request(error: AgentServiceError) -> error_details_pb2.BadRequest:
    """As many violations as fit into a share of the details."""
    request = error_details_pb2.BadRequest()
    for violation in error.violations:
        request.field_violations.add(
            field=_cut(violation.field, 100), description=_cut(violation.description, _MAX_DESCRIPTION)
        )
        if request.ByteSize() > MAX_DETAILS_BYTES // 2:
            del request.field_violations[-1]
            break
    return request


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
