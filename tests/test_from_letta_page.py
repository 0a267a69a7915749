"""The page for people who come from Letta: what it says to use exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOLS_AND_TABLES = {"memory_append", "memory_replace", "memory_insert", "memory_rethink", "send_message", "mcp_servers"}


def named_here() -> set[str]:
    """The names of this service's things: in the right column of the tables, and in the text after them."""
    tables, rest = (ROOT / "docs" / "from-letta.md").read_text().split("## What behaves otherwise")
    right = [line.rsplit("|", 2)[1] for line in tables.splitlines() if line.startswith("| ")]
    quoted = re.findall(r"`([A-Za-z_.: ]+)`", "\n".join(right) + rest)
    return {word for name in quoted for word in re.findall(r"[A-Za-z_]+", name)}


def test_every_rpc_and_field_that_the_page_names_is_in_the_contract() -> None:
    """A reader who types what stands there is not told that there is no such thing."""
    contract = "\n".join(path.read_text() for path in (ROOT / "proto").rglob("*.proto"))
    known = set(re.findall(r"\w+", re.sub(r"//.*", "", contract))) | TOOLS_AND_TABLES
    named = {name for name in named_here() if "_" in name or re.search(r"[a-z][A-Z]", name)}
    assert len(named) > 40
    assert named - known == set()
