"""The repeated duties of a process, where one of them fails again and again."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.engine.upkeep import _repeat

pytestmark = pytest.mark.anyio


async def test_an_outage_is_logged_once_and_again_after_it_has_passed() -> None:
    """A duty that is done many times a second must not flood the log while the store is away."""
    outcomes = iter([False, False, False, True, False, False, True])
    over = asyncio.Event()

    async def duty() -> None:
        good = next(outcomes, None)
        if good is None:
            over.set()
            await asyncio.Event().wait()
        if not good:
            raise AgentServiceError(Reason.STORE_UNAVAILABLE, "the store is away")

    with capture_logs() as logs:
        task = asyncio.create_task(_repeat(duty, 0))
        await asyncio.wait_for(over.wait(), 10)
        task.cancel()
    assert [line["event"] for line in logs] == ["upkeep.failed", "upkeep.failed"]
