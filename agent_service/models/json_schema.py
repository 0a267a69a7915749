"""Tool calls for endpoints that constrain their output by a JSON schema but do not call tools.

The model is asked to write `{"tool": <name>, "arguments": <object>}`, and the endpoint's `response_format` makes it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import msgspec

from agent_service.domain.content import images_of
from agent_service.domain.message import ToolReturnContent
from agent_service.domain.run import Pinned, ResponseFormat
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
from agent_service.models.encoding import answer_format, body, counted, object_schema, schema_field, user
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
_CUT_ANSWER = re.compile(r'\s*\{\s*"answer"\s*:\s*(.*)', re.DOTALL)
_CUT_TEXT = re.compile(r'\s*\{\s*"text"\s*:\s*"((?:[^"\\]|\\u[0-9a-fA-F]{4}|\\[^u])*)', re.DOTALL)


class _Written(msgspec.Struct):
    tool: str | None = None
    arguments: msgspec.Raw = msgspec.Raw(b"")
    text: str | None = None
    answer: msgspec.Raw = msgspec.Raw(b"")


_decode_written = msgspec.json.Decoder(_Written).decode


def schema_answer(text: str, calls: Sequence[ToolCall]) -> bytes:
    """An assistant message in which the calls are text, as the model wrote them."""
    written = (f'{{"tool":{_quoted(call.name)},"arguments":{call.arguments_json}}}' for call in calls)
    return to_json({"role": "assistant", "content": "\n".join((*([text] if text else []), *written))})


def schema_returns(returns: Sequence[ToolReturnContent]) -> Iterator[bytes]:
    """The messages that tell the model what tools returned, each with its images."""
    return (user(_told(content), images_of(content.parts)) for content in returns)


def unsaid_answer(text: str, calls: Sequence[ToolCall]) -> bytes:
    """An assistant message without its calls, for models that answer after a return: what they see of a call makes them
    write the next one. Empty if there is no text."""
    return to_json({"role": "assistant", "content": text}) if text else b""


def asking_returns(returns: Sequence[ToolReturnContent]) -> Iterator[bytes]:
    """What tools returned, for models that answer after a return: asked plainly, small ones do."""
    for content in returns:
        yield user(f"{_told(content)}\n\nAnswer my question in one sentence.", images_of(content.parts))


def _told(content: ToolReturnContent) -> str:
    images = images_of(content.parts)
    returned = counted(images) if images and not content.text else _as_object(content.text)
    return f"The tool {content.name} returned {returned}"


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
    wanted = pinned.response_format
    expect = _expected(request, answers_after_return)
    if expect is Expect.TEXT:
        format_text, field = (
            (_describe_format(wanted), answer_format(replace(wanted, strict=True))) if wanted else ("", b"")
        )
        return BuiltRequest(body(pinned.model, _joined(pinned, format_text), request.history, field), expect)
    tools = _tools_on_offer(request)
    alone = len(tools) == 1 and expect is Expect.CALL
    schemas = [_call_schema(tool, "" if alone else f"/anyOf/{at}") for at, tool in enumerate(tools)]
    if expect is Expect.EITHER:
        schemas.append(_TEXT_SCHEMA)
    elif expect is Expect.FORMATTED and wanted is not None:
        schemas.append(_answer_schema(wanted, f"/anyOf/{len(tools)}"))
    system_text = _joined(pinned, _describe(tools, expect, wanted))
    return BuiltRequest(body(pinned.model, system_text, request.history, _response_format(schemas)), expect)


def _joined(pinned: Pinned, told: str) -> str:
    return "\n\n".join(filter(None, (pinned.system_prompt, told)))


def _expected(request: ModelRequest, answers_after_return: bool) -> Expect:
    choice = request.tool_choice
    if not request.pinned.tools:
        return Expect.TEXT
    if choice.tool_name or choice.mode is ToolChoiceMode.REQUIRED:
        return Expect.CALL
    if choice.mode is ToolChoiceMode.NONE or (answers_after_return and request.returned):
        return Expect.TEXT
    return Expect.FORMATTED if request.pinned.response_format else Expect.EITHER


def _tools_on_offer(request: ModelRequest) -> Sequence[ToolSchema]:
    name = request.tool_choice.tool_name
    if not name:
        return request.pinned.tools
    tool = request.pinned.tool(name)
    if tool is None:
        raise ValueError(f"the tool choice names {name!r}, which the run does not have")
    return (tool,)


def _describe(tools: Sequence[ToolSchema], expect: Expect, wanted: ResponseFormat | None) -> str:
    told = ["You can call this tool:" if len(tools) == 1 else "You can call one of these tools:"]
    told.extend(_description(tool) for tool in tools)
    told.append('To call it, answer with JSON only: {"tool": <tool name>, "arguments": <arguments>}')
    if expect is Expect.EITHER:
        told.append('To answer without a tool, answer with JSON only: {"text": <your answer>}')
    if expect is Expect.FORMATTED and wanted is not None:
        told.append('To answer without a tool, answer with JSON only: {"answer": <your answer>}')
        told.append(f"Your answer there is JSON {_of_schema(wanted)}")
    return "\n".join(told)


def _describe_format(wanted: ResponseFormat) -> str:
    """Such endpoints constrain what is written, but do not tell the model what they wait for."""
    return f"Answer with JSON only, {_of_schema(wanted)}"


def _of_schema(wanted: ResponseFormat) -> str:
    described = f" ({wanted.description})" if wanted.description else ""
    return f"of this JSON Schema{described}: {wanted.schema_json}"


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


def _answer_schema(wanted: ResponseFormat, at: str) -> bytes:
    """The schema of an answer, in an object of its own so that it is told from a call."""
    return b"".join(
        (
            b'{"type":"object","properties":{"answer":',
            _moved(object_schema(wanted.schema_json), f"{at}/properties/answer"),
            b'},"required":["answer"],"additionalProperties":false}',
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
    return schema_field(b'{"name":"answer"}', schema, b"true")


def read_schema_answer(answer: ModelAnswer, expect: Expect, sink: AnswerSink) -> ModelAnswer:
    """The call or the text in an answer that is JSON, now told to the sink. Raises ModelError."""
    read = _whole(answer, expect) or _cut(answer)
    if read is None and expect is Expect.FORMATTED:
        read = answer  # the answer as it is: whether it will do is checked like any other
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
    if formatted := bytes(written.answer).decode() if expect is Expect.FORMATTED else "":
        return replace(answer, text=formatted)
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
    if formatted := _CUT_ANSWER.match(answer.text):
        return replace(answer, text=formatted[1])
    text = _CUT_TEXT.match(answer.text)
    return replace(answer, text=_unquoted(f'"{text[1]}"') if text else "")


def _quoted(text: str) -> str:
    return to_json(text).decode()


def _unquoted(text: str) -> str:
    try:
        return msgspec.json.decode(repaired(to_utf8(text)), type=str)
    except ValueError:
        return ""
