"""The attack with malformed requests: it reaches every RPC, and a server process bears it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.fuzz.campaign import campaign
from tests.fuzz.cases import METHODS


def test_a_server_bears_malformed_requests(tmp_path: Path) -> None:
    """Nothing is found in some cases of one seed, and no RPC was left out."""
    result = asyncio.run(campaign(tmp_path, "runs.sqlite3", 6, range(250)))
    assert result.findings == []
    assert {name.partition(" ")[0] for name in result.counts} >= set(METHODS)
