"""Bytes of messages, bent where no library would bend them."""

from __future__ import annotations

from random import Random

from google.protobuf.message import Message

from tests.fuzz.values import BROKEN_UTF8, MARKER

_MARKED = MARKER.encode()
_ODD_TAGS = (
    b"\x00",
    b"\x0b",
    b"\x0c",
    b"\x0f",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\xfa\xff\xff\xff\x0f",
)


def encoded(message: Message, rng: Random) -> bytes:
    """The message on the wire; texts that are marked become invalid UTF-8."""
    data = message.SerializeToString()
    return data.replace(_MARKED, rng.choice(BROKEN_UTF8)) if _MARKED in data else data


def mangled(data: bytes, other: bytes, rng: Random) -> bytes:
    """Bytes that are perhaps no message any more. `other` is another message of the same type."""
    match rng.randrange(9):
        case 0:
            return data[: rng.randrange(len(data) + 1)]
        case 1:
            return data + other
        case 2:
            return data + unknown_field(rng)
        case 3:
            return _flipped(data, rng)
        case 4:
            return data + rng.choice(_ODD_TAGS)
        case 5:
            return b"".join(retagged(data, rng))
        case 6:
            return data + nested(rng.randrange(1, 5), rng.choice((50, 99, 101, 10_000)))
        case 7:
            return rng.randbytes(rng.choice((1, 10, 100, 5_000)))
        case _:
            at = rng.randrange(len(data) + 1)
            return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:]


def unknown_field(rng: Random) -> bytes:
    """A field that the contract does not have, of any wire type."""
    number = rng.choice((99, 1_000, 19_000, 536_870_911))
    kind = rng.choice((0, 1, 2, 5))
    content = {0: b"\x01", 1: bytes(8), 2: _varint(5) + b"\xff\xfehey", 5: bytes(4)}[kind]
    return (_varint(number << 3 | kind) + content) * rng.choice((1, 1, 1_000))


def nested(number: int, depth: int) -> bytes:
    """A field in itself, so deep."""
    data = b""
    for _ in range(depth):
        data = _varint(number << 3 | 2) + _varint(len(data)) + data
    return data


def retagged(data: bytes, rng: Random) -> list[bytes]:
    """The same content under other field numbers and wire types, at the front."""
    if not data:
        return [b"\x08"]
    tag = rng.randrange(1, 32) << 3 | rng.randrange(8)
    return [bytes([tag]), data[1:]]


def _flipped(data: bytes, rng: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(min(len(changed), rng.choice((1, 1, 2, 8)))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
