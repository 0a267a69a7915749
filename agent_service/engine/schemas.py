"""JSON Schema: whether a schema can be used, and whether a value satisfies one. Errors are one line with a path."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

_MAX_TEXT = 300


class JsonError(ValueError):
    """Text that is not strict JSON; says where."""


def parse_json(text: str) -> Any:
    """Strict JSON: no NaN or Infinity, no key twice. Raises JsonError."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except JsonError:
        raise
    except RecursionError:
        raise JsonError("nested too deeply") from None
    except ValueError as error:
        raise JsonError(_short(str(error))) from None


def schema_problem(text: str, *, max_bytes: int, max_depth: int, object_only: bool = True) -> str:
    """Why a schema cannot be used; empty if it can."""
    size = len(text.encode())
    if size > max_bytes:
        return f"{size} bytes; at most {max_bytes} are allowed"
    try:
        schema = parse_json(text)
    except JsonError as error:
        return f"not valid JSON: {error}"
    if not isinstance(schema, dict):
        return f"must be a JSON object, found {_kind(schema)}"
    if _depth(schema) > max_depth:
        return f"nested deeper than {max_depth} levels"
    if object_only and schema.get("type", "object") != "object":
        return f'/type: must be "object", found {_short(json.dumps(schema["type"]))}'
    remote = next((ref for ref in _refs(schema) if not ref.startswith("#")), None)
    if remote is not None:
        return f"$ref {_short(remote)!r}: only references inside the same schema (#/...) are allowed"
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        return f"not valid JSON Schema: {_describe(error)}"
    return _unresolved(schema)


def violation(schema_json: str, value: Any) -> str:
    """How a value violates a schema that was found usable before; empty if it does not."""
    try:
        error = next(iter(_validator(schema_json).iter_errors(value)), None)
    except Exception as problem:  # the caller's schema drives the library; what it trips over is not our crash
        return f"cannot be checked: {_short(str(problem))}"
    return _describe(error) if error is not None else ""


def text_violation(schema_json: str, text: str) -> str:
    """How a text is no JSON object or violates a schema that was found usable before; empty if it does not."""
    try:
        value = parse_json(text)
    except JsonError as error:
        return f"it is not valid JSON: {error}"
    return violation(schema_json, value) if isinstance(value, dict) else f"it is {_kind(value)}, not a JSON object"


@lru_cache(maxsize=1024)
def _validator(schema_json: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema_json), registry=Registry())


def _unresolved(schema: dict[str, Any]) -> str:
    resource: Resource[Any] = Resource.from_contents(schema, default_specification=DRAFT202012)
    resolver = Registry[Any]().with_resource("", resource).resolver("")
    for ref in _refs(schema):
        try:
            found = resolver.lookup(ref).contents
        except (Unresolvable, TypeError, ValueError):  # a pointer into a list or a number raises the latter
            return f"$ref {_short(ref)!r} leads nowhere"
        if not isinstance(found, dict | bool):
            return f"$ref {_short(ref)!r} leads to {_kind(found)}, not to a schema"
    return ""


def _refs(value: Any) -> Iterable[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ("$ref", "$dynamicRef") and isinstance(item, str):
                yield item
            yield from _refs(item)
    elif isinstance(value, list):
        for item in value:
            yield from _refs(item)


def _depth(value: Any) -> int:
    """Levels of nesting, counted without recursion."""
    level, depth = [value], 0
    while level:
        depth += 1
        level = [
            item
            for node in level
            for item in (node.values() if isinstance(node, dict) else node)
            if isinstance(item, dict | list)
        ]
    return depth


def _describe(error: ValidationError | SchemaError) -> str:
    path = "/".join(str(part) for part in error.absolute_path)
    return _short(f"at /{path}: {error.message}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise JsonError(f"key {_short(twice)!r} twice in one object")
    return result


def _no_constant(name: str) -> Any:
    raise JsonError(f"{name} is not JSON")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return {list: "an array", str: "a string", bool: "a boolean"}.get(type(value), "a number")


def _short(text: str) -> str:
    line = " ".join(text.split()).encode(errors="replace").decode()
    return line if len(line) <= _MAX_TEXT else line[: _MAX_TEXT - 3] + "..."
