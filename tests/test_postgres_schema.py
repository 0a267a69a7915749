"""The schema of the PostgreSQL store: what the database itself refuses, whoever writes."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from agent_service.stores.postgres_database import SCHEMA_VERSION
from tests.older import SCHEMAS, check_resumes
from tests.postgres import Postgres
from tests.store_contract import client, lived_in, opened, repeatable
from tests.stored import SCHEMA, emptied, everything, rows

pytestmark = pytest.mark.anyio

_BEGUN = "'run_started', NULL, 1, '{}'"
_FINAL = """'run_stopped', NULL, 1, '{"final":true}'"""


@pytest.fixture
async def url(postgres_server: Postgres) -> str:
    """An empty database."""
    return await emptied(postgres_server.url)


async def sql(url: str, *statements: str) -> None:
    """Runs statements in one transaction, as another program would."""
    database = await asyncpg.connect(url, server_settings={"search_path": SCHEMA})
    try:
        async with database.transaction():
            for statement in statements:
                await database.execute(statement)
    finally:
        await database.close()


def event(run_id: str, number: str, what: str = _BEGUN) -> str:
    """A statement that appends an event; `number` is an expression over the run's row."""
    return f"INSERT INTO events SELECT run_key, {number}, '', 1, {what} FROM runs WHERE run_id = '{run_id}'"


def call(tool_call_id: str, run_id: str, state: str) -> str:
    """A statement that writes a call of a run."""
    return (
        "INSERT INTO calls (tool_call_id, tenant, run_key, step, name, executor, pending_time, state, deadline, "
        f"claim_expire_time, codec, body) SELECT '{tool_call_id}', tenant, run_key, 1, '', '', 1, '{state}', 0, 0, 1, "
        f"'{{}}' FROM runs WHERE run_id = '{run_id}'"
    )


def run_like(run_id: str, new_id: str) -> str:
    """A statement that adds a run beside another one."""
    others = (
        "tenant, conversation_key, pin_key, agent_id, create_time, labels, step, status, epoch, owner, "
        "lease_expire_time, pause_expire_time, last_sequence, codec, body"
    )
    return f"INSERT INTO runs (run_id, {others}) SELECT {new_id}, {others} FROM runs WHERE run_id = '{run_id}'"


_ENDED = "UPDATE runs SET last_sequence = last_sequence + 1, status = 'failed' WHERE run_id = '{}'"

_FORBIDDEN = {
    "a revived run": (["UPDATE runs SET status = 'running' WHERE run_id = 'run_1'"], "terminal run never changes"),
    "an end told otherwise": (["UPDATE runs SET body = '{}' WHERE run_id = 'run_1'"], "terminal run never changes"),
    "an end nobody is told": (["UPDATE runs SET status = 'failed' WHERE run_id = 'run_3'"], "final event"),
    "an epoch that goes down": (["UPDATE runs SET epoch = epoch - 1 WHERE run_id = 'run_3'"], "never go down"),
    "numbers that go down": (["UPDATE runs SET last_sequence = 2 WHERE run_id = 'run_3'"], "never go down"),
    "a number without an event": (["UPDATE runs SET last_sequence = 9 WHERE run_id = 'run_3'"], "the last event"),
    "a second busy run": ([run_like("run_2", "'run_9'")], "runs_busy"),
    "the same run twice": ([run_like("run_1", "run_id")], "runs_tenant_run_id_key"),
    "an unknown status": (["UPDATE runs SET status = 'asleep' WHERE run_id = 'run_2'"], "status_check"),
    "another event": (["UPDATE events SET kind = 'run_started' WHERE sequence = 1"], "event never changes"),
    "the same number twice": ([event("run_3", "1")], "events_pkey"),
    "a number left out": ([event("run_3", "last_sequence + 2")], "next number"),
    "an event that the run does not count": ([event("run_3", "last_sequence + 1")], "next number"),
    "an event after the end": ([event("run_1", "last_sequence + 1")], "next number"),
    "an event of no run": (["INSERT INTO events VALUES (0, 1, '', 1, 'run_started', NULL, 1, '{}')"], "next number"),
    "two final events": ([event("run_1", "last_sequence + 1", _FINAL)], "events_final"),
    "an event with neither body nor message": ([event("run_3", "9", "'run_started', NULL, 1, NULL")], "events_check"),
    "a second outcome": (["UPDATE calls SET state = 'failed' WHERE state = 'returned'"], "outcome of a call"),
    "an outcome taken back": (["UPDATE calls SET state = 'pending' WHERE state = 'returned'"], "outcome of a call"),
    "a call of another tenant": (["UPDATE calls SET tenant = 'x' WHERE tool_call_id = 'call_2'"], "another run"),
    "a call overwritten by another run": (
        [call("call_2", "run_3", "pending") + " ON CONFLICT (tool_call_id) DO UPDATE SET run_key = excluded.run_key"],
        "another run",
    ),
    "a call after the end": ([call("call_9", "run_1", "pending")], "no further call"),
    "another text": (["UPDATE messages SET body = '{}' WHERE position = 1"], "message never changes"),
    "the same position twice": (["INSERT INTO messages SELECT * FROM messages LIMIT 1"], "messages_pkey"),
    "another receipt": (["UPDATE receipts SET body = '{}'"], "receipt never changes"),
    "the same receipt twice": (["INSERT INTO receipts SELECT * FROM receipts LIMIT 1"], "receipts_pkey"),
    "a conversation taken from under its runs": (["DELETE FROM conversations"], "violates foreign key"),
}


@pytest.mark.parametrize("what", _FORBIDDEN)
async def test_the_database_itself_refuses(url: str, what: str) -> None:
    """What must never happen is refused, also when another program or a bug asks for it."""
    async with opened(url) as kept:
        await lived_in(kept)
    before = await everything(url)
    statements, message = _FORBIDDEN[what]
    with pytest.raises(asyncpg.IntegrityConstraintViolationError, match=message):
        await sql(url, *statements)
    assert await everything(url) == before


async def test_a_run_cannot_end_while_a_call_of_it_is_open(url: str) -> None:
    """Not even when its final event is there; with every call settled the same is taken."""
    async with opened(url) as kept:
        await lived_in(kept)
    with_event = "WITH e AS ({}) {}"
    for run_id, taken in (("run_2", False), ("run_3", True)):
        end = with_event.format(event(run_id, "last_sequence + 1", _FINAL), _ENDED.format(run_id))
        if taken:
            await sql(url, end)
        else:
            with pytest.raises(asyncpg.IntegrityConstraintViolationError, match="has no outcome"):
                await sql(url, end)


async def test_a_model_answer_with_a_call_id_of_another_run_is_not_stored(url: str) -> None:
    """Neither run is changed by it, and a move of another run beside it is made."""
    async with opened(url) as kept:
        await lived_in(kept)
        await kept.start("run_4")
        before: dict[str, list[tuple[Any, ...]]] = await everything(url)
        with pytest.raises(asyncpg.IntegrityConstraintViolationError, match="another run"):
            await kept.answer(client("call_2"), run_id="run_3")
        assert await everything(url) == before
        await kept.answer(repeatable("call_9"), run_id="run_4")
        assert (await kept.run("run_4")).steps_taken == 1


VERSIONS = range(1, SCHEMA_VERSION)


async def restore(url: str, version: int) -> None:
    """Makes the database that a program of that schema left."""
    await sql(url, f"DROP SCHEMA {SCHEMA} CASCADE", (SCHEMAS / "postgres" / f"{version}.sql").read_text())


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_older_database_is_brought_to_the_schema(url: str, version: int) -> None:
    """It has what a new one has, and keeps what it had."""
    async with opened(url):
        present = await _described(url)
    await restore(url, version)
    before = await everything(url)
    async with opened(url):
        assert await _described(url) == present
    now = await everything(url)
    for table in before.keys() - {"schema_version"}:
        assert all(row[: len(old)] == old for row, old in zip(now[table], before[table], strict=True)), table


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_run_that_an_older_program_paused_is_resumed(url: str, version: int) -> None:
    """What it knows, it knows still; what it waits for can be sent."""
    await restore(url, version)
    first, second = [row[0] for row in await rows(url, "SELECT tool_call_id FROM calls ORDER BY state DESC")]
    await check_resumes(url, first, second)


async def _described(url: str) -> list[tuple[Any, ...]]:
    """Columns, indexes and triggers of all tables."""
    return [
        *await rows(
            url,
            "SELECT table_name, column_name, data_type, column_default, collation_name FROM information_schema.columns "
            "WHERE table_schema = 'agent_service' ORDER BY 1, 2",
        ),
        *await rows(url, "SELECT indexdef FROM pg_indexes WHERE schemaname = 'agent_service' ORDER BY 1"),
        *await rows(url, "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1"),
    ]
