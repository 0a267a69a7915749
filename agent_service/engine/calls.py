"""Checks what the model called before anything pauses or executes. A refused call gets an error return."""

from __future__ import annotations

from agent_service.domain.draft import NewId
from agent_service.domain.moves import PlannedCall
from agent_service.domain.run import Pinned
from agent_service.domain.tool import Executor, OnTimeout, ToolChoice, ToolChoiceMode
from agent_service.engine.limits import Limits
from agent_service.engine.model import AnsweredCall
from agent_service.engine.schemas import JsonError, parse_json, violation

_KEPT_OF_OVERSIZE = 1024


def plan_calls(
    calls: tuple[AnsweredCall, ...], pinned: Pinned, choice: ToolChoice, limits: Limits, new_id: NewId
) -> tuple[PlannedCall, ...]:
    """The calls of an answer, each with our id, its executor and, if it must not run, why."""
    planned, total = [], 0
    for call in calls:
        arguments = call.arguments_json or "{}"
        size = len(arguments.encode())
        total += size
        refusal = _too_big(size, total, limits)
        if refusal:
            arguments = arguments[:_KEPT_OF_OVERSIZE]
        else:
            refusal = _refusal(call.name, arguments, pinned, choice)
        tool = pinned.tool(call.name)
        planned.append(
            PlannedCall(
                tool_call_id=new_id("call"),
                provider_call_id=call.provider_call_id,
                name=call.name,
                arguments_json=arguments,
                executor=tool.executor if tool else Executor.SERVER,
                needs_approval=tool.requires_approval if tool else False,
                refusal=refusal,
                timeout=tool.timeout if tool else 0,
                on_timeout=tool.on_timeout if tool else OnTimeout.RETURN_ERROR,
            )
        )
    return tuple(planned)


def arguments_violation(parameters_json: str, arguments_json: str) -> str:
    """How arguments violate a tool's schema, or are no JSON object; empty if they are fine."""
    try:
        value = parse_json(arguments_json)
    except JsonError as error:
        return f"the arguments are not valid JSON: {error}"
    if not isinstance(value, dict):
        return "the arguments are not a JSON object"
    problem = violation(parameters_json, value)
    return f"the arguments are against the tool's schema: {problem}" if problem else ""


def _refusal(name: str, arguments: str, pinned: Pinned, choice: ToolChoice) -> str:
    if choice.mode is ToolChoiceMode.NONE and not choice.tool_name:
        return "Error: tools must not be called in this answer. Answer in text."
    tool = pinned.tool(name)
    if tool is None:
        known = ", ".join(t.name for t in pinned.tools) or "none"
        return f"Error: there is no tool {name[:64]!r}. Available tools: {known}."
    problem = arguments_violation(tool.parameters_json, arguments)
    return f"Error: not executed, {problem}." if problem else ""


def _too_big(size: int, total: int, limits: Limits) -> str:
    if size > limits.max_tool_arguments_bytes:
        return f"Error: not executed, the arguments have {size} bytes; at most {limits.max_tool_arguments_bytes}."
    if total > limits.max_model_response_arguments_bytes:
        most = limits.max_model_response_arguments_bytes
        return f"Error: not executed, the arguments of one answer may have {most} bytes together. Make fewer calls."
    return ""
