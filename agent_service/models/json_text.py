"""JSON as bytes, for text of any origin: half of a surrogate pair becomes U+FFFD instead of an error."""

from __future__ import annotations

import json
import re

import msgspec

_SURROGATE = re.compile("[\ud800-\udfff]")
_encode = msgspec.json.Encoder().encode


def to_json(value: object) -> bytes:
    """Compact UTF-8 JSON of dicts, lists, text and numbers, in their order."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return to_utf8(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def to_utf8(text: str) -> bytes:
    """The text in UTF-8."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text).encode()


def repaired(payload: bytes) -> bytes:
    """The JSON document without escaped halves of surrogate pairs and invalid UTF-8. Raises ValueError if it is none.

    `msgspec` refuses both; models do write them, for example when an emoji is cut at a token's border.
    """
    try:
        value = json.loads(payload.decode("utf-8", "replace"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return to_utf8(json.dumps(value, ensure_ascii=False))
