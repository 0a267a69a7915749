"""The one table from errors to gRPC codes, and the details that go into the trailers."""

from __future__ import annotations

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.transport.translate import duration

DOMAIN = "agentrpc.v1"
"""`ErrorInfo.domain` of every error."""
MAX_DETAILS_BYTES = 4096
"""Details and message together stay below this: they go out in base64, and many clients refuse headers above 8 KiB."""
_MAX_MESSAGE = 1000
_MAX_ODD_MESSAGE = 600
"""The message goes out a second time, in percent-encoding: up to three times its size if it is not plain ASCII."""
_MAX_FIELD = 100
_OVERHEAD = 64
"""Bytes around one detail: its type's name and lengths."""
_MAX_DESCRIPTION = 300

_Code = grpc.StatusCode
CODES: dict[Reason, grpc.StatusCode] = {
    Reason.INVALID_FIELD: _Code.INVALID_ARGUMENT,
    Reason.INVALID_TOOL_SCHEMA: _Code.INVALID_ARGUMENT,
    Reason.INVALID_RESPONSE_SCHEMA: _Code.INVALID_ARGUMENT,
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
    Reason.CURSOR_TRIMMED: _Code.OUT_OF_RANGE,
    Reason.READER_STALLED: _Code.UNAVAILABLE,
    Reason.AGENT_CANNOT: _Code.FAILED_PRECONDITION,
    Reason.TOO_LARGE: _Code.RESOURCE_EXHAUSTED,
    Reason.STORE_UNAVAILABLE: _Code.UNAVAILABLE,
    Reason.SHUTTING_DOWN: _Code.UNAVAILABLE,
    Reason.INTERNAL: _Code.INTERNAL,
    Reason.AGENT_ID_REUSED: _Code.ALREADY_EXISTS,
    Reason.CONVERSATION_ID_REUSED: _Code.ALREADY_EXISTS,
    Reason.ETAG_MISMATCH: _Code.ABORTED,
    Reason.AGENT_READ_ONLY: _Code.FAILED_PRECONDITION,
    Reason.RUN_ACTIVE: _Code.FAILED_PRECONDITION,
    Reason.CALL_CLAIMED: _Code.FAILED_PRECONDITION,
    Reason.CLAIM_LOST: _Code.ABORTED,
    Reason.QUEUE_FULL: _Code.RESOURCE_EXHAUSTED,
    Reason.RUN_NOT_INTERRUPTED: _Code.FAILED_PRECONDITION,
    Reason.FOREGROUND_AGENT_NOT_FOUND: _Code.FAILED_PRECONDITION,
    Reason.MEMORY_BLOCK_NOT_FOUND: _Code.NOT_FOUND,
    Reason.MEMORY_BLOCK_ID_REUSED: _Code.ALREADY_EXISTS,
    Reason.UNAUTHENTICATED: _Code.UNAUTHENTICATED,
    Reason.PERMISSION_DENIED: _Code.PERMISSION_DENIED,
    Reason.AUTH_UNAVAILABLE: _Code.UNAVAILABLE,
}


def to_status(error: AgentServiceError) -> status_pb2.Status:
    """The error as google.rpc.Status: ErrorInfo always; BadRequest, PreconditionFailure, RetryInfo where they apply."""
    code = CODES[error.reason]
    status = status_pb2.Status(code=code.value[0], message=_message(error.message))
    for detail in _details(error, code):
        _add(status, detail)
    if error.violations:
        _add(status, _bad_request(error, MAX_DETAILS_BYTES - status.ByteSize() - _OVERHEAD))
    return status


def _message(text: str) -> str:
    message = _cut(text, _MAX_MESSAGE)
    odd = sum(not " " <= character <= "~" or character == "%" for character in message)
    return message if odd <= _MAX_MESSAGE // 10 else _cut(message, _MAX_ODD_MESSAGE)


def _add(status: status_pb2.Status, detail: Message) -> None:
    """Adds a detail if there is room for it."""
    status.details.add().Pack(detail)
    if status.ByteSize() > MAX_DETAILS_BYTES:
        del status.details[-1]


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
    return details


def _bad_request(error: AgentServiceError, room: int) -> error_details_pb2.BadRequest:
    """As many violations as fit into so many bytes."""
    request = error_details_pb2.BadRequest()
    for violation in error.violations:
        request.field_violations.add(
            field=_cut(violation.field, _MAX_FIELD), description=_cut(violation.description, _MAX_DESCRIPTION)
        )
        if request.ByteSize() > room:
            del request.field_violations[-1]
            break
    return request


def _cut(text: str, most: int) -> str:
    """The text in at most so many bytes of UTF-8, cut between two code points."""
    data = text.encode(errors="replace")
    return data.decode() if len(data) <= most else data[: most - 3].decode(errors="ignore") + "..."
