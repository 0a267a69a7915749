"""Functions of a Python client as tools: what the model is told of them, and what comes of calls."""

from __future__ import annotations

import asyncio
import json
from datetime import date
from typing import Any, Literal

import pytest
from agentrpc.v1 import tools_pb2
from pydantic import BaseModel

from agent_service.client import ClientTool, ToolCall, client_tool

pytestmark = pytest.mark.anyio


def call(name: str, arguments: str) -> ToolCall:
    """A call of run_1."""
    return ToolCall("run_1", "call_1", name, arguments)


async def execute(tool: ClientTool[..., Any], arguments: str) -> tools_pb2.ToolReturn:
    """What comes of it."""
    return await tool.execute(call(tool.name, arguments))


class Point(BaseModel):
    """A place."""

    x: int
    y: int = 0


@client_tool
def move(to: Point, speed: Literal["slow", "fast"] = "slow") -> dict[str, Any]:
    """Moves there.

    Args:
        to: Where to.
        speed: How fast.
    """
    return {"at": to, "speed": speed, "on": date(2026, 1, 2)}


def test_the_schema_is_made_of_types_and_docstring() -> None:
    """Name, description, and a JSON Schema with the descriptions of the parameters."""
    assert move.schema.name == "move"
    assert move.schema.description == "Moves there."
    schema = json.loads(move.schema.parameters_json)
    assert schema["required"] == ["to"]
    assert schema["properties"]["speed"] == {
        "default": "slow",
        "description": "How fast.",
        "enum": ["slow", "fast"],
        "type": "string",
    }
    assert schema["additionalProperties"] is False
    assert not move.schema.HasField("timeout")


def test_options_are_part_of_the_schema() -> None:
    """A name of its own, and how long the service waits."""
    tool = client_tool(name="go", deadline=1.5)(lambda: None)
    assert (tool.schema.name, tool.schema.timeout.ToMilliseconds()) == ("go", 1500)


def test_called_it_is_the_function() -> None:
    """So that it can be tested as such."""
    assert move(Point(x=1), speed="fast")["speed"] == "fast"


async def test_arguments_are_made_what_the_types_say_and_results_json() -> None:
    """Models in, JSON out; a text stays as it is, None is no text."""
    back = await execute(move, '{"to": {"x": 1}}')
    assert back.tool_call_id == "call_1"
    assert back.status == tools_pb2.TOOL_RETURN_STATUS_SUCCESS
    assert json.loads(back.text) == {"at": {"x": 1, "y": 0}, "speed": "slow", "on": "2026-01-02"}

    @client_tool
    async def same(text: str | None) -> str | None:
        """Returns it."""
        return text

    assert (await execute(same, '{"text": "a \\"b\\""}')).text == 'a "b"'
    assert (await execute(same, '{"text": null}')).text == ""
    assert (await execute(same, '{"text": "\\ud800"}')).status == tools_pb2.TOOL_RETURN_STATUS_ERROR


@pytest.mark.parametrize("arguments", ['{"to": {"x": "1"}}', "{}", '{"to": {"x": 1}, "more": 1}', "[]", "no"])
async def test_arguments_that_do_not_fit_are_not_executed(arguments: str) -> None:
    """The error return says where."""
    back = await execute(move, arguments)
    assert back.status == tools_pb2.TOOL_RETURN_STATUS_ERROR
    assert back.text.startswith("Error: not executed, the arguments do not fit: at /")


async def test_a_tool_may_know_its_call() -> None:
    """By a parameter of the type ToolCall, which the model does not see."""

    @client_tool
    def order(item: str, which: ToolCall) -> str:
        """Orders."""
        return f"{item} for {which.run_id} {which.tool_call_id} {which.arguments['item']}"

    assert list(json.loads(order.schema.parameters_json)["properties"]) == ["item"]
    assert (await execute(order, '{"item": "tea"}')).text == "tea for run_1 call_1 tea"


async def test_a_tool_that_takes_too_long_is_an_error() -> None:
    """In a coroutine, which is cancelled, and in a thread, which is left alone."""

    @client_tool(timeout=0.01)
    async def wait() -> None:
        """Waits."""
        await asyncio.Event().wait()

    back = await execute(wait, "{}")
    assert back.status == tools_pb2.TOOL_RETURN_STATUS_ERROR
    assert back.text == "Error: timed out after 0.01 s; its outcome is unknown, it may have been executed"


async def test_a_return_may_be_made_by_the_tool() -> None:
    """For images and what else the contract knows; the id is filled in."""

    @client_tool
    def draw() -> tools_pb2.ToolReturn:
        """Draws."""
        return tools_pb2.ToolReturn(text="a cat", stdout="meow", tool_call_id="other")

    assert await execute(draw, "") == tools_pb2.ToolReturn(text="a cat", stdout="meow", tool_call_id="call_1")


async def test_a_result_that_is_no_json_is_an_error() -> None:
    """The model reads that it was executed all the same."""

    @client_tool
    def odd() -> object:
        """Odd."""
        return object()

    assert (await execute(odd, "{}")).text.startswith("Error: executed, but its result cannot be written as JSON")


def test_functions_that_cannot_be_tools_are_refused() -> None:
    """When they are made tools, with what to do."""

    def untyped(a):  # type: ignore[no-untyped-def]  # that is the test
        return a

    with pytest.raises(ValueError, match="parameter 'a' of 'untyped' has no type; annotate it"):
        client_tool(untyped)
    with pytest.raises(ValueError, match="the timeout of 'move' is 0 s; set one above 0"):
        client_tool(name="move", timeout=0)(lambda: None)
