"""Agents from a TOML file, and how they stand beside the built-in ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from agentrpc.v1 import agent_registry_service_pb2 as pb
from agentrpc.v1 import agents_pb2, runs_pb2

from agent_service.agents_file import read_agents
from agent_service.domain.policy import ContextPolicy, Strategy
from agent_service.domain.rules import NextTool, RuleKind, ToolRule
from agent_service.domain.run import AgentDefinition, AgentKind
from agent_service.engine.limits import Limits
from agent_service.settings import SettingsError
from tests.scripted_openai import says
from tests.service import refusal, scripted

TOOLS = ("add", "find")
WHOLE = """
[agents.sales]
description = "Sells."
instructions = '''
You sell.'''
model = "m-2"
server_tools = ["find", "add"]
message_tool = "speak"
message_argument = "words"

[agents.sales.context]
window_tokens = 8000
strategy = "sliding_window"
threshold = 0.9
keep = 0.5
summary_prompt = "Sum up."
summary_model = "m-3"

[agents."support:v1.2"]

[agents.talker]
kind = "responder"
instructions = "Talk."
default = true
"""


ONE_RULE = "[agents.x]\ntool_rules = ["


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file is."""
    return tmp_path / "agents.toml"


Write = Callable[[str], Path]


@pytest.fixture
def write(path: Path) -> Write:
    """Writes the file and says where it is."""

    def written(text: str) -> Path:
        path.write_text(text)
        return path

    return written


def test_a_file_is_read(path: Path) -> None:
    """In its order, with the one that is marked as default; what is left out has its default."""
    path.write_text(WHOLE)
    agents, default = read_agents(path, TOOLS, Limits())
    assert agents == (
        AgentDefinition(
            *("sales", AgentKind.LLM, "You sell.", "m-2", ("find", "add"), "Sells.", "speak", "words"),
            context=ContextPolicy(8000, Strategy.SLIDING_WINDOW, 0.9, 0.5, "Sum up.", "m-3"),
        ),
        AgentDefinition("support:v1.2", AgentKind.LLM, ""),
        AgentDefinition("talker", AgentKind.RESPONDER, "Talk."),
    )
    assert default == "talker"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[agents", "cannot read"),
        ("agents = 3", "agents: Input should be a valid dictionary"),
        ("[agent.x]", "agent: Extra inputs are not permitted"),
        ("[agents]\n[other]", "other: Extra inputs are not permitted"),
        ("[agents.x]\ninstruction = 'typo'", "agents.x.instruction: Extra inputs are not permitted"),
        ("[agents.x]\nkind = 'robot'", "agents.x.kind: Input should be 'llm', 'responder' or 'sleeptime'"),
        ("[agents.x]\nmodel = 3", "agents.x.model: Input should be a valid string"),
        ("[agents.x]\nserver_tools = 'add'", "agents.x.server_tools: Input should be a valid"),
        ("[agents.x]\nserver_tools = ['add', 'nothing']", "agents.x.server_tools: no server tool 'nothing'"),
        ("[agents.x]\nserver_tools = ['add', 'add']", "agents.x.server_tools: 'add' is named twice"),
        ("[agents.x]\nkind = 'responder'\nserver_tools = ['add']", "agents.x.server_tools: a responder has no tools"),
        ("[agents.'not an id']", "agents.not an id: the name is not"),
        ("[agents.x]\ndefault = true\n[agents.y]\ndefault = true", "more than one agent is marked as default"),
        ("[agents.x]\n[agents.x]", "cannot read"),
        ("[agents.x.context]\nstrategy = 'shrink'", "agents.x.context.strategy: Input should be 'summary'"),
        ("[agents.x.context]\nthreshold = 1.5", "agents.x.context.threshold: 1.5 is not above 0 and at most 1"),
        ("[agents.x.context]\nwindow = 9", "agents.x.context.window: Extra inputs are not permitted"),
        (f"{ONE_RULE}{{}}]", "agents.x.tool_rules[0]: set one of run_first, terminal, "),
        (
            f"{ONE_RULE}{{ terminal = {{ tool_name = 'a' }}, continue_run = {{ tool_name = 'a' }} }}]",
            "agents.x.tool_rules[0]: set one of run_first, terminal, ",
        ),
        (f"{ONE_RULE}{{ last = {{ tool_name = 'a' }} }}]", "tool_rules.0.last: Extra inputs are not permitted"),
        (f"{ONE_RULE}{{ terminal = {{ tool = 'a' }} }}]", "tool_rules.0.terminal.tool_name: Field required"),
        (
            f"{ONE_RULE}{{ max_count = {{ tool_name = 'a', max_count = 0 }} }}]",
            "agents.x.tool_rules[0].max_count.max_count: 0 is below 1",
        ),
        (
            f"{ONE_RULE}{{ run_first = {{ tool_name = 'a', arguments = {{ day = 2026-01-01 }} }} }}]",
            "tool_rules.0.run_first.arguments: Value error, Object of type date is not JSON serializable",
        ),
        (
            f"{ONE_RULE}{{ run_first = {{ tool_name = 'a', arguments = {{ n = nan }} }} }}]",
            "tool_rules.0.run_first.arguments: Value error",
        ),
        (
            "[agents.x]\nkind = 'responder'\ntool_rules = [{ terminal = { tool_name = 'a' } }]",
            "agents.x.tool_rules: a responder has no tools",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(path: Path, text: str, problem: str) -> None:
    """One line: the setting, the file, where in it, and what is wrong."""
    path.write_text(text)
    with pytest.raises(SettingsError) as error:
        read_agents(path, TOOLS, Limits())
    message = str(error.value)
    assert message.startswith("agents_file: ")
    assert problem in message
    assert str(path) in message
    assert "\n" not in message


def test_the_known_tools_are_listed(path: Path) -> None:
    """So that a typo is seen; also if there are none but those for memory."""
    path.write_text("[agents.x]\nserver_tools = ['ad']")
    with pytest.raises(SettingsError, match=r"no server tool 'ad'; known: add, find"):
        read_agents(path, TOOLS, Limits())
    with pytest.raises(SettingsError, match=r"no server tool 'ad'; known: memory_append, memory_replace"):
        read_agents(path, (), Limits())


def test_a_file_that_cannot_be_read_is_told(path: Path) -> None:
    """Because it is not there, is a folder, or is not text."""
    with pytest.raises(SettingsError, match="cannot read"):
        read_agents(path, TOOLS, Limits())
    with pytest.raises(SettingsError, match="cannot read"):
        read_agents(path.parent, TOOLS, Limits())
    path.write_bytes(b"[agents.x]\ndescription = '\xff'")
    with pytest.raises(SettingsError, match="cannot read"):
        read_agents(path, TOOLS, Limits())


def test_serve_says_what_is_wrong_with_the_file(path: Path) -> None:
    """One line on standard error and exit code 1."""
    path.write_text("[agents.x]\nkind = 'robot'")
    arguments = ["--store", "memory", "--port", "0", "--model", "m-1", "--log-level", "error"]
    command = [sys.executable, "-m", "agent_service", "serve", *arguments, "--agents-file", str(path)]
    environment = os.environ | {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: agents_file: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.anyio
async def test_agents_of_a_file_are_served_beside_the_built_in_ones(store: str, write: Write) -> None:
    """They are of the configuration: read-only, listed by id. The marked one is what an empty id means."""
    path = write(WHOLE.replace('server_tools = ["find", "add"]\n', ""))
    async with scripted([says("Good day."), says("Sold.")], store, agents_file=path) as (client, upstream):
        listed = (await client.registry.ListAgents(pb.ListAgentsRequest())).agents
        ids = ["default", "responder", "sales", "support:v1.2", "talker"]
        assert [agent.agent_id for agent in listed] == ids
        assert all(agent.configured for agent in listed)
        assert [agent.agent_id for agent in listed if agent.is_default] == ["talker"]
        assert (await client.get_agent("")).agent_id == "talker"
        deletion = pb.DeleteAgentRequest(agent_id="sales")
        assert (await refusal(client.registry.DeleteAgent(deletion))).reason == "AGENT_READ_ONLY"

        run = (await client.ask("Hi")).run
        assert (run.agent_id, run.status) == ("talker", runs_pb2.RUN_STATUS_COMPLETED)
        await client.ask("Hi", agent_id="sales")
        models = [(request.model, request.system) for request in upstream.requests]
        assert models == [("scripted-model", "Talk."), ("m-2", "You sell.")]


@pytest.mark.anyio
async def test_an_agent_of_a_file_takes_the_place_of_a_built_in_one(store: str, write: Write) -> None:
    """By its id; the other built-in one stays."""
    path = write("[agents.default]\ninstructions = 'Be mine.'\nkind = 'responder'\n[agents.other]")
    async with scripted([], store, agents_file=path) as (client, _):
        listed = (await client.registry.ListAgents(pb.ListAgentsRequest())).agents
        assert [agent.agent_id for agent in listed] == ["default", "other", "responder"]
        default = await client.get_agent("")
        assert (default.agent_id, default.instructions) == ("default", "Be mine.")
        assert default.kind == agents_pb2.AGENT_KIND_RESPONDER


@pytest.mark.anyio
async def test_without_a_mark_the_agent_named_default_stays_the_default(store: str, write: Write) -> None:
    """Agents that a file adds do not change what an empty id means."""
    path = write("[agents.a]\n[agents.b]\ndefault = false")
    async with scripted([], store, agents_file=path) as (client, _):
        assert (await client.get_agent("")).agent_id == "default"
    path = write("[agents.b]\n[agents.default]\ninstructions = 'Be mine.'")
    async with scripted([], store, agents_file=path) as (client, _):
        assert (await client.get_agent("")).instructions == "Be mine."


RULES = """
[agents.x]
tool_rules = [
    { run_first = { tool_name = "find", arguments = { q = "tea", n = 1 } } },
    { child = { tool_name = "find", children = [{ tool_name = "add" }, { tool_name = "b", arguments = {} }] } },
    { parent_last = { tool_name = "find", children = ["add"] } },
    { requires_approval = { tool_name = "add" } },
]

[[agents.x.tool_rules]]
max_count = { tool_name = "add", max_count = 2 }

[[agents.x.tool_rules]]
[agents.x.tool_rules.conditional]
tool_name = "add"
default_tool = "b"
tools_by_output = { yes = "find", 42 = "add" }
"""


def test_tool_rules_are_written_as_in_the_contract(path: Path) -> None:
    """In any form that TOML has for a list of tables."""
    text, _, tables = RULES.partition("\n\n")
    path.write_text(f"{text}\n")
    tables_path = path.with_name("tables.toml")
    tables_path.write_text(f"[agents.x]\n{tables}")
    ((agent,), _), ((other,), _) = read_agents(path, TOOLS, Limits()), read_agents(tables_path, TOOLS, Limits())
    assert agent.tool_rules == (
        ToolRule(RuleKind.RUN_FIRST, "find", '{"q": "tea", "n": 1}'),
        ToolRule(RuleKind.CHILD, "find", children=(NextTool("add"), NextTool("b", "{}"))),
        ToolRule(RuleKind.PARENT_LAST, "find", children=(NextTool("add"),)),
        ToolRule(RuleKind.REQUIRES_APPROVAL, "add"),
    )
    assert other.tool_rules == (
        ToolRule(RuleKind.MAX_COUNT, "add", max_count=2),
        ToolRule(RuleKind.CONDITIONAL, "add", tools_by_output=(("42", "add"), ("yes", "find")), default_tool="b"),
    )


@pytest.mark.parametrize("kind", RuleKind)
def test_every_kind_of_rule_can_be_written(path: Path, kind: RuleKind) -> None:
    """Those without anything but a tool's name, and the others."""
    more = {
        RuleKind.CHILD: ", children = [{ tool_name = 'a' }]",
        RuleKind.PARENT_LAST: ", children = ['a']",
        RuleKind.CONDITIONAL: ", tools_by_output = { yes = 'a' }, require_output_mapping = true",
        RuleKind.MAX_COUNT: ", max_count = 1",
    }
    path.write_text(f"[agents.x]\ntool_rules = [{{ {kind} = {{ tool_name = 'find'{more.get(kind, '')} }} }}]")
    (agent,), _ = read_agents(path, TOOLS, Limits())
    assert [(rule.kind, rule.tool_name) for rule in agent.tool_rules] == [(kind, "find")]


@pytest.mark.anyio
async def test_the_rules_of_a_file_hold(store: str, write: Write) -> None:
    """And are shown."""
    path = write("[agents.x]\ntool_rules = [{ run_first = { tool_name = 'absent' } }]")
    async with scripted([], store, agents_file=path) as (client, upstream):
        assert (await client.ask("Hi", agent_id="x")).run.stop_reason == runs_pb2.STOP_REASON_TOOL_RULE
        assert (await client.get_agent("x")).tool_rules[0].run_first.tool_name == "absent"
        assert upstream.request_count == 0
