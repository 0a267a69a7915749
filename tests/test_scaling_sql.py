"""The SQL of docs/scaling.md, run as it stands."""

from __future__ import annotations

import re

import asyncpg
import pytest

from tests.pages import section
from tests.postgres import postgres
from tests.scripted_openai import calls, says
from tests.service import SECRET, durable, refusal, returned, scripted

pytestmark = pytest.mark.anyio


def statements(title: str) -> list[str]:
    """The SQL of a section."""
    return re.findall(r"```sql\n(.*?)```\n", section("scaling.md", title), re.DOTALL)


async def execute(url: str, sql: str) -> None:
    """As an operator does with psql."""
    database = await asyncpg.connect(url)
    try:
        await database.execute(sql)
    finally:
        await database.close()


async def test_events_can_be_kept_in_partitions_and_dropped_with_them() -> None:
    """Before and after, runs go on and are watched from their beginning; those of a dropped partition are not any more,
    and their messages stay."""
    split, drop = statements("Events, by time")
    (autovacuum,) = statements("Indexes")
    replies = [says("Hello."), calls(("get_secret_code", {"name": "Alice"})), says("Done.")]
    with postgres(durable=False) as server:
        async with scripted(replies, server.url) as (client, _):
            old = (await client.ask("Hi", run_id="old")).run
            before = durable(await client.watch("old"))
            for sql in (autovacuum, split):
                await execute(server.url, sql)
            assert durable(await client.watch("old")) == before
            paused = (await client.ask("Hi", SECRET, run_id="new")).run
            await client.answer("new", returned(paused.pending_tool_calls[0], "A-1"))
            whole = durable(await client.watch("new"))
            await execute(server.url, drop)
            assert (await refusal(client.watching("old"))).reason == "CURSOR_TRIMMED"
            assert len(await client.messages(old.conversation_id)) == 2
            assert durable(await client.watch("new")) == whole
