"""google.protobuf.Struct as JSON text."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value

_WHOLE = 2**53


def struct_json(struct: Struct) -> str:
    """A Struct as JSON text: keys sorted, whole numbers within 2^53 as integers."""
    return json.dumps(_plain_fields(struct), ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _plain_fields(struct: Struct) -> dict[str, Any]:
    return {key: _plain(value) for key, value in struct.fields.items()}


def _plain(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return _plain_fields(value.struct_value)
        case "list_value":
            return [_plain(item) for item in value.list_value.values]
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) <= _WHOLE else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            return None
