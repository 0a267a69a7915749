"""JSON Schema: whether a schema can be used, and whether a value satisfies one. Errors are one line with a path.

Schemas and values come from strangers: whatever they ask for, the answer takes a bounded time.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jsonschema_rs import Draft202012Validator, FancyRegexOptions, RegexOptions, ValidationError

from agent_service.engine.schema_work import LoopError, References, TooMuchWorkError, Work, nodes

_MAX_TEXT = 300
_PATTERNS_BYTES = 1024 * 1024
"""Of all compiled patterns of a schema."""
_MOST_TOLD = 2_000_000
"""Bytes of values that the library may write to tell one error."""
_LINEAR = RegexOptions(size_limit=_PATTERNS_BYTES)


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
    return _problem(text, max_depth, object_only)


@lru_cache(maxsize=256)
def _problem(text: str, max_depth: int, object_only: bool) -> str:
    """Remembered, because callers send the same tools with each request."""
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
    refs = [node[key] for node in nodes(schema) for key in ("$ref", "$dynamicRef") if isinstance(node.get(key), str)]
    remote = next((ref for ref in refs if not ref.startswith("#")), None)
    if remote is not None:
        return f"$ref {_short(remote)!r}: only references inside the same schema (#/...) are allowed"
    if any("$id" in node for node in nodes(schema) if node is not schema):
        return "$id: only allowed at the top, as references inside a schema are to the whole of it"
    return _unresolved(schema, refs) or _library_problem(text)


def _unresolved(schema: dict[str, Any], refs: list[str]) -> str:
    references = References(schema)
    for ref in refs:
        try:
            found = references.target(ref)
        except (LookupError, TypeError, ValueError):
            return f"$ref {_short(ref)!r} leads nowhere"
        if not isinstance(found, dict | bool):
            return f"$ref {_short(ref)!r} leads to {_kind(found)}, not to a schema"
    return ""


def _library_problem(text: str) -> str:
    try:
        _checker(text)
    except LoopError as loop:
        return f"$ref {_short(str(loop))!r} leads back to itself"
    except ValidationError as error:
        return f"not valid JSON Schema: {_describe(error)}"
    except ValueError as error:  # half of a surrogate pair, which JSON can say and no text can hold
        return f"not valid JSON Schema: {_short(str(error))}"
    return ""


def violation(schema_json: str, value: Any, text: str) -> str:
    """How a value, whose JSON text is given, violates a schema that was found usable before; empty if it does not."""
    checker = _checker(schema_json)
    try:
        checks = checker.work.check(value, text)
        if checker.validator.is_valid(value):
            return ""
        if checker.branches and checks * len(text) > _MOST_TOLD:
            return "it is against the schema; where cannot be told, for a value of this size"
        checker.validator.validate(value)
    except TooMuchWorkError:
        return "cannot be checked: it would take too long with this schema"
    except ValidationError as error:
        return _describe(error)
    except ValueError as problem:  # also for half of a surrogate pair
        return f"cannot be checked: {_short(str(problem))}"
    return ""


def text_violation(schema_json: str, text: str) -> str:
    """How a text is no JSON object or violates a schema that was found usable before; empty if it does not."""
    try:
        value = parse_json(text)
    except JsonError as error:
        return f"it is not valid JSON: {error}"
    if not isinstance(value, dict):
        return f"it is {_kind(value)}, not a JSON object"
    return violation(schema_json, value, text)


@dataclass(frozen=True, slots=True)
class _Checker:
    validator: Draft202012Validator
    work: Work
    branches: bool
    """Whether an error may tell how each of several schemas is violated, with the value each time."""


@lru_cache(maxsize=64)
def _checker(schema_json: str) -> _Checker:
    """Raises ValidationError for what the library cannot use, LoopError. Few are remembered: one may take megabytes."""
    schema = json.loads(schema_json)
    patterns = _patterns(schema)
    each = _PATTERNS_BYTES // max(len(patterns), 1)
    options = FancyRegexOptions(backtrack_limit=10_000, size_limit=each, dfa_size_limit=each)
    validator = Draft202012Validator(schema, offline=True, pattern_options=options)
    return _Checker(validator, Work(schema, frozenset(filter(_backtracks, patterns))), _branches(schema))


def _branches(schema: dict[str, Any]) -> bool:
    return any("anyOf" in node or "oneOf" in node for node in nodes(schema))


def _patterns(schema: dict[str, Any]) -> set[str]:
    found = {node["pattern"] for node in nodes(schema) if isinstance(node.get("pattern"), str)}
    for node in nodes(schema):
        if isinstance(keyed := node.get("patternProperties"), dict):
            found.update(keyed)
    return found


def _backtracks(pattern: str) -> bool:
    """Whether it has what cannot be matched in one pass."""
    try:
        Draft202012Validator({"pattern": pattern}, pattern_options=_LINEAR)
    except ValidationError:
        return True
    return False


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


def _describe(error: ValidationError) -> str:
    path = "/".join(str(part) for part in error.instance_path)
    return _short(f"at /{path}: {error.message}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
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
