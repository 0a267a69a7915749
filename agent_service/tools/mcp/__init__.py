"""Server tools of MCP servers. Only `server.py` can be imported without the package `mcp`."""
