"""Server tools of the attacked server: plain functions, which work in threads, and one that asks first."""

from __future__ import annotations

import time
from typing import Any

from agent_service.tools import server_tool

__all__ = ["ask_first", "count_up", "wait"]


@server_tool(parallel_safe=True)
def count_up(a: Any = None, name: Any = None) -> str:
    """Says how long its argument is."""
    return f"{len(str(a))} {len(str(name))}"


@server_tool(requires_approval=True)
def ask_first(a: Any = None) -> Any:
    """Gives back what it was given."""
    return a


@server_tool(parallel_safe=True, timeout=0.2)
def wait(a: Any = None) -> str:
    """Takes longer than it may."""
    time.sleep(1.0)
    return "late"
