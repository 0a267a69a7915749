"""The connections of the PostgreSQL store, when the database ends them in the middle of their work."""

from __future__ import annotations

import asyncio

import pytest

from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.stores.postgres_database import Connection, Database
from agent_service.stores.postgres_hosts import Hosts
from tests.postgres import Postgres

pytestmark = pytest.mark.anyio

END = "SELECT pg_terminate_backend(pg_backend_pid())"


@pytest.mark.parametrize("begins", ["read", "write"])
async def test_work_whose_connection_the_database_ends_can_be_repeated(begins: str, postgres_server: Postgres) -> None:
    """As when the database is restarted: the work is told STORE_UNAVAILABLE, and what comes next has a connection."""

    async def end(connection: Connection) -> None:
        await connection.execute(END)

    async def ask(connection: Connection) -> int:
        return int(await connection.fetchval("SELECT 7"))

    database = await Database.open(postgres_server.url, seconds=10, size=1)
    try:
        for _ in range(2):
            with pytest.raises(AgentServiceError) as caught:
                await (database.read(end) if begins == "read" else database.write(end))
            assert caught.value.reason is Reason.STORE_UNAVAILABLE
            assert await database.write(ask) == 7
    finally:
        await database.close()


async def test_an_attempt_to_connect_does_not_outlive_the_store() -> None:
    """Not even one that nobody waits for any more: its own time is over before the store is closed."""
    connected, gone = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()
        gone.set()

    async with await asyncio.start_server(silent, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        hosts = Hosts(f"postgresql://nobody@127.0.0.1:{port}/nowhere", seconds=0.2)
        before = asyncio.all_tasks()
        caller = asyncio.create_task(hosts.connect())
        await connected.wait()
        caller.cancel()
        await asyncio.wait({caller})
        await hosts.close()
        assert not [task for task in asyncio.all_tasks() - before if "Hosts." in repr(task)]
        await gone.wait()
