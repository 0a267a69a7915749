"""Server tools."""

from agent_service.tools.python import PythonTools, ToolLoadError, load_tools, server_tool

__all__ = ["PythonTools", "ToolLoadError", "load_tools", "server_tool"]
