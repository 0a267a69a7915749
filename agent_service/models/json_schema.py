"""Tool calls for endpoints that constrain their output by a JSON schema but do not call tools.

The model is asked to write `{"tool": <name>, "arguments": <object>}`, and the endpoint's `response_format` makes it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from agent_service.domain.message import ToolReturnContent
from agent_service.domain.tool import ToolCall, ToolChoiceMode, ToolSchema
from agent_service.engine.model import (
    AnsweredCall,
    AnswerSink,
    BuiltRequest,
    Expect,
    FinishReason,
    ModelAnswer,
    ModelRequest,
)
from agent_service.models.answer import invalid
from agent_service.models.encoding import body, object_schema
from agent_service.models.json_text import repaired, to_json, to_utf8

_TEXT_SCHEMA = to_json(
    {
        "type": "object",
        "properties": {"text": {"type": "string"}},
        "required": ["text"],
        "additionalProperties": False,
    }
)
_STRING = r'"(?:[^"\\]|\\.)*"'
_CUT_CALL = re.compile(rf'\s*\{{\s*"tool"\s*:\s*({_STRING})\s*,\s*"arguments"\s*:\s*(.*)', re.DOTALL)
_CUT_TEXT = re.compile(r'\s*\{\s*"text"\s*:\s*"((?:[^"\\]|\\u[0-9a-fA-F]{4}|\\[^u])*)', re.DOTALL)


class _Written(msgspec.Struct):
    tool: str | None = None
    arguments: msgspec.Raw = msgspec.Raw(b"")
    text: str | None = None


_decode_written = msgspec.json.Decoder(_Written).decode


def schema_answer(text: str, calls: Sequence[ToolCall]) -> bytes:
    """An assistant message in which the calls are text, as the model wrote them."""
    written = (f'{{"tool":{_quoted(call.name)},"arguments":{call.arguments_json}}}' for call in calls)
    return to_json({"role": "assistant", "content": "\n".join((*([text] if text else []), *written))})


def schema_return(content: ToolReturnContent) -> bytes:
    """The message that tells the model what a tool returned."""
    return to_json({"role": "user", "content": f"The tool {content.name} returned {_as_object(content.text)}"})


def unsaid_answer(text: str, calls: Sequence[ToolCall]) -> bytes:
    """An assistant message without its calls, for models that answer after a return: what they see of a call makes them
    write the next one. Empty if there is no text."""
    return to_json({"role": "assistant", "content": text}) if text else b""


def asking_return(content: ToolReturnContent) -> bytes:
    """What a tool returned, for models that answer after a return: asked plainly, small ones do."""
    told = f"The tool {content.name} returned {_as_object(content.text)}\n\nAnswer my question in one sentence."
    return to_json({"role": "user", "content": told})


def _as_object(text: str) -> str:
    """A return as a JSON object; small models read those best."""
    with contextlib.suppress(msgspec.DecodeError):
        if isinstance(msgspec.json.decode(to_utf8(text)), dict):
            return text
    return to_json({"result": text}).decode()


def schema_request(request: ModelRequest, *, answers_after_return: bool) -> BuiltRequest:
    """The body of a request, and whether a call, free text or either is expected.

    Raises ValueError when the tool choice names a tool that the run does not have.
    """
    pinned = request.pinned
    expect = _expected(request, answers_after_return)
    if expect is Expect.TEXT:
        return BuiltRequest(body(pinned.model, pinned.system_prompt, request.history, b""), expect)
    tools = _tools_on_offer(request)
    alone = len(tools) == 1 and expect is Expect.CALL
    schemas = [_call_schema(tool, "" if alone else f"/anyOf/{at}") for at, tool in enumerate(tools)]
    schemas += [_TEXT_SCHEMA] if expect is Expect.EITHER else []
    system_text = "\n\n".join(filter(None, (pinned.system_prompt, _describe(tools, expect))))
    return BuiltRequest(body(pinned.model, system_text, request.history, _response_format(schemas)), expect)


def _expected(request: ModelRequest, answers_after_return: bool) -> Expect:
    choice = request.tool_choice
    if not request.pinned.tools or (answers_after_return and request.returned):
        return Expect.TEXT
    if choice.tool_name:
        return Expect.CALL
    by_mode = {ToolChoiceMode.NONE: Expect.TEXT, ToolChoiceMode.REQUIRED: Expect.CALL}
    return by_mode.get(choice.mode, Expect.EITHER)


def _tools_on_offer(request: ModelRequest) -> Sequence[ToolSchema]:
    name = request.tool_choice.tool_name
    if not name:
        return request.pinned.tools
    tool = request.pinned.tool(name)
    if tool is None:
        raise ValueError(f"the tool choice names {name!r}, which the run does not have")
    return (tool,)


def _describe(tools: Sequence[ToolSchema], expect: Expect) -> str:
    told = ["You can call this tool:" if len(tools) == 1 else "You can call one of these tools:"]
    told.extend(_description(tool) for tool in tools)
    told.append('To call it, answer with JSON only: {"tool": <tool name>, "arguments": <arguments>}')
    if expect is Expect.EITHER:
        told.append('To answer without a tool, answer with JSON only: {"text": <your answer>}')
    return "\n".join(told)


def _description(tool: ToolSchema) -> str:
    named = f'"name": {_quoted(tool.name)}, "description": {_quoted(tool.description)}'
    return f'{{{named}, "parameters": {tool.parameters_json}}}'


def _call_schema(tool: ToolSchema, at: str) -> bytes:
    """The schema of a call; `at` is the JSON pointer to it, because references count from the root of the whole."""
    return b"".join(
        (
            b'{"type":"object","properties":{"tool":{"const":',
            to_json(tool.name),
            b'},"arguments":',
            _moved(object_schema(tool.parameters_json), f"{at}/properties/arguments"),
            b'},"required":["tool","arguments"],"additionalProperties":false}',
        )
    )


def _moved(schema_json: str, pointer: str) -> bytes:
    """The schema with its own references (#/...) as they are when it stands at `pointer`."""
    if '"$ref"' not in schema_json:
        return to_utf8(schema_json)
    return to_json(_with_moved_refs(msgspec.json.decode(to_utf8(schema_json)), pointer))


def _with_moved_refs(value: object, pointer: str) -> object:
    if isinstance(value, list):
        return [_with_moved_refs(item, pointer) for item in value]
    if not isinstance(value, dict):
        return value
    moved = {key: _with_moved_refs(item, pointer) for key, item in value.items()}
    if isinstance(reference := value.get("$ref"), str) and reference.startswith("#"):
        moved["$ref"] = f"#{pointer}{reference[1:]}"
    return moved


def _response_format(schemas: Sequence[bytes]) -> bytes:
    schema = schemas[0] if len(schemas) == 1 else b'{"anyOf":[' + b",".join(schemas) + b"]}"
    opened = b',"response_format":{"type":"json_schema","json_schema":{"name":"answer","schema":'
    return opened + schema + b',"strict":true}}'


def read_schema_answer(answer: ModelAnswer, expect: Expect, sink: AnswerSink) -> ModelAnswer:
    """The call or the text in an answer that is JSON, now told to the sink. Raises ModelError."""
    read = _whole(answer, expect) or _cut(answer)
    if read is None:
        raise invalid("the answer is not the JSON object that was asked for")
    for index, call in enumerate(read.calls):
        sink.arguments(index, call.name, "")
        sink.arguments(index, call.name, call.arguments_json)
    if read.text:
        sink.text(read.text)
    return read


def _whole(answer: ModelAnswer, expect: Expect) -> ModelAnswer | None:
    written = _decode(answer.text)
    if written is None:
        return None
    arguments = bytes(written.arguments).decode()
    if written.tool is not None and arguments:
        return replace(answer, text="", calls=(AnsweredCall("", written.tool, arguments),))
    if written.text is not None and expect is Expect.EITHER:
        return replace(answer, text=written.text)
    return None


def _decode(text: str) -> _Written | None:
    raw = to_utf8(text)
    try:
        return _decode_written(raw)
    except (msgspec.DecodeError, UnicodeError):
        with contextlib.suppress(ValueError):
            return _decode_written(repaired(raw))
    return None


def _cut(answer: ModelAnswer) -> ModelAnswer | None:
    """What was written of an answer that reached the token limit."""
    if answer.finish is not FinishReason.LENGTH:
        return None
    if call := _CUT_CALL.match(answer.text):
        return replace(answer, text="", calls=(AnsweredCall("", _unquoted(call[1]), call[2]),))
    text = _CUT_TEXT.match(answer.text)
    return replace(answer, text=_unquoted(f'"{text[1]}"') if text else "")


def _quoted(text: str) -> str:
    return to_json(text).decode()


def _unquoted(text: str) -> str:
    try:
        return msgspec.json.decode(repaired(to_utf8(text)), type=str)
    except ValueError:
        return ""
