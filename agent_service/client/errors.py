"""What goes wrong, as exceptions. Each message suffices for a person; the attributes are for programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from agent_service.client.google_rpc import details

if TYPE_CHECKING:
    from agent_service.client.result import RunResult

_Code = grpc.StatusCode
_PREFIX = "ERROR_REASON_"
_TRAILER = "grpc-status-details-bin"


class AgentClientError(Exception):
    """Any error of this library."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of the request, and what is wrong with it."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class WaitingCall:
    """A call that the conversation waits for; `kind` is CLIENT_EXECUTION or APPROVAL."""

    tool_call_id: str
    name: str
    kind: str


class RefusedError(AgentClientError):
    """The service, or the way to it, did not do what was asked.

    `code` is the name of the gRPC code and `reason` that of the ErrorReason without its prefix, such as RUN_NOT_FOUND;
    empty where there is none, as when the service cannot be reached. `retry_after` is in seconds, None if the service
    does not say. `metadata` is that of the reason (docs/errors.md).
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        reason: str = "",
        metadata: dict[str, str] | None = None,
        violations: tuple[FieldViolation, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{reason or code}: {message}")
        self.message = message
        self.code = code
        self.reason = reason
        self.metadata = metadata or {}
        self.violations = violations
        self.retry_after = retry_after

    @property
    def run_id(self) -> str:
        """The run that the error is about; empty if it names none."""
        return self.metadata.get("run_id", "")

    @property
    def pending(self) -> tuple[WaitingCall, ...]:
        """The calls that a paused conversation waits for, at most 16; `metadata["pending_total"]` counts all."""
        found = (self.metadata.get(f"pending_{index}") for index in range(len(self.metadata)))
        return tuple(WaitingCall(*text.split(" ", 2)) for text in found if text is not None)


class InvalidRequestError(RefusedError):
    """The request is wrong: INVALID_ARGUMENT, OUT_OF_RANGE, or TOO_LARGE. `violations` names the fields."""


class NotFoundError(RefusedError):
    """There is no such agent, conversation or run."""


class ConflictError(RefusedError):
    """Not now, or not any more: FAILED_PRECONDITION, ABORTED, ALREADY_EXISTS. A conversation that is paused or busy is
    one; `pending` and `run_id` say by what."""


class AccessError(RefusedError):
    """UNAUTHENTICATED or PERMISSION_DENIED: the token is missing, wrong, or not enough."""


class UnavailableError(RefusedError):
    """Could not be done, after all attempts. What was asked may have happened; repeat with the same ids."""


class DeadlineError(AgentClientError, TimeoutError):
    """`timeout` is over. The run, if it has started, goes on, unless `on_disconnect` is "cancel"."""

    def __init__(self, message: str, run_id: str = "") -> None:
        super().__init__(message)
        self.run_id = run_id


class RunFailedError(AgentClientError):
    """The run ended as FAILED, CANCELLED or EXPIRED, or is INTERRUPTED. `result` is what there is of it."""

    def __init__(self, result: RunResult) -> None:
        why = result.error.message if result.error is not None else result.stop_reason
        again = "; retry() goes on with it" if result.status == "INTERRUPTED" else ""
        super().__init__(f"run {result.run_id} is {result.status}: {why}{again}")
        self.result = result


_CLASSES: dict[grpc.StatusCode, type[RefusedError]] = {
    _Code.INVALID_ARGUMENT: InvalidRequestError,
    _Code.OUT_OF_RANGE: InvalidRequestError,
    _Code.NOT_FOUND: NotFoundError,
    _Code.FAILED_PRECONDITION: ConflictError,
    _Code.ABORTED: ConflictError,
    _Code.ALREADY_EXISTS: ConflictError,
    _Code.UNAUTHENTICATED: AccessError,
    _Code.PERMISSION_DENIED: AccessError,
    _Code.UNAVAILABLE: UnavailableError,
    _Code.DEADLINE_EXCEEDED: UnavailableError,
    _Code.CANCELLED: UnavailableError,
    _Code.INTERNAL: UnavailableError,
    _Code.UNKNOWN: UnavailableError,
    _Code.RESOURCE_EXHAUSTED: UnavailableError,
}


def refused(error: grpc.aio.AioRpcError) -> RefusedError:
    """The exception for an error of gRPC, with all that its details tell."""
    trailers = dict(error.trailing_metadata() or ())
    packed = trailers.get(_TRAILER, b"")
    told = details(packed if isinstance(packed, bytes) else b"")
    info, retry, bad = told.get("ErrorInfo"), told.get("RetryInfo"), told.get("BadRequest")
    reason = info.reason.removeprefix(_PREFIX) if info else ""
    kind = InvalidRequestError if reason == "TOO_LARGE" else _CLASSES.get(error.code(), RefusedError)
    return kind(
        error.details() or "the service gives no reason",
        code=error.code().name,
        reason=reason,
        metadata={entry.key: entry.value for entry in info.metadata} if info else None,
        violations=tuple(FieldViolation(v.field, v.description) for v in bad.field_violations) if bad else (),
        retry_after=retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9 if retry else None,
    )
