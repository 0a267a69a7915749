"""Errors a caller can see. The core raises these; the transport has one table from them to gRPC codes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a call was refused or a run failed; the values are the names in the contract without their prefix."""

    INVALID_FIELD = "INVALID_FIELD"
    INVALID_TOOL_SCHEMA = "INVALID_TOOL_SCHEMA"
    INVALID_RESPONSE_SCHEMA = "INVALID_RESPONSE_SCHEMA"
    UNKNOWN_TOOL_CALL = "UNKNOWN_TOOL_CALL"
    SCHEMA_VIOLATION = "SCHEMA_VIOLATION"
    AGENT_NOT_FOUND = "AGENT_NOT_FOUND"
    RUN_NOT_FOUND = "RUN_NOT_FOUND"
    CONVERSATION_NOT_FOUND = "CONVERSATION_NOT_FOUND"
    CONVERSATION_PAUSED = "CONVERSATION_PAUSED"
    CONVERSATION_BUSY = "CONVERSATION_BUSY"
    CALL_EXPIRED = "CALL_EXPIRED"
    CALL_CANCELLED = "CALL_CANCELLED"
    CALL_ALREADY_SETTLED = "CALL_ALREADY_SETTLED"
    CALL_NEEDS_TOOL_RETURN = "CALL_NEEDS_TOOL_RETURN"
    CALL_NEEDS_APPROVAL = "CALL_NEEDS_APPROVAL"
    CALL_NOT_PENDING = "CALL_NOT_PENDING"
    RUN_ID_REUSED = "RUN_ID_REUSED"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    CURSOR_AHEAD = "CURSOR_AHEAD"
    CURSOR_TRIMMED = "CURSOR_TRIMMED"
    READER_STALLED = "READER_STALLED"
    AGENT_CANNOT = "AGENT_CANNOT"
    TOO_LARGE = "TOO_LARGE"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    INTERNAL = "INTERNAL"
    AGENT_ID_REUSED = "AGENT_ID_REUSED"
    CONVERSATION_ID_REUSED = "CONVERSATION_ID_REUSED"
    ETAG_MISMATCH = "ETAG_MISMATCH"
    AGENT_READ_ONLY = "AGENT_READ_ONLY"
    RUN_ACTIVE = "RUN_ACTIVE"
    CALL_CLAIMED = "CALL_CLAIMED"
    CLAIM_LOST = "CLAIM_LOST"
    QUEUE_FULL = "QUEUE_FULL"
    RUN_NOT_INTERRUPTED = "RUN_NOT_INTERRUPTED"
    MEMORY_BLOCK_NOT_FOUND = "MEMORY_BLOCK_NOT_FOUND"
    MEMORY_BLOCK_ID_REUSED = "MEMORY_BLOCK_ID_REUSED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    AUTH_UNAVAILABLE = "AUTH_UNAVAILABLE"
    LLM_UNAVAILABLE = "LLM_UNAVAILABLE"
    LLM_REFUSED = "LLM_REFUSED"
    LLM_INSUFFICIENT_CREDITS = "LLM_INSUFFICIENT_CREDITS"
    LLM_INVALID_RESPONSE = "LLM_INVALID_RESPONSE"
    RESPONSE_SCHEMA_VIOLATION = "RESPONSE_SCHEMA_VIOLATION"
    INVALID_TOOL_CALLS = "INVALID_TOOL_CALLS"
    NO_ALLOWED_TOOLS = "NO_ALLOWED_TOOLS"
    SYSTEM_PROMPT_TOO_LARGE = "SYSTEM_PROMPT_TOO_LARGE"
    CONTEXT_TOO_LARGE = "CONTEXT_TOO_LARGE"
    NO_TOOL_CALL = "NO_TOOL_CALL"
    RUN_LOST_REPEATEDLY = "RUN_LOST_REPEATEDLY"
    RUN_TIMED_OUT = "RUN_TIMED_OUT"
    CALL_TIMED_OUT = "CALL_TIMED_OUT"
    FOREGROUND_AGENT_NOT_FOUND = "FOREGROUND_AGENT_NOT_FOUND"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One bad field of a request: its path as in the contract, what was found, what is allowed."""

    field: str
    description: str


class AgentServiceError(Exception):
    """A refused call: it changed nothing.

    `metadata` is for programs (values are text); `violations` name fields; `retry_after` is in seconds.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        metadata: dict[str, str] | None = None,
        violations: tuple[FieldViolation, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = metadata or {}
        self.violations = violations
        self.retry_after = retry_after


MAX_NAMED = 16
"""How many fields or calls one error names; the total is said as well."""


def invalid(*violations: FieldViolation, reason: Reason = Reason.INVALID_FIELD) -> AgentServiceError:
    """The error for bad fields; its message alone suffices."""
    named = "; ".join(f"{v.field}: {v.description}" for v in violations[:MAX_NAMED])
    metadata = {}
    if len(violations) > MAX_NAMED:
        named += f"; and {len(violations) - MAX_NAMED} more"
        metadata["violations_total"] = str(len(violations))
    return AgentServiceError(reason, named, metadata=metadata, violations=violations[:MAX_NAMED])


class StaleClaimError(Exception):
    """A write by a process that no longer owns the run. Never shown to callers: the owner just stops."""
