"""Agents and memory blocks from a TOML file: `[agents.NAME]` and `[memory_blocks.NAME]`, read once at the start."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from agent_service import toml_file
from agent_service.domain.memory import MemoryBlock
from agent_service.domain.memory import problems as block_problems
from agent_service.domain.policy import DEFAULT_KEEP, DEFAULT_THRESHOLD, ContextPolicy, Strategy
from agent_service.domain.policy import problems as problems_of_policy
from agent_service.domain.rules import NextTool, RuleKind, ToolRule, problems
from agent_service.domain.run import (
    DEFAULT_EVERY,
    MESSAGE_ARGUMENT,
    MESSAGE_TOOL,
    AgentDefinition,
    AgentKind,
    MemoryPlan,
    Sleeptime,
)
from agent_service.engine.limits import Limits
from agent_service.engine.memory_tools import MEMORY_TOOLS
from agent_service.engine.sleeptime import named, wrong_kind
from agent_service.engine.sleeptime import problems as problems_of_sleeptime
from agent_service.files import FileError
from agent_service.settings import SettingsError
from agent_service.toml_file import M
from agent_service.tools.mcp.server import server_of

_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _as_json(value: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError for what JSON cannot say, such as a date."""
    try:
        json.dumps(value, allow_nan=False)
    except TypeError as error:
        raise ValueError(str(error)) from None
    return value


class _Tool(_Table):
    tool_name: str


class _Next(_Tool):
    arguments: Annotated[dict[str, Any], AfterValidator(_as_json)] | None = None

    @property
    def arguments_json(self) -> str:
        return "" if self.arguments is None else json.dumps(self.arguments, ensure_ascii=False)


class _Child(_Tool):
    children: tuple[_Next, ...]


class _Conditional(_Tool):
    tools_by_output: dict[str, str]
    default_tool: str = ""
    require_output_mapping: bool = False


class _MaxCount(_Tool):
    max_count: int


class _ParentLast(_Tool):
    children: tuple[str, ...]


class _Rule(_Table):
    """A table with one key, as ToolRule of the contract is written in JSON."""

    run_first: _Next | None = None
    terminal: _Tool | None = None
    continue_run: _Tool | None = None
    child: _Child | None = None
    conditional: _Conditional | None = None
    max_count: _MaxCount | None = None
    parent_last: _ParentLast | None = None
    required_before_exit: _Tool | None = None
    requires_approval: _Tool | None = None


class _Context(_Table):
    window_tokens: int = 0
    strategy: Strategy = Strategy.SUMMARY
    threshold: float = DEFAULT_THRESHOLD
    keep: float = DEFAULT_KEEP
    summary_prompt: str = ""
    summary_model: str = ""


class _Agent(_Table):
    kind: AgentKind = AgentKind.LLM
    description: str = ""
    instructions: str = ""
    model: str = ""
    server_tools: tuple[str, ...] = ()
    message_tool: str = MESSAGE_TOOL
    message_argument: str = MESSAGE_ARGUMENT
    tool_rules: tuple[_Rule, ...] = ()
    foreground: str = ""
    memory_agents: tuple[str, ...] = ()
    every: int = DEFAULT_EVERY
    memory_blocks: tuple[str, ...] = ()
    context: _Context = Field(default_factory=_Context)
    default: bool = False

    @property
    def sleeptime(self) -> Sleeptime | None:
        """What it is made of, if any of that is set."""
        if not self.model_fields_set & {"foreground", "memory_agents", "every"}:
            return None
        return Sleeptime(self.foreground, MemoryPlan(self.memory_agents, self.every))


class _Block(_Table):
    label: str = ""
    value: str = ""
    description: str = ""
    limit: int = 0
    read_only: bool = False


class _File(_Table):
    memory_blocks: dict[str, _Block] = Field(default_factory=dict)
    agents: dict[str, _Agent] = Field(default_factory=dict)
    mcp_servers: dict[str, Any] = Field(default_factory=dict)


_APART = {"default", "tool_rules", "memory_blocks", "context", "foreground", "memory_agents", "every"}
"""Keys of an agent that are no fields of a definition."""


def read_toml(path: Path, model: type[M]) -> M:
    """The agents file as the model has it. Raises SettingsError with what to change."""
    try:
        return toml_file.read_toml(path, model)
    except FileError as error:
        raise SettingsError(f"agents_file: {error}") from error


def read_agents(path: Path, server_tools: tuple[str, ...], limits: Limits) -> tuple[tuple[AgentDefinition, ...], str]:
    """The agents of the file, and the id of the one that is marked as default, or an empty one.

    Raises SettingsError with what to change.
    """
    file = read_toml(path, _File)
    found = file.agents
    for agent_id, agent in found.items():
        _check(path, agent_id, agent, server_tools, tuple(file.mcp_servers))
        _check_context(path, agent_id, agent, limits.max_summary_prompt_bytes)
        _check_blocks(path, agent_id, agent, file.memory_blocks, limits.max_memory_blocks)
    where = f"agents_file: {path}: agents"
    rules = {i: _rules(f"{where}.{i}.tool_rules", agent, limits.max_tool_rules) for i, agent in found.items()}
    marked = [agent_id for agent_id, agent in found.items() if agent.default]
    if len(marked) > 1:
        raise SettingsError(f"agents_file: {path}: more than one agent is marked as default: {', '.join(marked)}")
    agents = tuple(
        AgentDefinition(
            agent_id=i,
            tool_rules=rules[i],
            memory_block_ids=agent.memory_blocks,
            context=ContextPolicy(**agent.context.model_dump()),
            sleeptime=agent.sleeptime,
            **agent.model_dump(exclude=_APART),
        )
        for i, agent in found.items()
    )
    _check_sleeptime(path, agents, limits.max_memory_agents)
    return agents, "".join(marked)


def read_memory_blocks(path: Path, limits: Limits) -> tuple[MemoryBlock, ...]:
    """The memory blocks of the file. Raises SettingsError with what to change."""
    return tuple(_block(path, i, block, limits) for i, block in read_toml(path, _File).memory_blocks.items())


def _block(path: Path, block_id: str, table: _Block, limits: Limits) -> MemoryBlock:
    where = f"agents_file: {path}: memory_blocks.{block_id}"
    if not _ID.fullmatch(block_id):
        raise SettingsError(f"{where}: the name is not 1 to 64 of A-Z a-z 0-9 . _ : -")
    label, limit = table.label or block_id, table.limit or limits.default_memory_block_limit
    block = MemoryBlock(block_id, label, table.value, table.description, limit, table.read_only)
    found = block_problems(block, limits.max_memory_block_limit, limits.max_memory_description_bytes)
    for field, problem in found:
        raise SettingsError(f"{where}.{field}: {problem}")
    return block


def _check_blocks(path: Path, agent_id: str, agent: _Agent, blocks: dict[str, _Block], most: int) -> None:
    where = f"agents_file: {path}: agents.{agent_id}.memory_blocks"
    if len(agent.memory_blocks) > most:
        raise SettingsError(f"{where}: {len(agent.memory_blocks)} memory blocks; at most {most} are allowed")
    labels: dict[str, str] = {}
    for name in agent.memory_blocks:
        if name not in blocks:
            known = ", ".join(blocks) or "none"
            raise SettingsError(f"{where}: no memory block '{name}' in this file; its memory blocks: {known}")
        label = blocks[name].label or name
        if label in labels:
            raise SettingsError(f"{where}: '{labels[label]}' and '{name}' have the same label, '{label}'")
        labels[label] = name


def _check(path: Path, agent_id: str, agent: _Agent, server_tools: tuple[str, ...], mcp: tuple[str, ...]) -> None:
    where = f"agents_file: {path}: agents.{agent_id}"
    if not _ID.fullmatch(agent_id):
        raise SettingsError(f"{where}: the name is not 1 to 64 of A-Z a-z 0-9 . _ : -")
    for field in ("server_tools", "tool_rules"):
        if agent.kind is AgentKind.RESPONDER and getattr(agent, field):
            raise SettingsError(f"{where}.{field}: a responder has no tools")
    # An MCP server lists what it likes, when it likes: a name that it does not have now is no reason not to start.
    unknown = [
        name
        for name in agent.server_tools
        if name not in server_tools and name not in MEMORY_TOOLS and not _of_one(name, mcp)
    ]
    if unknown:
        known = ", ".join((*server_tools, *(f"{server}_..." for server in mcp), *MEMORY_TOOLS))
        raise SettingsError(f"{where}.server_tools: no server tool '{unknown[0]}'; known: {known}")
    doubled = next((name for name in agent.server_tools if agent.server_tools.count(name) > 1), None)
    if doubled:
        raise SettingsError(f"{where}.server_tools: '{doubled}' is named twice")


def _check_context(path: Path, agent_id: str, agent: _Agent, most: int) -> None:
    policy = ContextPolicy(**agent.context.model_dump())
    for name, problem in problems_of_policy(policy, most):
        raise SettingsError(f"agents_file: {path}: agents.{agent_id}.context.{name}: {problem}")


def _check_sleeptime(path: Path, agents: tuple[AgentDefinition, ...], most: int) -> None:
    """Agents of the configuration are made of agents of the configuration."""
    kinds = {"default": AgentKind.LLM, "responder": AgentKind.RESPONDER} | {a.agent_id: a.kind for a in agents}
    for agent in agents:
        where = f"agents_file: {path}: agents.{agent.agent_id}"
        for problem in problems_of_sleeptime(agent, most):
            raise SettingsError(f"{where}: {_key(problem.field)}: {problem.description}")
        for field, agent_id, allowed in named(agent):
            known = f"no agent '{agent_id}'; known: {', '.join(kinds)}"
            problem_of_kind = wrong_kind(agent_id, kinds[agent_id], allowed) if agent_id in kinds else known
            if problem_of_kind:
                raise SettingsError(f"{where}: {_key(field)}: {problem_of_kind}")


def _key(field: str) -> str:
    """The key of the file for a field of the contract."""
    names = {"sleeptime.foreground_agent_id": "foreground", "sleeptime.every": "every", "sleeptime": "foreground"}
    return names.get(field) or field.replace("sleeptime.memory_agent_ids", "memory_agents")


def _of_one(tool: str, mcp_servers: tuple[str, ...]) -> bool:
    return "_" in tool and server_of(tool) in mcp_servers


def _rules(where: str, agent: _Agent, most: int) -> tuple[ToolRule, ...]:
    rules = []
    for index, table in enumerate(agent.tool_rules):
        if len(table.model_fields_set) != 1:
            raise SettingsError(f"{where}[{index}]: set one of {', '.join(RuleKind)}")
        (kind,) = table.model_fields_set
        rules.append(_rule(RuleKind(kind), getattr(table, kind)))
    problem = next(problems(rules, most), None)
    if problem is not None:
        raise SettingsError(f"{where}{problem[0]}: {problem[1]}")
    return tuple(rules)


def _rule(kind: RuleKind, table: _Tool) -> ToolRule:
    match table:
        case _Child(tool_name=name, children=children):
            return ToolRule(kind, name, children=tuple(NextTool(c.tool_name, c.arguments_json) for c in children))
        case _ParentLast(tool_name=name, children=children):
            return ToolRule(kind, name, children=tuple(map(NextTool, children)))
        case _Conditional(tool_name=name, default_tool=default, require_output_mapping=required):
            outputs = tuple(sorted(table.tools_by_output.items()))
            return ToolRule(kind, name, tools_by_output=outputs, default_tool=default, require_output_mapping=required)
        case _MaxCount(tool_name=name, max_count=count):
            return ToolRule(kind, name, max_count=count)
        case _Next(tool_name=name):
            return ToolRule(kind, name, table.arguments_json)
        case _:
            return ToolRule(kind, table.tool_name)
