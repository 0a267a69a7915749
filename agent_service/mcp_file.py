"""MCP servers from the TOML file of agents: `[mcp_servers.NAME]` tables, read once at the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent_service.agents_file import read_toml
from agent_service.settings import SettingsError, fill_in
from agent_service.tools.mcp.server import SERVER_NAME, McpServer, server_of


class _Server(BaseModel):
    model_config = ConfigDict(extra="forbid")

    command: str = ""
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    cwd: str = ""
    url: str = Field("", pattern="^(https?://.+)?$")
    headers: dict[str, str] = Field(default_factory=dict)
    timeout: float | None = Field(None, gt=0)
    connect_timeout: float = Field(30, gt=0)
    allow: tuple[str, ...] | None = None
    trust_annotations: bool = False
    parallel_safe: bool = False

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.command) == bool(self.url):
            raise ValueError("name either a command or a url")
        strange = ("headers",) if self.command else ("args", "env", "cwd")
        for name in strange:
            if getattr(self, name):
                raise ValueError(f"{name} does not go with {'command' if self.command else 'url'}")
        return self


class _File(BaseModel):
    mcp_servers: dict[str, _Server] = Field(default_factory=dict)


def read_mcp_servers(path: Path, server_tools: tuple[str, ...], default_timeout: float) -> tuple[McpServer, ...]:
    """The MCP servers of the file. `${NAME}` in `env`, `headers` and `url` is filled in from the environment.

    `server_tools` are the names of all other server tools; `default_timeout` is for one call, in seconds. Raises
    SettingsError with what to change.
    """
    found = read_toml(path, _File).mcp_servers
    for name in found:
        where = f"agents_file: {path}: mcp_servers.{name}"
        if not SERVER_NAME.fullmatch(name):
            raise SettingsError(f"{where}: the name is not 1 to 32 of A-Z a-z 0-9 -")
        taken = next((tool for tool in server_tools if "_" in tool and server_of(tool) == name), None)
        if taken:
            raise SettingsError(
                f"{where}: the tool '{taken}' could be taken for one of this server; give the server another name"
            )
    return tuple(_server(path, name, server, default_timeout) for name, server in found.items())


def _server(path: Path, name: str, server: _Server, default_timeout: float) -> McpServer:
    secrets: list[str] = []

    def filled(part: str, text: str) -> str:
        try:
            result, values = fill_in(text)
        except KeyError as error:
            raise SettingsError(
                f"agents_file: {path}: mcp_servers.{name}.{part}: the environment has no variable {error}"
            ) from None
        secrets.extend(values)
        return result

    fields: dict[str, Any] = server.model_dump()
    fields["timeout"] = server.timeout or default_timeout
    fields["url"] = filled("url", server.url)
    for part in ("env", "headers"):
        fields[part] = {key: filled(f"{part}.{key}", text) for key, text in fields[part].items()}
    return McpServer(name, secrets=tuple(secrets), **fields)
