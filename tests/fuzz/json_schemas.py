"""JSON Schemas that ask for much work or lead nowhere, and values that make them work."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from google.protobuf.struct_pb2 import Struct

Schema = dict[str, Any]

_REGEXES = (
    "(a+)+$",
    "^(a|a)*b",
    "(?=(a+))\\1*b",
    "(.*)*x",
    "[",
    "\\",
    "a{1000000}",
    "(?<!a+)b",
    "\\p{L}+",
    "(a{1,99}){1,99}",
)


def plain(rng: Random) -> Schema:
    """What a caller means to send."""
    names = rng.sample(("name", "city", "count", "list"), 2)
    return {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names[:1]}


def hostile(rng: Random) -> Schema:
    """One of many kinds of trouble."""
    return rng.choice(_KINDS)(rng)


def text(rng: Random) -> str:
    """A schema as JSON, sometimes cut."""
    made = json.dumps(plain(rng) if rng.random() < 0.2 else hostile(rng))
    return made[: rng.randrange(len(made))] if rng.random() < 0.1 else made


def hitting(rng: Random) -> str:
    """JSON of a value that makes hostile schemas work."""
    size = rng.choice((1, 40, 2_000, 100_000))
    depth = rng.choice((2, 30, 400))
    value: Any = "a" * rng.choice((10, 40, 5_000))
    for _ in range(depth):
        value = {"a": value} if rng.random() < 0.7 else {"a": value, "b": [value] if depth < 20 else 1}
    return json.dumps(_HITTING[rng.randrange(len(_HITTING))](value, size))


def _shapes() -> tuple[Callable[[Any, int], Any], ...]:
    return (
        lambda value, _: {"a": value, "name": value},
        lambda _, size: {"a": [1] * size, "name": "a" * size},
        lambda _, size: {f"a{i}": "aaaaaaaaaaaaaaaaaaaaaaaa!" for i in range(size)},
        lambda _, size: {"name": "a" * size + "!", "a": "a" * 60 + "!"},
        lambda _, size: {"a": [[1, 2], [1, 2]] * min(size, 3_000)},
        lambda _, size: {"a": [{"a": i} for i in range(min(size, 5_000))]},
    )


_HITTING = _shapes()


def fill(struct: Struct, value: Schema) -> None:
    """Puts a JSON object into a Struct, as deep as protobuf takes it."""
    struct.Clear()
    try:
        struct.update(value)
    except (ValueError, RecursionError, TypeError):
        struct.update({"type": "object"})


def _deep(rng: Random) -> Schema:
    schema: Schema = {"type": "string"}
    for _ in range(rng.choice((5, 15, 16, 31, 45, 90))):
        schema = {rng.choice(("not", "items", "additionalProperties", "contains")): schema}
    return {"type": "object", "properties": {"a": schema}}


def _recursive(rng: Random) -> Schema:
    return rng.choice(
        (
            {"$ref": "#"},
            {"type": "object", "properties": {"a": {"$ref": "#"}, "b": {"$ref": "#"}}},
            {"$defs": {"x": {"$ref": "#/$defs/y"}, "y": {"$ref": "#/$defs/x"}}, "$ref": "#/$defs/x"},
            {"allOf": [{"properties": {"a": {"$ref": "#"}}}] * 8},
            {"anyOf": [{"properties": {"a": {"$ref": "#"}}}, {"properties": {"a": {"$ref": "#"}}}]},
            {"$dynamicAnchor": "n", "properties": {"a": {"$dynamicRef": "#n"}}, "unevaluatedProperties": False},
            {"$recursiveRef": "#", "properties": {"a": {"$recursiveRef": "#"}}},
            {"properties": {"a": {"not": {"not": {"$ref": "#"}}}}, "additionalProperties": {"$ref": "#"}},
        )
    )


def _doubling(rng: Random) -> Schema:
    levels = rng.choice((8, 20, 60, 300))
    word = rng.choice(("allOf", "anyOf", "oneOf"))
    defs: Schema = {f"d{i}": {word: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(levels)}
    defs[f"d{levels}"] = {"type": "string"}
    return {"$defs": defs, "type": "object", "properties": {"a": {"$ref": "#/$defs/d0"}}}


def _patterns(rng: Random) -> Schema:
    pattern = rng.choice(_REGEXES)
    many = rng.choice((1, 30, 300))
    return rng.choice(
        (
            {"properties": {"a": {"pattern": pattern}, "name": {"pattern": pattern}}},
            {"patternProperties": {pattern: {"type": "string"}}},
            {"propertyNames": {"pattern": pattern}},
            {"patternProperties": {f"{pattern}{i}": {"pattern": f"{pattern}{i}"} for i in range(many)}},
        )
    )


def _remote(rng: Random) -> Schema:
    where = (
        "http://127.0.0.1:1/x",
        "file:///etc/passwd",
        "https://json-schema.org/draft/2020-12/schema",
        "x#/y",
        "//",
        "",
    )
    ref = rng.choice(where)
    return rng.choice(
        (
            {"$ref": ref},
            {"$id": ref, "properties": {"a": {"$ref": "#/properties/b"}}},
            {"properties": {"a": {"$id": ref, "$ref": "other"}}},
            {"$schema": ref},
            {"$ref": "#/properties/" + "~1" * 2_000},
            {"$ref": "#%"},
            {"$anchor": 5, "$ref": "#nowhere"},
        )
    )


def _wide(rng: Random) -> Schema:
    many = rng.choice((10, 2_000, 12_000))
    return rng.choice(
        (
            {"properties": {"a": {"enum": [str(i) for i in range(many)]}}},
            {"properties": {str(i): {} for i in range(many)}},
            {"required": [str(i) for i in range(many)]},
            {"allOf": [{}] * many},
            {"oneOf": [{"const": i} for i in range(many)]},
            {"properties": {"a": {"items": {"enum": [[i] for i in range(many)]}, "uniqueItems": True}}},
            {"dependentRequired": {str(i): [str(i + 1)] for i in range(many)}},
        )
    )


def _wrong(rng: Random) -> Schema:
    word = rng.choice(
        (
            *(
                "type",
                "properties",
                "items",
                "allOf",
                "enum",
                "required",
                "pattern",
                "$ref",
                "$defs",
                "minimum",
                "format",
            ),
            *(
                "prefixItems",
                "patternProperties",
                "dependentSchemas",
                "if",
                "multipleOf",
                "maxLength",
                "$id",
                "$schema",
            ),
        )
    )
    odd: Any = rng.choice(
        (None, 0, -1, 1.5, 1e300, "", "x", "\x00", "\ud800", [], {}, [None], {"": None}, True, 10**30)
    )
    return (
        {word: odd} if rng.random() < 0.5 else {"type": "object", "properties": {"a": {word: odd}, "name": {word: odd}}}
    )


_KINDS = (_deep, _recursive, _doubling, _patterns, _remote, _wide, _wrong)
