"""Agents and starts with tool rules, for tests: client tools, rules, and a model that obeys them or does not."""

from __future__ import annotations

from typing import Any

from agentrpc.v1 import errors_pb2, runs_pb2, tool_rules_pb2, tools_pb2

from tests.scripted_openai import Reply, calls
from tests.service import Client, returned

SCHEMA = '{"type":"object","properties":{"q":{"type":"string"},"n":{"type":"integer"}},"required":["q"]}'


def tool(name: str) -> tools_pb2.ClientToolSchema:
    """A client tool that needs a `q`."""
    return tools_pb2.ClientToolSchema(name=name, parameters_json=SCHEMA)


def rule(**arm: Any) -> tool_rules_pb2.ToolRule:
    """A rule; a text as its value is the tool's name."""
    fields: dict[str, Any] = {k: {"tool_name": value} if isinstance(value, str) else value for k, value in arm.items()}
    return tool_rules_pb2.ToolRule(**fields)


def child(name: str, *children: str) -> tool_rules_pb2.ToolRule:
    """A child rule without arguments."""
    return rule(child={"tool_name": name, "children": [{"tool_name": each} for each in children]})


def most(name: str, count: int) -> tool_rules_pb2.ToolRule:
    """A rule of a maximum."""
    return rule(max_count={"tool_name": name, "max_count": count})


def asks(*names: str, **arguments: Any) -> Reply:
    """The model calls these tools, each with a `q` unless told otherwise."""
    return calls(*((name, arguments or {"q": "x"}) for name in names))


def defies(*names: str) -> Reply:
    """The same of tools that it was not shown."""
    return calls(*((name, {"q": "x"}) for name in names), unruly=True)


A, B, C = tool("a"), tool("b"), tool("c")
CHOSEN = {"type": "function", "function": {"name": "b"}}


async def answer(client: Client, run: runs_pb2.Run, *texts: str, **fields: Any) -> Any:
    """Answers all pending calls."""
    assert len(texts) == len(run.pending_tool_calls), run
    returns = (returned(call, text, **fields) for call, text in zip(run.pending_tool_calls, texts, strict=True))
    return await client.answer(run.run_id, *returns)


def outcomes(messages: Any) -> list[tuple[str, str]]:
    """What the model is told of each call."""
    return [(m.tool_return.name, m.tool_return.text) for m in messages if m.HasField("tool_return")]


def failure(run: runs_pb2.Run) -> str:
    """Why the rules ended the run."""
    assert (run.status, run.stop_reason) == (runs_pb2.RUN_STATUS_FAILED, runs_pb2.STOP_REASON_TOOL_RULE), run
    assert run.error.reason == errors_pb2.ERROR_REASON_NO_ALLOWED_TOOLS
    assert not run.pending_tool_calls
    return run.error.message
