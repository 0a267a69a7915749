"""The rules of the chat completions API for a request as a whole.

Source: https://platform.openai.com/docs/api-reference/chat/create and the answers of the real
endpoint, whose words the messages follow. Streaming is required: the service always streams.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from .formats import check_format
from .messages import check_function_name, check_messages
from .refusals import RefusedError, need, need_only, wrong_type

_MOST_TOOLS = 128
_DESCRIPTION_CHARS = 1024
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")


@dataclass(frozen=True)
class Rules:
    """What this endpoint takes beyond the OpenAI API, as other providers do.

    `any_schema`: a strict response format may have any schema, as where grammars are made of schemas.
    `window_tokens`: a body with more than four times as many bytes is refused as too long; 0 means none is.
    """

    extra_fields: frozenset[str] = frozenset()
    extra_message_fields: frozenset[str] = frozenset()
    any_schema: bool = False
    window_tokens: int = 0


def check_body(raw: bytes, rules: Rules) -> dict[str, Any]:
    """The parsed request; raises RefusedError for the first rule that it breaks."""
    body = _parse(raw)
    _check_fields(body, rules)
    _check_required(body)
    check_messages(body["messages"], rules.extra_message_fields)
    names = _check_tools(body["tools"]) if "tools" in body else None
    _check_tool_settings(body, names)
    if "response_format" in body:
        check_format(body["response_format"], any_schema=rules.any_schema)
    if rules.window_tokens:
        _check_length(len(raw) // 4, rules.window_tokens)
    return body


def _check_length(tokens: int, window: int) -> None:
    text = (
        f"This model's maximum context length is {window} tokens. However, your messages resulted in {tokens} tokens."
        " Please reduce the length of the messages."
    )
    need(tokens <= window, text, "messages", "context_length_exceeded")


def check_key(headers: Mapping[str, str], api_key: str | None) -> None:
    """Raises RefusedError, with status 401, unless the key is right or none is set."""
    if api_key is not None and headers.get("Authorization") != f"Bearer {api_key}":
        raise RefusedError("Incorrect API key provided.", None, "invalid_api_key", status=401)


def _not_a_number(literal: str) -> NoReturn:
    raise ValueError(f"{literal} is not JSON")


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw.decode(), parse_constant=_not_a_number)
        json.dumps(body, ensure_ascii=False).encode()  # refuses halves of surrogate pairs
    except (ValueError, RecursionError) as error:
        text = f"We could not parse the JSON body of your request: {error}"
        raise RefusedError(text) from None
    if not isinstance(body, dict):
        wrong_type("body", "an object", body)
    return body


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and low <= value <= high


def _whole(low: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= low


def _one_of(*values: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in values


def _is(*types: type) -> Callable[[Any], bool]:
    return lambda value: type(value) in types


def _is_stop(value: object) -> bool:
    if isinstance(value, list):
        return 1 <= len(value) <= 4 and all(isinstance(item, str) for item in value)
    return isinstance(value, str)


def _is_stream_options(value: object) -> bool:
    known = {"include_usage", "include_obfuscation"}
    return isinstance(value, dict) and set(value) <= known and all(type(flag) is bool for flag in value.values())


def _is_metadata(value: object) -> bool:
    return isinstance(value, dict) and len(value) <= 16 and all(isinstance(item, str) for item in value.values())


# Every field that a request may have, and whether a value is one that the API takes.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "frequency_penalty": _number(-2, 2),
    "logit_bias": _is(dict),
    "logprobs": _is(bool),
    "max_completion_tokens": _whole(1),
    "max_tokens": _whole(1),
    "messages": _is(list),
    "metadata": _is_metadata,
    "modalities": _is(list),
    "model": _is(str),
    "n": lambda value: type(value) is int and value == 1,
    "parallel_tool_calls": _is(bool),
    "prediction": _is(dict),
    "presence_penalty": _number(-2, 2),
    "prompt_cache_key": _is(str),
    "prompt_cache_retention": _is(str),
    "reasoning_effort": _one_of(*_EFFORTS),
    "response_format": _is(dict),
    "safety_identifier": _is(str),
    "seed": _is(int),
    "service_tier": _is(str),
    "stop": _is_stop,
    "store": _is(bool),
    "stream": _is(bool),
    "stream_options": _is_stream_options,
    "temperature": _number(0, 2),
    "tool_choice": _is(str, dict),
    "tools": _is(list),
    "top_logprobs": _whole(0),
    "top_p": _number(0, 1),
    "user": _is(str),
    "verbosity": _one_of("low", "medium", "high"),
}


def _check_fields(body: dict[str, Any], rules: Rules) -> None:
    for name, value in body.items():
        if name in rules.extra_fields:
            continue
        text = f"Unrecognized request argument supplied: {name}"
        need(name in _FIELDS, text, name, "unknown_parameter")
        if not _FIELDS[name](value):
            text = f"Invalid value for '{name}': {str(value)[:100]!r}."
            raise RefusedError(text, name, "invalid_value")


def _check_required(body: dict[str, Any]) -> None:
    need(bool(body.get("model")), "you must provide a model parameter", "model")
    text = "Missing required parameter: 'messages'."
    need("messages" in body, text, "messages", "missing_required_parameter")
    need(body.get("stream") is True, "This endpoint only streams: set 'stream' to true.", "stream")
    both = "max_tokens" in body and "max_completion_tokens" in body
    need(not both, "Setting 'max_tokens' and 'max_completion_tokens' at the same time.")


def _check_tools(tools: list[Any]) -> list[str]:
    need(bool(tools), "Invalid 'tools': empty array.", "tools", "empty_array")
    text = f"Invalid 'tools': array too long. Expected at most {_MOST_TOOLS}."
    need(len(tools) <= _MOST_TOOLS, text, "tools", "array_above_max_length")
    names: list[str] = []
    for index, tool in enumerate(tools):
        name = _check_tool(tool, f"tools[{index}]")
        need(name not in names, f"Duplicate function name '{name}'.", f"tools[{index}]")
        names.append(name)
    return names


def _check_tool(tool: object, path: str) -> str:
    if not isinstance(tool, dict):
        wrong_type(path, "an object", tool)
    need_only(tool, frozenset({"type", "function"}), path)
    good = tool.get("type") == "function"
    need(good, f"Invalid value for '{path}.type': expected 'function'.", f"{path}.type")
    function = tool.get("function")
    if not isinstance(function, dict):
        wrong_type(f"{path}.function", "an object", function)
    known = frozenset({"name", "description", "parameters", "strict"})
    need_only(function, known, f"{path}.function")
    check_function_name(function.get("name"), f"{path}.function.name")
    _check_description(function, f"{path}.function")
    if "parameters" in function:
        _check_schema(function["name"], function["parameters"], f"{path}.function.parameters")
    return str(function["name"])


def _check_description(function: dict[str, Any], path: str) -> None:
    description = function.get("description", "")
    if not isinstance(description, str):
        wrong_type(f"{path}.description", "a string", description)
    text = f"Invalid '{path}.description': string too long."
    fits = len(description) <= _DESCRIPTION_CHARS
    need(fits, text, f"{path}.description", "string_above_max_length")
    strict = function.get("strict", False)
    if not isinstance(strict, bool):
        wrong_type(f"{path}.strict", "a boolean", strict)


def _check_schema(name: str, schema: object, path: str) -> None:
    def refuse(problem: str) -> NoReturn:
        text = f"Invalid schema for function '{name}': In context=(), {problem}."
        raise RefusedError(text, path, "invalid_function_parameters")

    if not isinstance(schema, dict):
        wrong_type(path, "an object", schema)
    if schema.get("type") != "object":
        refuse("schema must be a JSON Schema of 'type: \"object\"'")
    if not isinstance(schema.get("properties"), dict):
        refuse("object schema missing properties")
    for field, value in schema["properties"].items():
        if not isinstance(value, dict | bool):
            refuse(f"{value!r} is not of type 'object', 'boolean'")
        if isinstance(value, dict) and value.get("type") == "array" and "items" not in value:
            refuse(f"array schema '{field}' missing items")


def _check_tool_settings(body: dict[str, Any], names: list[str] | None) -> None:
    for field in ("tool_choice", "parallel_tool_calls"):
        text = f"Invalid value for '{field}': '{field}' is only allowed when 'tools' are specified."
        need(names is not None or field not in body, text, field)
    choice = body.get("tool_choice")
    if isinstance(choice, str):
        text = f"Invalid value: '{choice}'. Supported values are: 'none', 'auto', and 'required'."
        need(choice in ("none", "auto", "required"), text, "tool_choice", "invalid_value")
    elif isinstance(choice, dict):
        _check_forced(choice, names or [])


def _check_forced(choice: dict[str, Any], names: list[str]) -> None:
    need_only(choice, frozenset({"type", "function"}), "tool_choice")
    function = choice.get("function")
    good = choice.get("type") == "function" and isinstance(function, dict)
    need(good, "Invalid value for 'tool_choice': expected a function.", "tool_choice")
    name = function.get("name") if isinstance(function, dict) else None
    text = f"Invalid value for 'tool_choice': function '{name}' is not one of 'tools'."
    need(name in names, text, "tool_choice")
