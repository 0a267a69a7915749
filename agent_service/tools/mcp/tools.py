"""Server tools of MCP servers: listed, checked, called."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog
from mcp import MCPError
from mcp_types import Tool
from pydantic import ValidationError

from agent_service.domain.tool import Executor, ToolSchema
from agent_service.engine.limits import Limits
from agent_service.engine.schemas import schema_problem
from agent_service.engine.tools import ToolContext, ToolOutput
from agent_service.functions import short
from agent_service.tools.mcp.connection import BrokeOffError, Connection, NotExecutedError
from agent_service.tools.mcp.result import output_of
from agent_service.tools.mcp.server import McpServer, server_of
from agent_service.tools.output import failed, raised, timed_out

log = structlog.get_logger()

START_SECONDS = 10.0
"""How long the service waits for its MCP servers before it serves without them."""
_MAX_NAME = 200
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class _Listed:
    """A tool as the server names it, and what the model is told."""

    remote_name: str
    schema: ToolSchema


class McpTools:
    """Implements ServerTools. Tools come and go with what the servers list."""

    def __init__(self, servers: Sequence[McpServer], limits: Limits) -> None:
        self._servers = {server.name: _Server(server, limits) for server in servers}

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Connects to the servers, and stays connected until the end of the block."""
        try:
            first = [server.connection.open() for server in self._servers.values()]
            await asyncio.wait(first, timeout=START_SECONDS)
            yield
        finally:
            await asyncio.gather(*(server.connection.close() for server in self._servers.values()))

    @property
    def names(self) -> tuple[str, ...]:
        """See ServerTools. Of all tools that were listed."""
        return tuple(name for server in self._servers.values() for name in server.listed or ())

    def schema(self, name: str) -> ToolSchema | None:
        """See ServerTools. Until its server has listed its tools, any tool that it may have has a schema."""
        server = self._servers.get(server_of(name))
        return server.schema(name) if server else None

    async def call(self, name: str, arguments_json: str, context: ToolContext) -> ToolOutput:
        """See ServerTools."""
        server = self._servers.get(server_of(name))
        if server is None or server.schema(name) is None:
            return failed(f"there is no tool {name[:64]!r} any more")
        return await server.call(name, arguments_json, context)


class _Server:
    """One server: `listed` are its tools by the names that agents have for them, None until it has listed them."""

    def __init__(self, server: McpServer, limits: Limits) -> None:
        self._server = server
        self._limits = limits
        self.connection = Connection(server, self._take)
        self.listed: Mapping[str, _Listed] | None = None
        self._left_out: dict[str, str] = {}

    def schema(self, name: str) -> ToolSchema | None:
        if self.listed is None:
            return self._unlisted(name)
        listed = self.listed.get(name)
        return listed.schema if listed else None

    def _unlisted(self, name: str) -> ToolSchema | None:
        allow = self._server.allow
        if not _NAME.fullmatch(name) or (
            allow is not None and name not in {self._server.tool_name(tool) for tool in allow}
        ):
            return None
        return ToolSchema(
            name,
            f"A tool of the MCP server '{self._server.name}', which could not be reached when this run began: what "
            "the tool does and which arguments it takes is not known, and calling it may fail.",
            '{"type":"object"}',
            Executor.SERVER,
        )

    async def call(self, name: str, arguments_json: str, context: ToolContext) -> ToolOutput:
        """Calls it within the server's time limit, and says what came of it."""
        try:
            return await self._call(name, json.loads(arguments_json))
        except TimeoutError:
            return timed_out(self._server.timeout)
        except NotExecutedError as error:
            problem = f"not executed, the MCP server '{self._server.name}' is not connected: {error}"
        except BrokeOffError as error:
            problem = (
                f"the connection to the MCP server '{self._server.name}' broke ({error}); the outcome of the call is "
                "unknown, it may have been executed"
            )
        except MCPError as error:
            problem = error.message
        except (RuntimeError, ValidationError) as error:
            problem = f"executed, but its result is not as it should be: {error}"
        except Exception as error:
            return raised(name, error, context)
        problem = short(self._server.hide(problem))
        log.warning("tool.failed", tool=name, tool_call_id=context.tool_call_id, problem=problem)
        return failed(problem)

    async def _call(self, name: str, arguments: dict[str, Any]) -> ToolOutput:
        listed = (self.listed or {}).get(name)
        if listed is None:
            await self.connection.reached()
            listed = (self.listed or {}).get(name)
        if listed is None:
            return failed(f"not executed, the MCP server '{self._server.name}' has no such tool")
        result = await self.connection.call(listed.remote_name, arguments, repeatable=listed.schema.idempotent)
        return output_of(result, self._limits.max_server_tool_result_bytes)

    def _take(self, tools: Sequence[Tool]) -> None:
        """Takes over what the server lists; says what is left out, and what is new to those who read the log."""
        allowed = [tool for tool in tools if self._server.allows(tool.name)]
        names = Counter(self._server.tool_name(tool.name) for tool in allowed)
        listed: dict[str, _Listed] = {}
        left_out: dict[str, str] = {}
        for tool in allowed:
            schema = self._schema(tool)
            problem = self._problem(schema) or ("another tool has the same name" if names[schema.name] > 1 else "")
            if problem:
                left_out[tool.name[:_MAX_NAME]] = problem
            else:
                listed[schema.name] = _Listed(tool.name, schema)
        self._note(listed, left_out)
        self.listed, self._left_out = listed, left_out

    def _note(self, listed: Mapping[str, _Listed], left_out: Mapping[str, str]) -> None:
        """Logs what is not as it was."""
        name, before = self._server.name, self.listed
        for tool, reason in left_out.items():
            if self._left_out.get(tool) != reason:
                log.warning("mcp.tool_left_out", server=name, tool=tool, reason=reason)
        if before == listed:
            return
        if before is None:
            log.info("mcp.tools", server=name, tools=list(listed))
        else:
            added, removed = sorted(listed.keys() - before.keys()), sorted(before.keys() - listed.keys())
            log.info("mcp.tools_changed", server=name, added=added, removed=removed)
        missing = [tool for tool in self._server.allow or () if self._server.tool_name(tool) not in listed]
        if missing:
            log.warning("mcp.allowed_tools_missing", server=name, tools=missing)

    def _schema(self, tool: Tool) -> ToolSchema:
        hints = tool.annotations if self._server.trust_annotations else None
        return ToolSchema(
            name=self._server.tool_name(tool.name),
            description=tool.description or tool.title or "",
            parameters_json=json.dumps(tool.input_schema, ensure_ascii=False, separators=(",", ":")),
            executor=Executor.SERVER,
            idempotent=bool(hints and (hints.read_only_hint or hints.idempotent_hint)),
            parallel_safe=self._server.parallel_safe,
        )

    def _problem(self, schema: ToolSchema) -> str:
        """Why a tool cannot be used; empty if it can."""
        if not _NAME.fullmatch(schema.name):
            return f"its name '{schema.name[:100]}' has more than 64 characters"
        size, most = len(schema.description.encode(errors="replace")), self._limits.max_tool_schema_bytes
        if size > most:
            return f"its description has {size} bytes; at most {most} are allowed"
        problem = schema_problem(schema.parameters_json, max_bytes=most, max_depth=self._limits.max_tool_schema_depth)
        return f"its parameters: {problem}" if problem else ""
