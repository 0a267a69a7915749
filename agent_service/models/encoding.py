"""Stored messages and requests in the form of the Chat Completions API.

Everything is bytes: a message is encoded once and its bytes are kept, so that a request only joins them.
Source: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TypeGuard

from agent_service.domain.message import (
    AssistantContent,
    Message,
    ReasoningContent,
    SystemContent,
    ToolCallsContent,
    ToolReturnContent,
    UserContent,
)
from agent_service.domain.run import Pinned
from agent_service.domain.tool import ToolCall, ToolChoice, ToolChoiceMode, ToolSchema
from agent_service.engine.model import ModelRequest
from agent_service.models.json_text import to_json, to_utf8

AnswerContent = ReasoningContent | AssistantContent | ToolCallsContent

EncodeAnswer = Callable[[str, Sequence[ToolCall]], bytes]
"""From the text and the calls of one answer to its message."""
EncodeReturn = Callable[[ToolReturnContent], bytes]
"""From a tool return to its message."""

_BAD_IN_TOOL_NAME = re.compile(r"[^a-zA-Z0-9_-]")
_BAD_IN_USER_NAME = re.compile(r"[\s<|\\/>]")
_MAX_NAME_CHARS = 64
_STREAM = b',"stream":true,"stream_options":{"include_usage":true}}'


def encode_messages(messages: Sequence[Message], answer: EncodeAnswer, returned: EncodeReturn) -> bytes:
    """The messages as JSON objects joined by commas. Raises ValueError for a call without return or the reverse."""
    returns = {m.content.tool_call_id: m.content for m in messages if isinstance(m.content, ToolReturnContent)}
    pieces: list[bytes] = []
    for group in _answers_together(messages):
        content = group[0].content
        if _is_answer(content):
            text, calls = _text_and_calls(group)
            if text or calls:
                pieces.append(answer(text, calls))
            pieces.extend(returned(_return_of(call, returns)) for call in calls)
        elif isinstance(content, UserContent):
            pieces.append(_user(content))
        elif isinstance(content, SystemContent):
            pieces.append(system(content.text))
    if returns:
        raise ValueError(f"tool returns without their calls: {', '.join(returns)}")
    return b",".join(filter(None, pieces))


def _answers_together(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """The messages one by one, but those of one answer of the model as one group."""
    start = 0
    for at, message in enumerate(messages):
        first = messages[start]
        if at > start and not (message.step_id == first.step_id != "" and _both_answer(first, message)):
            yield messages[start:at]
            start = at
    if messages:
        yield messages[start:]


def _both_answer(one: Message, other: Message) -> bool:
    return _is_answer(one.content) and _is_answer(other.content)


def _is_answer(content: object) -> TypeGuard[AnswerContent]:
    return isinstance(content, ReasoningContent | AssistantContent | ToolCallsContent)


def _text_and_calls(group: Sequence[Message]) -> tuple[str, list[ToolCall]]:
    text = "".join(m.content.text for m in group if isinstance(m.content, AssistantContent))
    calls = [call for m in group if isinstance(m.content, ToolCallsContent) for call in m.content.calls]
    return text, calls


def _return_of(call: ToolCall, returns: dict[str, ToolReturnContent]) -> ToolReturnContent:
    try:
        return returns.pop(call.tool_call_id)
    except KeyError:
        raise ValueError(f"the call {call.tool_call_id} has no return") from None


def system(text: str) -> bytes:
    """A system message."""
    return to_json({"role": "system", "content": text})


def _user(content: UserContent) -> bytes:
    message = {"role": "user", "content": content.text}
    if content.name:
        message["name"] = _BAD_IN_USER_NAME.sub("_", content.name)[:_MAX_NAME_CHARS]
    return to_json(message)


def native_answer(text: str, calls: Sequence[ToolCall]) -> bytes:
    """An assistant message with tool calls under the ids that the service issued."""
    message: dict[str, object] = {"role": "assistant", "content": text or None}
    if calls:
        message["tool_calls"] = [_native_call(call) for call in calls]
    return to_json(message)


def _native_call(call: ToolCall) -> dict[str, object]:
    function = {"name": tool_name(call.name), "arguments": call.arguments_json}
    return {"id": call.tool_call_id, "type": "function", "function": function}


def tool_name(written: str) -> str:
    """The name as the API takes it; models also write names that it refuses in a history."""
    return _BAD_IN_TOOL_NAME.sub("_", written)[:_MAX_NAME_CHARS] or "unknown"


def native_return(content: ToolReturnContent) -> bytes:
    """A tool message; the model is told `text` only."""
    return to_json({"role": "tool", "tool_call_id": content.tool_call_id, "content": content.text})


def native_body(request: ModelRequest) -> bytes:
    """The body of a request to an endpoint that calls tools by itself."""
    pinned = request.pinned
    fields = _tool_fields(pinned, request.tool_choice) if pinned.tools else b""
    return body(pinned.model, pinned.system_prompt, request.history, fields)


def body(model: str, system_text: str, history: Iterable[bytes], fields: bytes) -> bytes:
    """The body of a request; `fields` are more fields, each with a comma before it."""
    first = [system(system_text)] if system_text else []
    messages = b",".join((*first, *filter(None, history)))
    return b"".join((b'{"model":', to_json(model), b',"messages":[', messages, b"]", fields, _STREAM))


def _tool_fields(pinned: Pinned, choice: ToolChoice) -> bytes:
    fields = [b',"tools":[', b",".join(map(_tool, pinned.tools)), b"]"]
    if choice.tool_name:
        fields.append(b',"tool_choice":')
        fields.append(to_json({"type": "function", "function": {"name": choice.tool_name}}))
    elif choice.mode is not ToolChoiceMode.AUTO:
        fields.append(b',"tool_choice":')
        fields.append(to_json(choice.mode.value))
    if pinned.parallel_tool_calls is not None:
        fields.append(b',"parallel_tool_calls":')
        fields.append(to_json(pinned.parallel_tool_calls))
    return b"".join(fields)


def _tool(tool: ToolSchema) -> bytes:
    described = {"name": tool.name} | ({"description": tool.description} if tool.description else {})
    opened = to_json(described)[:-1]
    parameters = to_utf8(object_schema(tool.parameters_json))
    return b'{"type":"function","function":' + opened + b',"parameters":' + parameters + b"}}"


@lru_cache(maxsize=1024)
def object_schema(parameters_json: str) -> str:
    """The schema with the `type` and `properties` that endpoints insist on, where it lacks them; else as it stands."""
    schema = json.loads(parameters_json)
    needed = {"type": '"type":"object"', "properties": '"properties":{}'}
    lacking = ",".join(member for key, member in needed.items() if key not in schema)
    if not lacking:
        return parameters_json
    opened = parameters_json.lstrip()[1:]
    return "{" + lacking + ("," if schema else "") + opened
