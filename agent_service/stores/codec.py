"""How values are stored: JSON, with the version of its form beside it. Readers know all versions ever written."""

from __future__ import annotations

import msgspec

from agent_service.domain.draft import Receipt
from agent_service.domain.event import DURABLE_TYPES, DurableBody, MessageStored
from agent_service.domain.memory import BlockRecord
from agent_service.domain.message import CONTENT_TYPES, Content, MessageType
from agent_service.domain.registry import AgentRecord
from agent_service.domain.run import Pinned, Run
from agent_service.domain.tool import Call

CODEC_VERSION = 1
"""The version this program writes."""

_encoder = msgspec.json.Encoder()
_contents = {kind: msgspec.json.Decoder(content) for kind, content in CONTENT_TYPES.items()}
_bodies = {kind: msgspec.json.Decoder(body) for kind, body in DURABLE_TYPES.items() if body is not MessageStored}
_body_kinds = {body: kind for kind, body in DURABLE_TYPES.items()}
_run = msgspec.json.Decoder(Run)
_call = msgspec.json.Decoder(Call)
_pinned = msgspec.json.Decoder(Pinned)
_agent = msgspec.json.Decoder(AgentRecord)
_receipt = msgspec.json.Decoder(Receipt)
_block = msgspec.json.Decoder(BlockRecord)


class UnknownCodecError(Exception):
    """The value was written by a newer version of this program."""


def encode(value: object) -> str:
    """A value as JSON text of the present version."""
    return _encoder.encode(value).decode()


def body_kind(body: object) -> str:
    """The stored name of an event body's type."""
    return _body_kinds[type(body)]  # type: ignore[index]  # a KeyError for what is not durable is right


def decode_content(version: int, kind: str, text: str) -> Content:
    """The content of a message."""
    _check(version)
    return _contents[MessageType(kind)].decode(text)


def decode_body(version: int, kind: str, text: str) -> DurableBody:
    """The body of a durable event other than a stored message."""
    _check(version)
    return _bodies[kind].decode(text)


def decode_run(version: int, text: str) -> Run:
    """A run."""
    _check(version)
    return _run.decode(text)


def decode_call(version: int, text: str) -> Call:
    """A call."""
    _check(version)
    return _call.decode(text)


def decode_pinned(version: int, text: str) -> Pinned:
    """What a run is pinned to."""
    _check(version)
    return _pinned.decode(text)


def decode_agent(version: int, text: str) -> AgentRecord:
    """An agent."""
    _check(version)
    return _agent.decode(text)


def decode_receipt(version: int, text: str) -> Receipt:
    """A receipt."""
    _check(version)
    return _receipt.decode(text)


def decode_block(version: int, text: str) -> BlockRecord:
    """A memory block."""
    _check(version)
    return _block.decode(text)


def _check(version: int) -> None:
    if version != CODEC_VERSION:
        raise UnknownCodecError(f"stored in form {version}; this program knows form {CODEC_VERSION}")
