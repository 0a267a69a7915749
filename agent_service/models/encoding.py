"""Stored messages and requests in the form of the Chat Completions API.

Everything is bytes: a message is encoded once and its bytes are kept, so that a request only joins them.
Source: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TypeGuard

from agent_service.domain.content import Image, ImageDetail, images_of
from agent_service.domain.message import (
    AssistantContent,
    Message,
    ReasoningContent,
    SummaryContent,
    SystemContent,
    ToolCallsContent,
    ToolReturnContent,
    UserContent,
)
from agent_service.domain.run import Pinned, ResponseFormat
from agent_service.domain.tool import ToolCall, ToolChoice, ToolChoiceMode, ToolSchema
from agent_service.engine.model import ModelRequest
from agent_service.models.json_text import to_json, to_utf8

AnswerContent = ReasoningContent | AssistantContent | ToolCallsContent

EncodeAnswer = Callable[[str, Sequence[ToolCall]], bytes]
"""From the text and the calls of one answer to its message."""
EncodeReturns = Callable[[Sequence[ToolReturnContent]], Iterable[bytes]]
"""From the returns of one answer, in the order of its calls, to what follows it."""

SUMMARY_MARK = "[This conversation grew long. A summary stands here for its older messages:]"
"""Over a summary. It is a user message: endpoints may take a system message in the first place only."""
_BAD_IN_TOOL_NAME = re.compile(r"[^a-zA-Z0-9_-]")
_BAD_IN_USER_NAME = re.compile(r"[\s<|\\/>]")
_MAX_NAME_CHARS = 64
_STREAM = b',"stream":true,"stream_options":{"include_usage":true}}'


def encode_messages(messages: Sequence[Message], answer: EncodeAnswer, returned: EncodeReturns) -> bytes:
    """The messages as JSON objects joined by commas. Raises ValueError for a call without return or the reverse."""
    returns = {m.content.tool_call_id: m.content for m in messages if isinstance(m.content, ToolReturnContent)}
    pieces: list[bytes] = []
    for group in _answers_together(messages):
        content = group[0].content
        if _is_answer(content):
            text, calls = _text_and_calls(group)
            if text or calls:
                pieces.append(answer(text, calls))
            pieces.extend(returned([_return_of(call, returns) for call in calls]))
        elif isinstance(content, UserContent):
            pieces.append(_user(content))
        elif isinstance(content, SystemContent):
            pieces.append(system(content.text))
        elif isinstance(content, SummaryContent) and content.text:
            pieces.append(user(f"{SUMMARY_MARK}\n\n{content.text}"))
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
    told = [_text_part(part.text) if part.image is None else _image_part(part.image) for part in content.parts]
    message: dict[str, object] = {"role": "user", "content": told or content.text}
    if content.name:
        message["name"] = _BAD_IN_USER_NAME.sub("_", content.name)[:_MAX_NAME_CHARS]
    return to_json(message)


def user(text: str, images: Sequence[Image] = ()) -> bytes:
    """A user message: the text, and images after it."""
    content = [_text_part(text), *map(_image_part, images)] if images else text
    return to_json({"role": "user", "content": content})


def _text_part(text: str) -> dict[str, object]:
    return {"type": "text", "text": text}


def _image_part(image: Image) -> dict[str, object]:
    encoded = base64.b64encode(image.data).decode()
    shown = {"url": image.url or f"data:{image.mime_type};base64,{encoded}"}
    if image.detail is not ImageDetail.AUTO:
        shown["detail"] = image.detail.value
    return {"type": "image_url", "image_url": shown}


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


def native_returns(returns: Sequence[ToolReturnContent]) -> Iterator[bytes]:
    """A tool message each, which the API takes no images in; then a user message for each that has images."""
    for content in returns:
        yield to_json({"role": "tool", "tool_call_id": content.tool_call_id, "content": _told(content)})
    for content in returns:
        if images := images_of(content.parts):
            told = f"{counted(images)} returned by the tool {content.name} ({content.tool_call_id}):"
            yield user(told, images)


def _told(content: ToolReturnContent) -> str:
    """The text of a return. One that has none says where to look."""
    images = images_of(content.parts)
    return content.text or (f"{counted(images)} returned; see below." if images else "")


def counted(images: Sequence[Image]) -> str:
    """How many they are, in words."""
    return "1 image" if len(images) == 1 else f"{len(images)} images"


def native_body(request: ModelRequest) -> bytes:
    """The body of a request to an endpoint that calls tools by itself."""
    pinned, choice = request.pinned, request.tool_choice
    fields = _tool_fields(pinned, choice) if pinned.tools else b""
    must_call = bool(choice.tool_name) or choice.mode is ToolChoiceMode.REQUIRED
    if pinned.response_format is not None and not must_call:
        fields += answer_format(pinned.response_format)
    return body(pinned.model, pinned.system_prompt, request.history, fields)


def answer_format(wanted: ResponseFormat) -> bytes:
    """The field that asks for an answer of this format."""
    named = {"name": wanted.name} | ({"description": wanted.description} if wanted.description else {})
    strict = b"true" if wanted.strict else b"false"
    return schema_field(to_json(named), to_utf8(object_schema(wanted.schema_json)), strict)


def schema_field(named: bytes, schema: bytes, strict: bytes) -> bytes:
    """The field that asks for JSON; `named` is an object with its name."""
    opened = b',"response_format":{"type":"json_schema","json_schema":' + named[:-1]
    return opened + b',"schema":' + schema + b',"strict":' + strict + b"}}"


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
