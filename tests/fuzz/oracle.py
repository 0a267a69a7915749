"""What an answer to any request may be."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from agentrpc.v1 import errors_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from agent_service.transport.status import CODES, DOMAIN, MAX_DETAILS_BYTES

_ALLOWED = {code.name for code in CODES.values()} - {"INTERNAL", "UNKNOWN"}
_REASONS = frozenset(errors_pb2.ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"}
_BY_CLIENT = ("Deadline Exceeded", "Locally cancelled", "Stream removed (Deadline Exceeded)")

_BY_TRANSPORT = "Received message larger than max"
"""gRPC itself refuses what is several MiB above the limit, and cannot give details."""


@dataclass(frozen=True)
class Answer:
    """How a call ended: the code's name, what was said, and what is wrong with that; empty if nothing is."""

    code: str
    message: str = ""
    wrong: str = ""


OK = Answer("OK")


def judged(error: grpc.aio.AioRpcError) -> Answer:
    """The end of a call that was refused."""
    code, message = error.code().name, error.details() or ""
    if code in ("DEADLINE_EXCEEDED", "CANCELLED") and message.startswith(_BY_CLIENT):
        return Answer(code, message)
    return Answer(code, message, _wrong(error, code, message))


def _wrong(error: grpc.aio.AioRpcError, code: str, message: str) -> str:
    if code not in _ALLOWED:
        return f"the code is {code}: {message}"
    if code == "RESOURCE_EXHAUSTED" and _BY_TRANSPORT in message:
        return ""
    try:
        status = rpc_status.from_call(error)
    except ValueError as problem:
        return f"{code} with details that are not its own: {problem}"
    if status is None:
        return f"{code} without details: {message}"
    infos = [_info(detail) for detail in status.details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    if len(infos) != 1 or infos[0].domain != DOMAIN or infos[0].reason not in _REASONS:
        return f"{code} with the reasons {infos}: {message}"
    if status.ByteSize() > MAX_DETAILS_BYTES:
        return f"{code} with {status.ByteSize()} bytes of details: {message}"
    return "" if message else f"{code} without a message"


def _info(detail: object) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo()
    detail.Unpack(info)  # type: ignore[attr-defined]  # google.rpc has no types
    return info
