"""The context policies of agents: defaults, changes, what is refused, and that a run keeps its own."""

from __future__ import annotations

from typing import Any

import pytest
from agentrpc.v1 import agent_registry_service_pb2 as pb
from agentrpc.v1 import agents_pb2
from google.protobuf.field_mask_pb2 import FieldMask

from tests.scripted_openai import says
from tests.service import refusal, scripted
from tests.test_compaction import SMALL, grown, long, told

pytestmark = pytest.mark.anyio

SUMMARY = agents_pb2.COMPACTION_STRATEGY_SUMMARY
DEFAULTS = agents_pb2.ContextPolicy(strategy=SUMMARY, threshold=0.8, keep=0.3)


async def test_an_agent_shows_its_policy_with_the_defaults(store: str) -> None:
    """Of a call, of the configuration, and with nothing said; a repeat with the defaults is the same agent."""
    async with scripted([], store) as (client, _):
        plain = await client.create_agent("plain")
        assert plain.context == DEFAULTS
        assert await client.create_agent("plain", context=DEFAULTS) == plain
        assert (await client.get_agent("default")).context == DEFAULTS
        own = agents_pb2.ContextPolicy(
            window_tokens=8000,
            strategy=agents_pb2.COMPACTION_STRATEGY_NONE,
            threshold=1.0,
            keep=0.5,
            summary_prompt="Sum up.",
            summary_model="small",
        )
        assert (await client.create_agent("own", context=own)).context == own
        assert (await client.get_agent("own")).context == own


async def test_a_policy_is_changed_by_the_mask(store: str) -> None:
    """As a whole, and only if it is named."""
    async with scripted([], store) as (client, _):
        made = await client.create_agent("plain", instructions="Hi", context=SMALL)
        changed = agents_pb2.Agent(agent_id="plain", context=agents_pb2.ContextPolicy(keep=0.1))
        request = pb.UpdateAgentRequest(agent=changed, update_mask=FieldMask(paths=["instructions"]))
        assert (await client.registry.UpdateAgent(request)).agent.context == made.context
        request.update_mask.paths[:] = ["context"]
        wanted = agents_pb2.ContextPolicy(strategy=SUMMARY, threshold=0.8, keep=0.1)
        assert (await client.registry.UpdateAgent(request)).agent.context == wanted


@pytest.mark.parametrize(
    ("context", "field", "says"),
    [
        ({"window_tokens": -1}, "window_tokens", "-1 is not between 0 and"),
        ({"strategy": 9}, "strategy", "9 is not a value of CompactionStrategy"),
        ({"threshold": 1.01}, "threshold", "1.01 is not above 0 and at most 1"),
        ({"threshold": float("nan")}, "threshold", "nan is not above 0 and at most 1"),
        ({"threshold": -0.5}, "threshold", "-0.5 is not"),
        ({"keep": 0.8}, "keep", "0.8 is not above 0 and below the threshold, 0.8"),
        ({"keep": -0.1}, "keep", "-0.1 is not"),
        ({"threshold": 0.2}, "keep", "0.3 is not above 0 and below the threshold, 0.2"),
        ({"summary_prompt": "x" * 65537}, "summary_prompt", "has 65537 bytes; at most 65536 are allowed"),
        ({"summary_model": "x" * 257}, "summary_model", "has 257 characters; at most 256 are allowed"),
    ],
)
async def test_a_policy_that_cannot_be_is_refused(context: dict[str, Any], field: str, says: str) -> None:
    """With the field, what was found and what is allowed."""
    async with scripted([], "memory") as (client, _):
        agent = agents_pb2.Agent(agent_id="x", context=agents_pb2.ContextPolicy(**context))
        refused = await refusal(client.registry.CreateAgent(pb.CreateAgentRequest(agent=agent)))
        assert (refused.reason, refused.fields) == ("INVALID_FIELD", (f"agent.context.{field}",))
        assert says in refused.message


async def test_a_run_keeps_the_policy_it_started_with(store: str) -> None:
    """A change of the agent counts from the next run on."""
    script = [says("one"), says("two"), says("three"), says("S"), says("four")]
    async with scripted(script, store) as (client, upstream):
        none = agents_pb2.ContextPolicy(strategy=agents_pb2.COMPACTION_STRATEGY_NONE, window_tokens=1000)
        fields = await grown(client, none, long("A"), long("B"), long("C"))
        assert told(upstream.requests[-1])[0] == "user A"
        agent = agents_pb2.Agent(agent_id="keeper", context=SMALL)
        await client.registry.UpdateAgent(pb.UpdateAgentRequest(agent=agent, update_mask=FieldMask(paths=["context"])))
        await client.ask("D:", **fields)
        assert told(upstream.requests[-1])[0] == "summary S"
