"""Tool rules from and to protobuf."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agentrpc.v1 import tool_rules_pb2 as pb

from agent_service.domain.rules import NextTool, RuleKind, ToolRule, problems
from agent_service.engine.limits import Limits
from agent_service.engine.schemas import JsonError, parse_json
from agent_service.transport.structs import struct_json

_SCHEMAS = 4
"""All rules of a list may have as many bytes as so many of the largest schemas."""

AddProblem = Callable[[str, str], None]
"""Notes a problem at a place in the list, such as "[0].child.children"."""


def read_rules(add: AddProblem, rules: Sequence[pb.ToolRule], limits: Limits) -> tuple[ToolRule, ...]:
    """The rules; what is wrong with them goes to `add`."""
    if len(rules) > limits.max_tool_rules:
        add("", f"{len(rules)} rules; at most {limits.max_tool_rules} are allowed")
        return ()
    size, most = sum(rule.ByteSize() for rule in rules), _SCHEMAS * limits.max_tool_schema_bytes
    if size > most:
        add("", f"{size} bytes; at most {most} are allowed")
        return ()
    read = [_rule(add, f"[{index}]", rule, limits) for index, rule in enumerate(rules)]
    found = tuple(rule for rule in read if rule is not None)
    if len(found) == len(read):
        for place, text in problems(found, limits.max_tool_rules):
            add(place, text)
    return found


def _rule(add: AddProblem, place: str, rule: pb.ToolRule, limits: Limits) -> ToolRule | None:
    name = rule.WhichOneof("rule")
    if name is None:
        add(place, f"has no rule; set one of {', '.join(RuleKind)}")
        return None
    kind, value, place = RuleKind(name), getattr(rule, name), f"{place}.{name}"
    match kind:
        case RuleKind.RUN_FIRST:
            return ToolRule(kind, value.tool_name, _arguments(add, place, value, limits))
        case RuleKind.CHILD:
            children = (
                NextTool(child.tool_name, _arguments(add, f"{place}.children[{index}]", child, limits))
                for index, child in enumerate(value.children)
            )
            return ToolRule(kind, value.tool_name, children=tuple(children))
        case RuleKind.CONDITIONAL:
            return ToolRule(
                kind,
                value.tool_name,
                tools_by_output=tuple(sorted(value.tools_by_output.items())),
                default_tool=value.default_tool,
                require_output_mapping=value.require_output_mapping,
            )
        case RuleKind.MAX_COUNT:
            return ToolRule(kind, value.tool_name, max_count=value.max_count)
        case RuleKind.PARENT_LAST:
            return ToolRule(kind, value.tool_name, children=tuple(map(NextTool, value.children)))
        case _:
            return ToolRule(kind, value.tool_name)


def _arguments(add: AddProblem, place: str, value: pb.RunFirstRule | pb.ChildTool, limits: Limits) -> str:
    """The given arguments as JSON text; empty for none."""
    text, field = value.arguments_json, f"{place}.arguments_json"
    if value.HasField("arguments"):
        if text:
            add(field, "set together with arguments; send one of them")
        text = struct_json(value.arguments)
    size = len(text.encode())
    if size > limits.max_tool_schema_bytes:
        add(field, f"{size} bytes; at most {limits.max_tool_schema_bytes} are allowed")
    elif text:
        _check_object(add, field, text)
    return text


def _check_object(add: AddProblem, field: str, text: str) -> None:
    try:
        if not isinstance(parse_json(text), dict):
            add(field, "is not a JSON object")
    except JsonError as error:
        add(field, f"not valid JSON: {error}")


def tool_rule(value: ToolRule) -> pb.ToolRule:
    """A rule."""
    rule = pb.ToolRule()
    message = getattr(rule, value.kind)
    message.tool_name = value.tool_name
    match value.kind:
        case RuleKind.RUN_FIRST:
            message.arguments_json = value.arguments_json
        case RuleKind.CHILD:
            for child in value.children:
                message.children.add(tool_name=child.tool_name, arguments_json=child.arguments_json)
        case RuleKind.CONDITIONAL:
            message.tools_by_output.update(value.tools_by_output)
            message.default_tool = value.default_tool
            message.require_output_mapping = value.require_output_mapping
        case RuleKind.MAX_COUNT:
            message.max_count = value.max_count
        case RuleKind.PARENT_LAST:
            message.children.extend(child.tool_name for child in value.children)
        case _:
            message.SetInParent()
    return rule
