"""Values at the edges of what a field can hold, and plausible ones by the name of the field."""

from __future__ import annotations

import base64
import json
import math
from random import Random
from typing import Any

MARKER = "QzQzQzQz"
"""Stands in a text for the bytes that make it invalid UTF-8 once it is on the wire."""
BROKEN_UTF8 = (
    b"\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8",
    b"ab\xed\xa0\x80cde",
    b"\xc0\x80abcdef",
    b"abcdefg\xe2",
    b"\xf4\x90\x80\x80abcd",
)

_INTEGERS = (0, 1, -1, 2, 7, 999, 1000, 1001, 2**31 - 1, -(2**31))
_LONG_INTEGERS = (*_INTEGERS, 2**31, 2**53, 2**63 - 1, -(2**63))
_DOUBLES = (0.0, -0.0, 1.5, 1e308, -1e308, 5e-324, 2.0**53, 2.0**64, math.nan, math.inf, -math.inf)
_HUGE = (1_000, 70_000, 300_000, 1_200_000, 4_300_000)
_PIECES = (
    *(
        "",
        " ",
        "\x00",
        "a\x00b",
        "\n",
        "\r\n",
        "\x1b[31m",
        "\x7f",
        "\ufeff",
        "\u202e",
        "\u2028",
        "\ufffd",
        "\U0010ffff",
    ),
    *("%", "%00", "%s%n", "'", "' OR 1=1 --", '"', "\\", "\\u0000", "{}", "[]", "null", "NaN", "-0", "1e999", "$ref"),
    *(
        "../../etc/passwd",
        "http://127.0.0.1:1/",
        "data:image/png;base64,AA",
        "https://[::1",
        "https://a:b@c/",
        "*",
        "?",
    ),
    *(
        "é" * 64,
        "a" * 64,
        "a" * 65,
        "x" * 300,
        "e\u0301" * 40,
        "👩‍👩‍👧‍👦" * 9,
        "-",
        ".",
        ":",
        "_",
        "/",
        "default",
        "responder",
    ),
)

_ODD_JSON = (
    *(
        '"\\ud800"',
        '{"\\udfff":"\\ud800"}',
        '{"a":NaN}',
        '{"a":1e99999}',
        '{"a":-Infinity,"a":1}',
        '{"name":"\\u0000"}',
    ),
    *('{"":{"":{"":[]}}}', "{", '{"a"', "[1,2", "\ufeff{}", "null", "true", "[]", '""', "{} {}", "'a'", '{"a":01}'),
)


def edge_text(rng: Random) -> str:
    """A text that some reader of texts does not like."""
    if rng.random() < 0.06:
        return rng.choice(("a", "\x00", "é", "\u2028", "[", '{"a":')) * rng.choice(_HUGE)
    if rng.random() < 0.15:
        return MARKER
    if rng.random() < 0.15:
        return edge_json(rng)
    if rng.random() < 0.1:
        return token(rng)
    return "".join(rng.choice(_PIECES) for _ in range(rng.choice((1, 1, 1, 2, 3))))


def edge_json(rng: Random) -> str:
    """JSON, or nearly, that is deep, wide, odd or wrong."""
    depth = rng.choice((10, 100, 1_000, 100_000))
    many = rng.choice((10, 1_000, 30_000))
    match rng.randrange(6):
        case 0:
            return "[" * depth + "]" * depth
        case 1:
            return '{"a":' * depth + "1" + "}" * depth
        case 2:
            twice = rng.choice((0, many - 1))
            return "{" + ",".join(f'"k{i}":{i}' for i in range(many)) + f',"k{twice}":0}}'
        case 3:
            return '{"a":' + "9" * rng.choice((20, 400, 5_000)) + "}"
        case 4:
            return json.dumps({"a": "x" * many})
        case _:
            return rng.choice(_ODD_JSON)


def token(rng: Random) -> str:
    """What looks like a page token, of this list or another."""
    listed = rng.choice(("runs", "calls", "conversations", "messages", "agents", "", None, 1))
    time: Any = rng.choice((0, 1, -1, 2**63, 2**63 - 1, 1.5, "1", None, 10**400, [], True))
    row = rng.choice(("run_1", "", "a" * 65, "a\x00", None, 7, ["x"], "%", "'"))
    parts: Any = rng.choice(([listed, time, row], [listed, time], {"a": 1}, [[[[]]]], "x", [listed, time, row, row]))
    made = base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()
    cut = rng.choice((0, 0, 0, 1, 3))
    return made[cut:]


def edge_integer(rng: Random, *, long: bool) -> int:
    """An integer of 32 or 64 bits, signed."""
    return rng.choice(_LONG_INTEGERS if long else _INTEGERS)


def edge_double(rng: Random) -> float:
    """A number, or none."""
    return rng.choice(_DOUBLES)


def edge_bytes(rng: Random) -> bytes:
    """Bytes that may be no image."""
    size = rng.choice((0, 1, 8, 1_000, 1_600_000))
    return rng.choice((b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF\0\0\0\0WEBP")) + rng.randbytes(
        size
    )
