"""The rules of the chat completions API for `messages`.

Source: https://platform.openai.com/docs/api-reference/chat/create and the answers of the real
endpoint, whose words the messages follow.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any

from .refusals import RefusedError, need, need_only, wrong_type

FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_MESSAGE_NAME = re.compile(r"[^\s<|\\/>]{1,64}")
_CALL_ID_CHARS = 40
_MOST_CALLS = 128
_FIELDS = {
    "system": frozenset({"role", "content", "name"}),
    "developer": frozenset({"role", "content", "name"}),
    "user": frozenset({"role", "content", "name"}),
    "assistant": frozenset({"role", "content", "name", "tool_calls", "refusal", "audio"}),
    "tool": frozenset({"role", "content", "tool_call_id"}),
}
_PARTS = {
    "system": frozenset({"text"}),
    "developer": frozenset({"text"}),
    "user": frozenset({"text", "image_url", "input_audio", "file"}),
    "assistant": frozenset({"text", "refusal"}),
    "tool": frozenset({"text"}),
}
_AUDIO_FORMATS = ("wav", "mp3")
_DATA_URL = re.compile(r"data:image/(png|jpeg|gif|webp);base64,")
# How the files of these types begin.
_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"RIFF")


def check_messages(messages: object, extra_fields: frozenset[str]) -> None:
    """Raises RefusedError for the first message that the API would not take."""
    if not isinstance(messages, list):
        wrong_type("messages", "an array of objects", messages)
    need(bool(messages), "Invalid 'messages': empty array.", "messages", "empty_array")
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]", extra_fields)
    _check_ids_once(messages)
    _check_order(messages)


def _check_message(message: object, path: str, extra_fields: frozenset[str]) -> None:
    if not isinstance(message, dict):
        wrong_type(path, "an object", message)
    role = message.get("role")
    if not isinstance(role, str) or role not in _FIELDS:
        supported = ", ".join(f"'{name}'" for name in _FIELDS)
        text = f"Invalid value: '{role}'. Supported values are: {supported}."
        raise RefusedError(text, f"{path}.role", "invalid_value")
    need_only(message, _FIELDS[role] | extra_fields, path)
    if "name" in message:
        _check_name(message["name"], f"{path}.name")
    if "tool_calls" in message:
        _check_calls(message["tool_calls"], f"{path}.tool_calls")
    if role == "tool":
        _check_call_id(message.get("tool_call_id"), f"{path}.tool_call_id")
    _check_content(message, role, f"{path}.content")


def _check_name(name: object, path: str) -> None:
    if not isinstance(name, str):
        wrong_type(path, "a string", name)
    text = f"Invalid '{path}': string does not match pattern '^[^\\s<|\\\\/>]+$', or is too long."
    need(bool(_MESSAGE_NAME.fullmatch(name)), text, path, "invalid_value")


def _check_content(message: dict[str, Any], role: str, path: str) -> None:
    content = message.get("content")
    if content is None:
        optional = role == "assistant" and ("tool_calls" in message or message.get("refusal"))
        text = f"Invalid value for 'content': expected a string, got null. ({path})"
        need(bool(optional), text, path)
    elif isinstance(content, list):
        need(bool(content), f"Invalid '{path}': empty array.", path, "empty_array")
        for index, part in enumerate(content):
            _check_part(part, _PARTS[role], f"{path}[{index}]")
    elif not isinstance(content, str):
        wrong_type(path, "one of a string or array of objects", content)


def _check_part(part: object, allowed: frozenset[str], path: str) -> None:
    if not isinstance(part, dict):
        wrong_type(path, "an object", part)
    kind = part.get("type")
    text = f"Invalid value: '{kind}'. Supported values are: {', '.join(sorted(allowed))}."
    need(isinstance(kind, str) and kind in allowed, text, f"{path}.type", "invalid_value")
    need_only(part, frozenset({"type", str(kind)}), path)
    need(kind in part, f"Missing required parameter: '{path}.{kind}'.", f"{path}.{kind}")
    _check_part_value(str(kind), part[kind], f"{path}.{kind}")


def _check_part_value(kind: str, value: object, path: str) -> None:
    if kind in ("text", "refusal"):
        if not isinstance(value, str):
            wrong_type(path, "a string", value)
        return
    if not isinstance(value, dict):
        wrong_type(path, "an object", value)
    if kind == "image_url":
        _check_image(value, path)
    elif kind == "input_audio":
        good = isinstance(value.get("data"), str) and value.get("format") in _AUDIO_FORMATS
        need(good, f"Invalid '{path}': expected base64 data and a format.", path)
    else:
        good = isinstance(value.get("file_data", value.get("file_id")), str)
        need(good, f"Invalid '{path}': expected file_data or file_id.", path)


def _check_image(image: dict[str, Any], path: str) -> None:
    need_only(image, frozenset({"url", "detail"}), path)
    url, detail = image.get("url"), image.get("detail", "auto")
    text = f"Invalid value: '{detail}'. Supported values are: 'low', 'high', and 'auto'."
    need(detail in ("low", "high", "auto"), text, f"{path}.detail", "invalid_value")
    if not isinstance(url, str):
        wrong_type(f"{path}.url", "a string", url)
    if not url.startswith("data:"):
        good = url.startswith(("http://", "https://"))
        need(good, f"Invalid '{path}.url': expected an http(s) or data URL.", f"{path}.url", "invalid_image_url")
        return
    found = _DATA_URL.match(url)
    text = f"Invalid '{path}.url': expected a base64-encoded data URL with an image MIME type."
    need(bool(found), text, f"{path}.url", "invalid_image_url")
    try:
        data = base64.b64decode(url[found.end() if found else 0 :], validate=True)
    except binascii.Error:
        data = b""
    text = "You uploaded an unsupported image. Please make sure your image is valid."
    need(data.startswith(_IMAGES), text, f"{path}.url", "invalid_image_format")


def _check_calls(calls: object, path: str) -> None:
    if not isinstance(calls, list):
        wrong_type(path, "an array of objects", calls)
    text = f"Invalid '{path}': empty array. Expected an array with minimum length 1."
    need(bool(calls), text, path, "empty_array")
    text = f"Invalid '{path}': array too long. Expected at most {_MOST_CALLS}."
    need(len(calls) <= _MOST_CALLS, text, path, "array_above_max_length")
    for index, call in enumerate(calls):
        _check_call(call, f"{path}[{index}]")


def _check_call(call: object, path: str) -> None:
    if not isinstance(call, dict):
        wrong_type(path, "an object", call)
    need_only(call, frozenset({"id", "type", "function"}), path)
    _check_call_id(call.get("id"), f"{path}.id")
    good = call.get("type") == "function"
    need(good, f"Invalid value for '{path}.type': expected 'function'.", f"{path}.type")
    function = call.get("function")
    if not isinstance(function, dict):
        wrong_type(f"{path}.function", "an object", function)
    need_only(function, frozenset({"name", "arguments"}), f"{path}.function")
    check_function_name(function.get("name"), f"{path}.function.name")
    if not isinstance(function.get("arguments"), str):
        wrong_type(f"{path}.function.arguments", "a string", function.get("arguments"))


def _check_call_id(call_id: object, path: str) -> None:
    need(call_id is not None, f"Missing required parameter: '{path}'.", path, "missing_parameter")
    if not isinstance(call_id, str):
        wrong_type(path, "a string", call_id)
    need(call_id != "", f"Invalid '{path}': empty string.", path, "empty_string")
    text = (
        f"Invalid '{path}': string too long. Expected a string with maximum length"
        f" {_CALL_ID_CHARS}, but got a string with length {len(call_id)} instead."
    )
    need(len(call_id) <= _CALL_ID_CHARS, text, path, "string_above_max_length")


def check_function_name(name: object, path: str) -> None:
    """Raises RefusedError unless it is a name that a function may have."""
    if not isinstance(name, str):
        wrong_type(path, "a string", name)
    text = f"Invalid '{path}': string does not match pattern '^[a-zA-Z0-9_-]{{1,64}}$'."
    need(bool(FUNCTION_NAME.fullmatch(name)), text, path, "invalid_value")


def _call_ids(message: dict[str, Any]) -> list[str]:
    return [call["id"] for call in message.get("tool_calls", [])]


def _check_ids_once(messages: Sequence[dict[str, Any]]) -> None:
    seen: set[str] = set()
    for index, message in enumerate(messages):
        for call_id in _call_ids(message):
            path = f"messages[{index}].tool_calls"
            text = f"Duplicate value for 'tool_call_id' of '{call_id}' in '{path}'."
            need(call_id not in seen, text, path)
            seen.add(call_id)


def _check_order(messages: Sequence[dict[str, Any]]) -> None:
    asked: list[str] = []
    answered: set[str] = set()
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        if message["role"] == "tool":
            _check_return(message["tool_call_id"], asked, answered, path)
            answered.add(message["tool_call_id"])
            continue
        _check_all_answered(asked, answered, path)
        asked, answered = _call_ids(message), set()
    _check_all_answered(asked, answered, f"messages[{len(messages) - 1}]")


def _check_return(call_id: str, asked: list[str], answered: set[str], path: str) -> None:
    text = "Invalid parameter: messages with role 'tool' must be a response to a preceding message with 'tool_calls'."
    need(bool(asked), text, f"{path}.role")
    text = f"Invalid parameter: 'tool_call_id' of '{call_id}' not found in 'tool_calls' before it."
    need(call_id in asked, text, f"{path}.tool_call_id")
    text = f"Invalid parameter: second tool message for the 'tool_call_id' '{call_id}'."
    need(call_id not in answered, text, f"{path}.tool_call_id")


def _check_all_answered(asked: list[str], answered: set[str], path: str) -> None:
    missing = ", ".join(call_id for call_id in asked if call_id not in answered)
    text = (
        "An assistant message with 'tool_calls' must be followed by tool messages responding to"
        " each 'tool_call_id'. The following tool_call_ids did not have response messages:"
        f" {missing}"
    )
    need(not missing, text, f"{path}.role")
