"""An MCP server as it is configured, and how its tools are named."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

SERVER_NAME = re.compile(r"[A-Za-z0-9-]{1,32}")
"""No underscore: it ends the server's name within the name of a tool, so that each name means one server."""

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
_MIN_SECRET = 4


@dataclass(frozen=True, slots=True)
class McpServer:
    """A program (`command`, `args`, `env`, `cwd`) or an endpoint (`url`, `headers`).

    `timeout` is for one call, `connect_timeout` for each answer while connecting, in seconds. `allow` None means all
    of its tools. `parallel_safe`: they may be executed beside others. `secrets` are the values that must not be shown.
    `trace_headers` go with each request to an endpoint.
    """

    name: str
    timeout: float
    connect_timeout: float = 30
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str = ""
    url: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    allow: tuple[str, ...] | None = None
    trust_annotations: bool = False
    parallel_safe: bool = False
    secrets: tuple[str, ...] = field(default=(), repr=False)
    trace_headers: Callable[[], Mapping[str, str]] = field(default=dict, repr=False, compare=False)

    @property
    def where(self) -> str:
        """What logs say of the place: the program, or the URL without what may be secret."""
        if self.command:
            return self.command
        parts = urlsplit(self.url)
        return self.hide(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")

    def allows(self, tool: str) -> bool:
        """Whether the configuration lets agents have a tool, which is named as the server does."""
        return self.allow is None or tool in self.allow

    def tool_name(self, tool: str) -> str:
        """What agents and models call a tool."""
        return f"{self.name}_{_NOT_IN_NAMES.sub('_', tool)}"

    def hide(self, text: str) -> str:
        """The text without secrets."""
        for secret in self.secrets:
            if len(secret) >= _MIN_SECRET:
                text = text.replace(secret, "***")
        return text


def server_of(tool_name: str) -> str:
    """The name of the server that a tool of this name is of, if it is one of an MCP server."""
    return tool_name.partition("_")[0]
