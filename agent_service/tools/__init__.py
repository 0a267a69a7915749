"""Server tools."""

from agent_service.engine.tools import ToolContext
from agent_service.tools.joined import JoinedTools
from agent_service.tools.python import PythonTools, ToolLoadError, load_tools, server_tool

__all__ = ["JoinedTools", "PythonTools", "ToolContext", "ToolLoadError", "load_tools", "server_tool"]
