"""Checks what the model called before anything pauses or executes. A refused call gets an error return."""

from __future__ import annotations

import json
import re

from agent_service.domain.draft import NewId
from agent_service.domain.moves import PlannedCall
from agent_service.domain.permit import Permit, about, permitted
from agent_service.domain.rules import RuleKind, RuleState
from agent_service.domain.run import Pinned
from agent_service.domain.tool import Executor, OnTimeout, ToolChoice, ToolChoiceMode
from agent_service.engine.limits import Limits
from agent_service.engine.model import AnsweredCall
from agent_service.engine.schemas import JsonError, parse_json, violation

_KEPT_OF_OVERSIZE = 1024
_BETWEEN = re.compile(r"[\s,:]*")
_scan = json.JSONDecoder().raw_decode


def plan_calls(
    calls: tuple[AnsweredCall, ...],
    pinned: Pinned,
    state: RuleState,
    choice: ToolChoice,
    limits: Limits,
    new_id: NewId,
) -> tuple[tuple[PlannedCall, ...], RuleState]:
    """The calls of an answer, each with our id, its executor and, if it must not run, why; and the state of the rules
    once those that are not refused are made."""
    names, ending = [tool.name for tool in pinned.tools], about(pinned.tool_rules, RuleKind.TERMINAL)
    planned, total = [], 0
    for call in calls:
        permit = permitted(pinned.tool_rules, state, names)
        arguments = call.arguments_json or "{}"
        size = len(arguments.encode())
        total += size
        refusal = _too_big(size, total, limits)
        if refusal:
            arguments = arguments[:_KEPT_OF_OVERSIZE]
        else:
            arguments = with_given(arguments, permit.arguments_of(call.name))
            refusal = _refusal(call.name, arguments, pinned, permit, choice)
        tool = pinned.tool(call.name)
        tool_call_id = new_id("call")
        if pinned.tool_rules and not refusal:
            state = state.after_call(call.name, tool_call_id)
        planned.append(
            PlannedCall(
                tool_call_id=tool_call_id,
                provider_call_id=call.provider_call_id,
                name=call.name,
                arguments_json=arguments,
                executor=tool.executor if tool else Executor.SERVER,
                needs_approval=tool.requires_approval if tool else False,
                refusal=refusal,
                timeout=tool.timeout if tool else 0,
                on_timeout=tool.on_timeout if tool else OnTimeout.RETURN_ERROR,
                ends_run=call.name in ending,
            )
        )
    return tuple(planned), state


def arguments_violation(parameters_json: str, arguments_json: str) -> str:
    """How arguments violate a tool's schema, or are no JSON object; empty if they are fine."""
    try:
        value = parse_json(arguments_json)
    except JsonError as error:
        return f"the arguments are not valid JSON: {error}"
    if not isinstance(value, dict):
        return "the arguments are not a JSON object"
    problem = violation(parameters_json, value, arguments_json)
    return f"the arguments are against the tool's schema: {problem}" if problem else ""


def with_given(arguments_json: str, given_json: str) -> str:
    """The arguments with those that are given in the place of the model's; all others stay as they were written. What
    is no JSON object stays as it is."""
    if not given_json:
        return arguments_json
    try:
        if not isinstance(parse_json(arguments_json), dict):
            return arguments_json
    except JsonError:
        return arguments_json
    return "{" + ", ".join((_members(arguments_json) | _members(given_json)).values()) + "}"


def _members(object_json: str) -> dict[str, str]:
    """The text of each member of a JSON object, by its key."""
    members = {}
    at = object_json.index("{") + 1
    while object_json[(start := _after(object_json, at))] != "}":
        key, at = _scan(object_json, start)
        at = _scan(object_json, _after(object_json, at))[1]
        members[key] = object_json[start:at]
    return members


def _after(text: str, at: int) -> int:
    """Where the next key, value or end begins."""
    found = _BETWEEN.match(text, at)
    assert found is not None  # it matches nothing, too
    return found.end()


def _refusal(name: str, arguments: str, pinned: Pinned, permit: Permit, choice: ToolChoice) -> str:
    if refusal := permit.refusal(name):
        return refusal
    if choice.mode is ToolChoiceMode.NONE and not choice.tool_name:
        return "Error: tools must not be called in this answer. Answer in text."
    tool = pinned.tool(name)
    if tool is None:
        known = ", ".join(permit.names) or "none"
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
