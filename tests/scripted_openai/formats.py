"""The rules of the chat completions API for `response_format`.

Source: https://platform.openai.com/docs/guides/structured-outputs#supported-schemas and the answers of the real
endpoint, whose words the messages follow.
"""

from collections.abc import Iterator
from typing import Any

from .messages import check_function_name
from .refusals import RefusedError, need, need_only, wrong_type

_KINDS = ("text", "json_object", "json_schema")
_NOT_IN_STRICT = ("allOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "patternProperties")
_PATH = "response_format"


def check_format(wanted: object, *, any_schema: bool) -> None:
    """Raises RefusedError unless the API takes it; with `any_schema` strict ones may be of any form."""
    if not isinstance(wanted, dict):
        wrong_type(_PATH, "an object", wanted)
    kind = wanted.get("type")
    text = f"Invalid value: '{kind}'. Supported values are: {', '.join(repr(name) for name in _KINDS)}."
    need(kind in _KINDS, text, f"{_PATH}.type", "invalid_value")
    if kind != "json_schema":
        need_only(wanted, frozenset({"type"}), _PATH)
        return
    need_only(wanted, frozenset({"type", "json_schema"}), _PATH)
    _check_described(wanted.get("json_schema"), f"{_PATH}.json_schema", any_schema)


def _check_described(described: object, path: str, any_schema: bool) -> None:
    need(described is not None, f"Missing required parameter: '{path}'.", path, "missing_required_parameter")
    if not isinstance(described, dict):
        wrong_type(path, "an object", described)
    need_only(described, frozenset({"name", "description", "schema", "strict"}), path)
    need("name" in described, f"Missing required parameter: '{path}.name'.", f"{path}.name")
    check_function_name(described["name"], f"{path}.name")
    if not isinstance(described.get("description", ""), str):
        wrong_type(f"{path}.description", "a string", described["description"])
    strict = described.get("strict", False)
    if not isinstance(strict, bool):
        wrong_type(f"{path}.strict", "a boolean", strict)
    need("schema" in described, f"Missing required parameter: '{path}.schema'.", f"{path}.schema")
    schema = described["schema"]
    if not isinstance(schema, dict):
        wrong_type(f"{path}.schema", "an object", schema)
    if not any_schema:
        _check_schema(described["name"], schema, strict)


def _check_schema(name: str, schema: dict[str, Any], strict: bool) -> None:
    problem = "" if schema.get("type") == "object" else "schema must be a JSON Schema of 'type: \"object\"'"
    if strict and not problem:
        problem = next(_problems(schema, ()), "")
    if problem:
        text = f"Invalid schema for response_format '{name}': {problem}."
        raise RefusedError(text, _PATH, "invalid_json_schema")


def _problems(schema: Any, context: tuple[str, ...]) -> Iterator[str]:
    """What a strict schema must not have, anywhere in it."""
    if not isinstance(schema, dict):
        return
    where = f"In context={context}, "
    for keyword in _NOT_IN_STRICT:
        if keyword in schema:
            yield f"{where}'{keyword}' is not permitted"
    if schema.get("type") == "object" or "properties" in schema:
        if schema.get("additionalProperties") is not False:
            yield f"{where}'additionalProperties' is required to be supplied and to be false"
        missing = sorted(set(schema.get("properties", {})) - set(schema.get("required", [])))
        if missing:
            yield f"{where}'required' is required to be an array including every key in properties. Missing {missing}"
    for keyword in ("properties", "$defs", "definitions"):
        for key, value in schema.get(keyword, {}).items():
            yield from _problems(value, (*context, keyword, key))
    for index, value in enumerate(schema.get("anyOf", [])):
        yield from _problems(value, (*context, "anyOf", str(index)))
    yield from _problems(schema.get("items"), (*context, "items"))
