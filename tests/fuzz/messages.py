"""Messages of any type, valid as far as the descriptors tell, and then bent in one place or more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message

from tests.fuzz import json_schemas, values

_DEPTH = 6
_LONG = (Field.TYPE_INT64, Field.TYPE_SINT64, Field.TYPE_SFIXED64)
_UNSIGNED = (Field.TYPE_UINT32, Field.TYPE_UINT64, Field.TYPE_FIXED32, Field.TYPE_FIXED64)
_REAL = (Field.TYPE_DOUBLE, Field.TYPE_FLOAT)
_SECONDS = (0, 1, 60, -1, 10**9, 315_576_000_001, 253_402_300_800, 2**63 - 1, -(2**63))
_NANOS = (0, 0, 1, -1, 999_999_999, 10**9, 2**31 - 1, -(2**31))

Words = Callable[[Random, str], str | None]
"""A plausible text for a field of this name, or None."""


class Maker:
    """Makes messages with a random generator. `words` knows what is there."""

    def __init__(self, rng: Random, words: Words) -> None:
        self._rng = rng
        self._words = words

    def valid(self, kind: type[Message]) -> Message:
        """A message with plausible values in some of its fields."""
        message = kind()
        self._fill(message, 0)
        return message

    def bend(self, message: Message, times: int) -> None:
        """Puts values at the edges into fields of the message, or below."""
        for _ in range(times):
            spots = list(_spots(message))
            if spots:
                holder, field = self._rng.choice(spots)
                self._bend(holder, field)

    def _fill(self, message: Any, depth: int) -> None:
        if self._fill_known(message):
            return
        taken = set()
        for field in message.DESCRIPTOR.fields:
            group = field.containing_oneof
            wanted = self._rng.random() < (0.9 if _is_id(field.name) else 0.75 if depth < 2 else 0.5)
            if not wanted or (group is not None and group.name in taken and not group.name.startswith("_")):
                continue
            if group is not None:
                taken.add(group.name)
            self._set(message, field, depth)

    def _fill_known(self, message: Any) -> bool:
        """Types of protobuf itself; whether it was one."""
        rng = self._rng
        match message.DESCRIPTOR.full_name:
            case "google.protobuf.Duration":
                message.seconds = rng.choice((1, 2, 60))
            case "google.protobuf.Timestamp":
                message.seconds = rng.choice((1, 1_700_000_000))
            case "google.protobuf.Struct":
                json_schemas.fill(message, json_schemas.plain(rng))
            case "google.protobuf.FieldMask":
                message.paths.extend(rng.sample(("description", "instructions", "model", "tool_rules"), 2))
            case _:
                return False
        return True

    def _set(self, message: Any, field: Field, depth: int) -> None:
        if _is_map(field):
            for _ in range(self._rng.choice((0, 1, 2))):
                self._put_entry(message, field, f"k{self._rng.randrange(4)}", "v")
        elif field.message_type is not None:
            if depth >= _DEPTH:
                return
            held = getattr(message, field.name)
            if field.is_repeated:
                for _ in range(self._rng.choice((1, 1, 2))):
                    self._fill(held.add(), depth + 1)
            else:
                held.SetInParent()
                self._fill(held, depth + 1)
        elif field.is_repeated:
            getattr(message, field.name).extend(self._plain(field) for _ in range(self._rng.choice((0, 1, 2))))
        else:
            setattr(message, field.name, self._plain(field))

    def _plain(self, field: Field) -> Any:
        rng = self._rng
        if field.enum_type is not None:
            return rng.choice([value.number for value in field.enum_type.values])
        if field.type == Field.TYPE_STRING:
            word = self._words(rng, field.name)
            return word if word is not None else rng.choice(("", "a", "hello", "client_a", "1.5"))
        if field.type == Field.TYPE_BYTES:
            return b"\x89PNG\r\n\x1a\n" + rng.randbytes(8)
        if field.type == Field.TYPE_BOOL:
            return rng.random() < 0.3
        return rng.choice((0, 1, 2, 10))

    def _put_entry(self, message: Any, field: Any, key: str, value: Any) -> None:
        entries = getattr(message, field.name)
        if field.message_type.fields_by_name["value"].message_type is not None:
            self._fill(entries[key], _DEPTH)
        else:
            entries[key] = value

    def _bend(self, message: Any, field: Field) -> None:
        rng = self._rng
        if _is_map(field):
            key, value = values.edge_text(rng)[:400], values.edge_text(rng)[:400]
            for index in range(rng.choice((1, 40, 5_000))):
                self._put_entry(message, field, f"{key}{index}", value)
        elif field.message_type is not None:
            self._bend_message(message, field)
        elif field.is_repeated:
            value, times = self._edge(field), rng.choice((1, 2, 200, 100_000))
            small = len(value) < 100 if isinstance(value, str | bytes) else True
            getattr(message, field.name).extend([value] * (times if small else 1))
        else:
            setattr(message, field.name, self._edge(field))

    def _bend_message(self, message: Any, field: Any) -> None:
        """Many of it, an empty one, or an odd one."""
        rng, held = self._rng, getattr(message, field.name)
        if field.is_repeated:
            if rng.random() < 0.2:
                for _ in range(rng.choice((0, 130, 3_000, 200_000))):
                    held.add()
            elif len(held):
                held.add().CopyFrom(rng.choice(held))
            else:
                held.add()
            return
        held.SetInParent()
        match field.message_type.full_name:
            case "google.protobuf.Duration" | "google.protobuf.Timestamp":
                held.seconds, held.nanos = rng.choice(_SECONDS), rng.choice(_NANOS)
            case "google.protobuf.Struct":
                json_schemas.fill(held, json_schemas.hostile(rng))
            case _:
                held.Clear()
                held.SetInParent()

    def _edge(self, field: Field) -> Any:
        rng = self._rng
        if field.enum_type is not None:
            return values.edge_integer(rng, long=False)
        if field.type == Field.TYPE_STRING:
            if field.name.endswith("_json") and rng.random() < 0.5:
                return json_schemas.text(rng)
            return values.edge_text(rng)
        if field.type == Field.TYPE_BYTES:
            return values.edge_bytes(rng)
        if field.type == Field.TYPE_BOOL:
            return rng.random() < 0.5
        if field.type in _REAL:
            return values.edge_double(rng)
        number = values.edge_integer(rng, long=field.type in _LONG)
        return abs(number) & 0x7FFFFFFF if field.type in _UNSIGNED else number


def _spots(message: Any) -> Iterator[tuple[Any, Field]]:
    """Every field of the message and of the messages that are set in it."""
    for field in message.DESCRIPTOR.fields:
        yield message, field
    for field, value in message.ListFields():
        if field.message_type is None or _is_map(field):
            continue
        for held in list(value)[:20] if field.is_repeated else [value]:
            yield from _spots(held)


def _is_map(field: Field) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


def _is_id(name: str) -> bool:
    return name.endswith("_id") or name in ("agent", "step", "submit", "input_messages", "tool_returns", "text")
