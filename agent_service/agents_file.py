"""Agents from a TOML file: `[agents.NAME]` tables, read once at the start."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from agent_service.domain.run import MESSAGE_ARGUMENT, MESSAGE_TOOL, AgentDefinition, AgentKind
from agent_service.settings import SettingsError

_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class _Agent(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: AgentKind = AgentKind.LLM
    description: str = ""
    instructions: str = ""
    model: str = ""
    server_tools: tuple[str, ...] = ()
    message_tool: str = MESSAGE_TOOL
    message_argument: str = MESSAGE_ARGUMENT
    default: bool = False


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    agents: dict[str, _Agent]


def read_agents(path: Path, server_tools: tuple[str, ...]) -> tuple[tuple[AgentDefinition, ...], str]:
    """The agents of the file, and the id of the one that is marked as default, or an empty one.

    Raises SettingsError with what to change.
    """
    try:
        with path.open("rb") as file:
            found = _File.model_validate(tomllib.load(file)).agents
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"agents_file: cannot read {path}: {error}") from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise SettingsError(f"agents_file: {path}: {where}: {problem['msg']}") from None
    for agent_id, agent in found.items():
        _check(path, agent_id, agent, server_tools)
    marked = [agent_id for agent_id, agent in found.items() if agent.default]
    if len(marked) > 1:
        raise SettingsError(f"agents_file: {path}: more than one agent is marked as default: {', '.join(marked)}")
    agents = tuple(AgentDefinition(agent_id=i, **agent.model_dump(exclude={"default"})) for i, agent in found.items())
    return agents, "".join(marked)


def _check(path: Path, agent_id: str, agent: _Agent, server_tools: tuple[str, ...]) -> None:
    where = f"agents_file: {path}: agents.{agent_id}"
    if not _ID.fullmatch(agent_id):
        raise SettingsError(f"{where}: the name is not 1 to 64 of A-Z a-z 0-9 . _ : -")
    if agent.kind is AgentKind.RESPONDER and agent.server_tools:
        raise SettingsError(f"{where}.server_tools: a responder has no tools")
    unknown = [name for name in agent.server_tools if name not in server_tools]
    if unknown:
        known = ", ".join(server_tools) or "none"
        raise SettingsError(f"{where}.server_tools: no server tool '{unknown[0]}'; known: {known}")
    doubled = next((name for name in agent.server_tools if agent.server_tools.count(name) > 1), None)
    if doubled:
        raise SettingsError(f"{where}.server_tools: '{doubled}' is named twice")
