"""What sleeptime agents are made of, and that they answer as their foreground agents do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from agentrpc.v1 import agent_registry_service_pb2 as registry_pb
from agentrpc.v1 import agent_service_pb2, agents_pb2, server_service_pb2

from agent_service.agents_file import read_agents
from agent_service.engine.limits import Limits
from agent_service.settings import SettingsError
from tests.modes import MODES, resume, start
from tests.ruled import rule
from tests.scripted_openai import calls, says
from tests.service import SECRET, Client, canonical, refusal, returned, scripted, step, submit
from tests.sleepers import answers, make_agents, memory_runs, reads

pytestmark = pytest.mark.anyio

SLEEPTIME = agents_pb2.AGENT_KIND_SLEEPTIME
RESPONDER = agents_pb2.AGENT_KIND_RESPONDER


async def update(client: Client, **agent: Any) -> agents_pb2.Agent:
    """UpdateAgent."""
    request = registry_pb.UpdateAgentRequest(agent=agents_pb2.Agent(**agent))
    return (await client.registry.UpdateAgent(request)).agent


async def body(client: Client, request: agent_service_pb2.StepRequest) -> str:
    """The request body that a start would lead to."""
    build = agent_service_pb2.BuildRequestRequest(step=request)
    return canonical((await client.agent.BuildRequest(build)).request_json)


async def test_it_asks_the_model_as_its_foreground_agent_does(store: str) -> None:
    """Instructions, model, server tools, tool rules, client tools and response format are the same, byte for byte."""
    async with scripted(answers, store, tools="tests.server_tools:add") as (client, _):
        await make_agents(
            client, instructions="Be brief.", model="m-1", server_tools=["add"], tool_rules=[rule(continue_run="add")]
        )
        wanted = agent_service_pb2.ResponseFormat(schema_json='{"type":"object"}')
        bodies = [
            await body(client, step("Hi", SECRET, agent_id=agent_id, response_format=wanted))
            for agent_id in ("clerk", "desk")
        ]
        assert bodies[0] == bodies[1]
        assert all(part in bodies[0] for part in ("Be brief.", "m-1", '"add"', "get_secret_code"))


@pytest.mark.parametrize("mode", MODES)
async def test_it_pauses_and_resumes_in_every_mode(store: str, mode: str) -> None:
    """The resume goes on with what is pinned, under the id of the sleeptime agent."""
    replies = [calls(("get_secret_code", {"name": "Alice"})), says("It is A-1.")]
    async with scripted(lambda r: says("Noted.") if reads(r) else replies.pop(0), store) as (client, _):
        await make_agents(client)
        paused = await start(client, mode, step("Code?", SECRET, agent_id="desk"))
        (call,) = paused.run.pending_tool_calls
        done = await resume(client, mode, paused.run, submit(paused.run.run_id, returned(call, "A-1")))
        assert done.messages[-1].assistant.text == "It is A-1."
        assert done.run.agent_id == "desk"
        (read,) = await memory_runs(client, 1)
        assert read.parent_run_id == done.run.run_id


async def test_a_responder_in_the_foreground_refuses_what_it_cannot_do(store: str) -> None:
    """As it does by itself; what it answers is read."""
    async with scripted(answers, store) as (client, _):
        await make_agents(client, kind=RESPONDER)
        refused = await refusal(client.ask("Hi", SECRET, agent_id="desk"))
        assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "AGENT_CANNOT")
        run = (await client.ask("Hi", agent_id="desk")).run
        assert [read.parent_run_id for read in await memory_runs(client, 1)] == [run.run_id]


async def test_a_run_keeps_the_plan_it_was_started_with(store: str) -> None:
    """Another plan counts from the next start on; what was counted before stays counted."""
    async with scripted(answers, store) as (client, _):
        await make_agents(client, every=3)
        run = (await client.ask("a", agent_id="desk")).run
        made = await client.get_agent("desk")
        assert (made.sleeptime.every, list(made.sleeptime.memory_agent_ids)) == (3, ["keeper"])
        parts = agents_pb2.Sleeptime(foreground_agent_id="clerk", memory_agent_ids=["keeper"], every=2)
        changed = await update(client, agent_id="desk", kind=SLEEPTIME, sleeptime=parts)
        assert (changed.revision, changed.sleeptime) == (2, parts)
        await client.ask("b", agent_id="desk", conversation_id=run.conversation_id)
        await memory_runs(client, 1)


async def test_every_fifth_run_unless_told_otherwise(store: str) -> None:
    """An unset `every` is shown as what it means."""
    async with scripted(answers, store) as (client, _):
        await make_agents(client, every=0)
        assert (await client.get_agent("desk")).sleeptime.every == 5


GOOD = {"foreground_agent_id": "clerk", "memory_agent_ids": ["keeper"]}
FRONT, BACK = "sleeptime.foreground_agent_id", "sleeptime.memory_agent_ids"
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no parts": ({"sleeptime": None}, "sleeptime"),
    "no foreground": ({"sleeptime": {"memory_agent_ids": ["keeper"]}}, FRONT),
    "no memory agent": ({"sleeptime": {"foreground_agent_id": "clerk"}}, BACK),
    "an unknown foreground": ({"sleeptime": {**GOOD, "foreground_agent_id": "x"}}, FRONT),
    "an unknown memory agent": ({"sleeptime": {**GOOD, "memory_agent_ids": ["x"]}}, f"{BACK}[0]"),
    "an empty memory agent": ({"sleeptime": {**GOOD, "memory_agent_ids": [""]}}, f"{BACK}[0]"),
    "itself in the foreground": ({"sleeptime": {**GOOD, "foreground_agent_id": "new"}}, FRONT),
    "itself as memory agent": ({"sleeptime": {**GOOD, "memory_agent_ids": ["new"]}}, f"{BACK}[0]"),
    "a sleeptime agent in the foreground": ({"sleeptime": {**GOOD, "foreground_agent_id": "desk"}}, FRONT),
    "a responder as memory agent": ({"sleeptime": {**GOOD, "memory_agent_ids": ["responder"]}}, f"{BACK}[0]"),
    "the same twice": ({"sleeptime": {**GOOD, "memory_agent_ids": ["keeper", "keeper"]}}, f"{BACK}[1]"),
    "too many": ({"sleeptime": {**GOOD, "memory_agent_ids": ["keeper", "default", "clerk"]}}, BACK),
    "a negative number": ({"sleeptime": {**GOOD, "every": -1}}, "sleeptime.every"),
    "instructions of its own": ({"instructions": "Be brief."}, "instructions"),
    "a model of its own": ({"model": "m-1"}, "model"),
    "server tools of its own": ({"server_tools": ["add"]}, "server_tools"),
    "a message tool of its own": ({"message_tool": "say"}, "message_tool"),
    "parts of an agent of another kind": ({"kind": RESPONDER}, "sleeptime"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_mistake_is_refused_with_its_field(store: str, mistake: str) -> None:
    """Also as a change of an agent that was good; nothing is stored."""
    fields, field = MISTAKES[mistake]
    path = f"agent.{field}"
    settings: dict[str, Any] = {"tools": "tests.server_tools:add", "limits": {"max_memory_agents": 2}}
    async with scripted(answers, store, **settings) as (client, _):
        await make_agents(client)
        wanted: dict[str, Any] = {"kind": SLEEPTIME, "sleeptime": GOOD, **fields}
        refused = await refusal(client.create_agent("new", **wanted))
        assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
        assert path in refused.fields
        assert (await refusal(client.get_agent("new"))).code == "NOT_FOUND"
        if "kind" not in fields:
            await client.create_agent("new", kind=SLEEPTIME, sleeptime=GOOD)
            assert path in (await refusal(update(client, agent_id="new", **wanted))).fields
            assert (await client.get_agent("new")).revision == 1


FILE = """
[agents.clerk]
instructions = "Answer."
server_tools = ["add"]

[agents.keeper]
instructions = "Remember."
model = "keeper-model"

[agents.desk]
kind = "sleeptime"
foreground = "clerk"
memory_agents = ["keeper"]
every = 1
default = true
"""


async def test_agents_of_the_configuration(store: str, tmp_path: Path) -> None:
    """They are told by GetServerInfo with what their foreground agent can do, and work as others do."""
    path = tmp_path / "agents.toml"
    path.write_text(FILE)
    settings: dict[str, Any] = {"agents_file": path, "tools": "tests.server_tools:add"}
    async with scripted(answers, store, **settings) as (client, _):
        info = await client.server.GetServerInfo(server_service_pb2.GetServerInfoRequest())
        (desk,) = (agent for agent in info.agents if agent.agent_id == "desk")
        assert (desk.kind, desk.client_tools, list(desk.server_tools)) == ("sleeptime", True, ["add"])
        assert desk.is_default
        assert "sleeptime" in info.capabilities
        assert (info.limits.max_memory_agents, info.limits.max_memory_part_bytes) == (16, 64 * 1024)
        run = (await client.ask("Hi")).run
        assert [read.parent_run_id for read in await memory_runs(client, 1)] == [run.run_id]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('foreground = "clerk"\n', "", "agents.desk: foreground: no agent ''; known: default, responder, clerk"),
        ('foreground = "clerk"', 'foreground = "x"', "agents.desk: foreground: no agent 'x'"),
        ('foreground = "clerk"', 'foreground = "desk"', "agents.desk: foreground: is the agent itself"),
        ('["keeper"]', '["responder"]', "agents.desk: memory_agents[0]: agent 'responder' is of kind RESPONDER"),
        ('memory_agents = ["keeper"]\n', "", "agents.desk: memory_agents: is empty"),
        ("every = 1", "every = 0", "agents.desk: every: 0 is below 1"),
        ("every = 1", 'model = "m"', "agents.desk: model: a sleeptime agent has none of its own"),
        ('kind = "sleeptime"\n', "", "agents.desk: foreground: only an agent of kind SLEEPTIME has it"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    """The server does not start."""
    path = tmp_path / "agents.toml"
    assert old in FILE
    path.write_text(FILE.replace(old, new))
    with pytest.raises(SettingsError) as error:
        read_agents(path, ("add",), Limits())
    assert message in str(error.value)
