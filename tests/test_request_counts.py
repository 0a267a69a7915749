"""Fields that are repeated too often are refused as a whole, since to look at each would hold up everybody else."""

from __future__ import annotations

from typing import Any

import pytest
from agentrpc.v1 import (
    agent_registry_service_pb2,
    agents_pb2,
    content_pb2,
    messages_pb2,
    run_service_pb2,
    runs_pb2,
    tools_pb2,
)

from tests.service import refusal, scripted, step, submit

pytestmark = pytest.mark.anyio

_TOO_MANY = 2_000


def _parts() -> Any:
    parts = [content_pb2.ContentPart(text="a")] * _TOO_MANY
    request = step("")
    request.input_messages[0].CopyFrom(messages_pb2.InputMessage(parts=parts))
    return request


async def test_a_field_that_is_repeated_too_often_is_one_problem(store: str) -> None:
    """The field is named with its number and the limit, and nothing is said of its values."""
    agent = agents_pb2.Agent(agent_id="a", server_tools=["x"] * _TOO_MANY)
    many = step("a")
    many.input_messages.extend([messages_pb2.InputMessage(text="a")] * _TOO_MANY)
    async with scripted([], store) as (client, _):
        for call, field in (
            (client.agent.Step(_parts()), "input_messages[0].parts"),
            (client.agent.Step(many), "input_messages"),
            (client.agent.SubmitToolReturns(submit("r", *[tools_pb2.ToolReturn()] * _TOO_MANY)), "tool_returns"),
            (
                client.runs.ListRuns(
                    run_service_pb2.ListRunsRequest(statuses=[runs_pb2.RUN_STATUS_PAUSED] * _TOO_MANY)
                ),
                "statuses",
            ),
            (
                client.registry.CreateAgent(agent_registry_service_pb2.CreateAgentRequest(agent=agent)),
                "agent.server_tools",
            ),
        ):
            refused = await refusal(call)
            assert (refused.code, refused.reason, refused.fields[0]) == ("INVALID_ARGUMENT", "INVALID_FIELD", field)
            assert "at most" in refused.message


async def test_the_texts_of_a_return_are_bounded_together(store: str) -> None:
    """Each may be as large as one may be, but not all of them at once."""
    text = "x" * 1024 * 1024
    value = tools_pb2.ToolReturn(tool_call_id="call_x", text=text, stdout=text, stderr=text)
    async with scripted([], store) as (client, _):
        refused = await refusal(client.agent.SubmitToolReturns(submit("r", value)))
    assert refused.fields == ("tool_returns[0]",)
    assert "together" in refused.message
