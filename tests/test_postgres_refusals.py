"""PostgreSQL refuses a service, at its start or later: what operators and callers are told, and what is no refusal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from agent_service.stores.errors import SchemaError
from agent_service.stores.postgres import PostgresStore
from agent_service.stores.postgres_database import SCHEMA_VERSION
from agent_service.stores.postgres_hosts import settled, unusable
from tests.persistent import COMPLETED, Callers, is_unavailable, script
from tests.postgres import Postgres, postgres
from tests.process import environment, refused
from tests.scripted_openai import ScriptedOpenAI
from tests.service import refusal, scripted
from tests.store_contract import counter
from tests.stored import SCHEMA

pytestmark = pytest.mark.anyio

PASSWORD = "not-for-the-log-4712"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server without any tables."""
    with postgres(durable=False) as running:
        yield running


@pytest.fixture
async def admin(server: Postgres) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """Who may do everything."""
    connection = await asyncpg.connect(server.url)
    yield connection
    await connection.close()


@pytest.fixture
async def url(server: Postgres, admin: asyncpg.Connection[asyncpg.Record]) -> AsyncIterator[str]:
    """An empty database, as the role 'clerk' that owns nothing sees it."""
    await admin.execute("CREATE ROLE clerk LOGIN PASSWORD 'not-for-the-log-4712'")
    await admin.execute("CREATE DATABASE office")
    yield f"postgresql://clerk:{PASSWORD}@127.0.0.1:{server.port}/office"
    await admin.execute("DROP DATABASE office WITH (FORCE)")
    await admin.execute("DROP ROLE clerk")


@asynccontextmanager
async def office(server: Postgres) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """The administrator in that database."""
    connection = await asyncpg.connect(f"{server.url.rpartition('/')[0]}/office")
    try:
        yield connection
    finally:
        await connection.close()


async def opened(url: str) -> PostgresStore:
    """A store on it."""
    return await PostgresStore.open(url, publish=lambda *_: None, new_id=counter(), busy_seconds=5)


async def not_opened(url: str) -> str:
    """The one line with which a service would refuse to start. It names the database, and no password."""
    with pytest.raises(SchemaError) as failure:
        await opened(url)
    said = str(failure.value)
    assert "\n" not in said
    assert PASSWORD not in said
    assert url.rpartition("@")[2] in said
    return said


# At the start


async def test_a_server_that_cannot_use_its_database_says_so_and_ends(
    tmp_path: Path, server: Postgres, url: str
) -> None:
    """One line that names user, host and database; exit code 1. The password stays secret."""
    async with ScriptedOpenAI([]) as upstream:
        line = await refused(tmp_path, environment(upstream, AGENT_SERVICE_MODEL="m"), "--store", url)
    assert f"postgresql://clerk@127.0.0.1:{server.port}/office: " in line
    assert PASSWORD not in line
    assert "CREATE SCHEMA agent_service AUTHORIZATION" in line


async def test_a_database_that_is_shut_down_while_a_server_starts_is_told(server: Postgres) -> None:
    """However far it is: nobody listens, or it is cut off in the middle of what it does first."""
    blocking = await asyncpg.connect(server.url)
    await blocking.execute("SELECT pg_advisory_lock($1)", 0x61677270)
    opening = asyncio.ensure_future(not_opened(server.url))
    while not await blocking.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
        pass
    await asyncio.to_thread(server.stop)
    try:
        assert "cannot use the store" in await opening
        assert "Connect call failed" in await not_opened(server.url)
    finally:
        server.start()
        blocking.terminate()


async def test_a_role_that_may_not_create_a_schema_can_have_one_made_for_it(
    server: Postgres, url: str, admin: asyncpg.Connection[asyncpg.Record]
) -> None:
    """Until then the message says what to do. The schema may be empty, and then is all that the role needs."""
    said = await not_opened(url)
    assert "permission denied" in said
    assert "CREATE SCHEMA agent_service AUTHORIZATION" in said
    async with office(server) as owner:
        await owner.execute(f"CREATE SCHEMA {SCHEMA} AUTHORIZATION clerk")
    async with scripted(script(), url) as (client, _):
        assert (await client.ask("tell")).run.status == COMPLETED


@pytest.mark.parametrize(
    ("made", "words"),
    [
        pytest.param("CREATE TABLE agent_service.theirs ()", ("belongs to something else",), id="of somebody else"),
        pytest.param(
            "CREATE TABLE agent_service.schema_version (version integer);"
            "INSERT INTO agent_service.schema_version VALUES (99)",
            ("schema 99", "use the newer program"),
            id="of a newer program",
        ),
    ],
)
async def test_a_schema_that_is_not_ours_is_refused(server: Postgres, url: str, made: str, words: str) -> None:
    """It is left as it was."""
    async with office(server) as owner:
        await owner.execute(f"CREATE SCHEMA {SCHEMA} AUTHORIZATION clerk; {made}")
        await owner.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {SCHEMA} TO clerk")
        said = await not_opened(url)
        assert all(word in said for word in words), said
        assert len(await owner.fetch("SELECT FROM pg_tables WHERE schemaname = $1", SCHEMA)) == 1


async def test_replicas_that_start_at_once_on_an_empty_database_make_one_schema(
    server: Postgres, url: str, admin: asyncpg.Connection[asyncpg.Record]
) -> None:
    """Each waits for the one that makes it, and all can be used."""
    await admin.execute("GRANT CREATE ON DATABASE office TO clerk")
    stores = await asyncio.gather(*(opened(url) for _ in range(6)))
    try:
        assert [await store.lost_runs(1) for store in stores] == [()] * 6
    finally:
        for store in stores:
            await store.close()
    async with office(server) as owner:
        assert [tuple(row) for row in await owner.fetch("SELECT * FROM agent_service.schema_version")] == [
            (SCHEMA_VERSION,)
        ]


def test_details_of_an_error_are_not_told() -> None:
    """They are further lines, and may show what is stored."""
    error = asyncpg.DiskFullError("no space left")
    error.detail, error.hint = "Row (A-1).", "Buy a disk."
    assert "no space left" in str(settled(error))
    assert "no space left" in str(unusable("postgresql://host/office", error))
    assert "A-1" not in str(settled(error)) + str(unusable("postgresql://host/office", error))


# Later


async def test_where_connections_are_scarce_calls_wait_for_those_there_are(
    url: str, admin: asyncpg.Connection[asyncpg.Record]
) -> None:
    """Fewer than the service would take is no failure. None at all is UNAVAILABLE, until there are some again."""
    await admin.execute("GRANT CREATE ON DATABASE office TO clerk; ALTER ROLE clerk CONNECTION LIMIT 3")
    async with scripted(script(), url, store_busy_seconds=10) as (client, _):
        answers = await asyncio.gather(*(client.ask("tell", run_id=f"run-{number}") for number in range(40)))
        assert {answer.run.status for answer in answers} == {COMPLETED}
    async with scripted(script(), url, store_busy_seconds=0.5) as (client, _):
        await admin.execute("ALTER ROLE clerk CONNECTION LIMIT 0")
        await _cut_off(admin)
        told = await refusal(client.run("run-1"))
        assert is_unavailable(told)
        assert "too many connections" in told.message
        await admin.execute("ALTER ROLE clerk CONNECTION LIMIT 3")
        assert (await Callers(client).insist(lambda: client.run("run-1"))).run_id == "run-1"


async def test_a_password_that_was_changed_is_told_without_it(
    server: Postgres, url: str, admin: asyncpg.Connection[asyncpg.Record]
) -> None:
    """Calls are UNAVAILABLE as soon as connections are made anew, and answered when the password is valid again."""
    await admin.execute("GRANT CREATE ON DATABASE office TO clerk")
    async with asking_for_passwords(admin), scripted(script(), url, store_busy_seconds=5) as (client, _):
        await client.ask("tell", run_id="run-1")
        await admin.execute("ALTER ROLE clerk PASSWORD 'another'")
        await _cut_off(admin)
        told = await refusal(client.run("run-1"))
        assert is_unavailable(told)
        assert "password authentication failed" in told.message
        assert PASSWORD not in told.message
        assert "password authentication failed" in await not_opened(url)
        await admin.execute(f"ALTER ROLE clerk PASSWORD '{PASSWORD}'")
        assert (await Callers(client).insist(lambda: client.run("run-1"))).run_id == "run-1"


async def _cut_off(admin: asyncpg.Connection[asyncpg.Record]) -> None:
    """The clerk has no connection any more."""
    while await admin.fetchval("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'clerk'"):
        pass


@asynccontextmanager
async def asking_for_passwords(admin: asyncpg.Connection[asyncpg.Record]) -> AsyncIterator[None]:
    """The server asks the clerk for a password, for this block."""
    file = await admin.fetchval("SHOW hba_file")
    lines = await admin.fetchval("SELECT pg_read_file($1)", file)
    try:
        await _write(admin, file, f"host all clerk 127.0.0.1/32 scram-sha-256\n{lines}")
        yield
    finally:
        await _write(admin, file, lines)


async def _write(admin: asyncpg.Connection[asyncpg.Record], file: str, text: str) -> None:
    lines = ",".join(f"('{line}')" for line in text.splitlines() if line and not line.startswith("#"))
    await admin.execute(f"COPY (VALUES {lines}) TO '{file}'")
    await admin.execute("SELECT pg_reload_conf()")
