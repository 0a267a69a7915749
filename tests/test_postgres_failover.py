"""A PostgreSQL server hands over to its standby, dead or alive: the service finds the new one by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg
import pytest

from agent_service.stores.errors import SchemaError
from agent_service.stores.postgres import PostgresStore
from agent_service.stores.postgres_hosts import Hosts
from tests.persistent import COMPLETED, Callers, Watcher, script, until
from tests.postgres import Postgres, postgres
from tests.scripted_openai import Gate
from tests.service import durable, scripted
from tests.store_contract import counter
from tests.stored import rows

pytestmark = pytest.mark.anyio

FEW_SECONDS = 8.0
"""The longest until calls are answered after a standby was promoted, on a machine that has other things to do."""


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Postgres, Postgres]]:
    """A primary, and its synchronous standby: what is committed is on both."""
    with postgres() as primary, primary.standby() as standby:
        await execute(primary, "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        in_step = "SELECT FROM pg_stat_replication WHERE sync_state = 'sync'"
        await until(lambda: rows(primary.url, in_step), "the standby does not follow")
        yield primary, standby


async def execute(server: Postgres, *statements: str) -> None:
    """Statements of an administrator."""
    connection = await asyncpg.connect(server.url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        connection.terminate()


def url_of(*servers: Postgres) -> str:
    """The setting of a service that uses whichever of them is the primary."""
    places = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    return f"postgresql://postgres@{places}/postgres?target_session_attrs=primary"


async def die(primary: Postgres, standby: Postgres) -> None:
    """The primary is killed, and then the standby is promoted."""
    await asyncio.to_thread(primary.kill)
    await execute(standby, "SELECT pg_promote()")


async def fall_silent(primary: Postgres, standby: Postgres) -> None:
    """The primary answers nothing any more, as if its host were gone; then the standby is promoted."""
    primary.pause()
    await execute(standby, "SELECT pg_promote()")


async def step_down(primary: Postgres, standby: Postgres) -> None:
    """The primary becomes read-only, without ending any connection, and then the standby is promoted."""
    await execute(
        primary,
        "ALTER SYSTEM SET default_transaction_read_only = on",
        "ALTER SYSTEM SET synchronous_standby_names = ''",
        "SELECT pg_reload_conf()",
    )
    await execute(standby, "SELECT pg_promote()")


@pytest.mark.parametrize("hand_over", [die, fall_silent, step_down])
async def test_a_promoted_standby_is_found_and_nothing_is_lost(hand_over: Callable[..., Awaitable[None]]) -> None:
    """Under load, within seconds and without a restart. What was acknowledged before is on the new primary: paused runs
    resume there, repeated calls have the same answers, runs at work go on, watchers miss nothing.
    """
    gate = Gate()
    async with (
        pair() as (primary, standby),
        scripted(script(gate), url_of(primary, standby), store_busy_seconds=1, lease_seconds=1) as (client, upstream),
    ):
        callers = Callers(client)
        callers.kept["paused"] = await callers.ask("ask paused", "paused")
        await client.ask("slow during", run_id="during", background=True)
        watchers = {run_id: Watcher(client, run_id) for run_id in ("paused", "during")}
        for watcher in watchers.values():
            await watcher.live.wait()
        async with callers.at_work(3):
            await callers.answered.reach(6)
            await hand_over(primary, standby)
            began = time.monotonic()
            await callers.insist(lambda: client.ask("tell after", run_id="after"))
            assert time.monotonic() - began < FEW_SECONDS
            gate.open()
            await callers.answered.reach(callers.answered.count + 6)
        await callers.answer("paused")
        for run_id, watcher in watchers.items():
            assert await watcher.ended() == durable(await client.watch(run_id))
            assert (await client.run(run_id)).status == COMPLETED
        await callers.check(client)
        upstream.check_histories()
        stored = {run_id for (run_id,) in await rows(standby.url, "SELECT run_id FROM agent_service.runs")}
        assert stored >= {*callers.kept, "after"}


async def test_a_service_does_not_start_on_a_standby() -> None:
    """Alone it is refused in one line that says so; beside its primary it is passed over, in any order."""
    async with pair() as (primary, standby):
        store = await opened(url_of(standby, primary))
        await store.close()
        for url in (standby.url, f"{standby.url}?target_session_attrs=any"):
            with pytest.raises(
                SchemaError, match=rf"127\.0\.0\.1:{standby.port}/postgres is read-only, a standby"
            ) as no:
                await opened(url)
            assert "\n" not in str(no.value)


async def test_a_host_that_was_silent_is_not_tried_again_before_the_others(postgres_server: Postgres) -> None:
    """It costs the first connection some time, and the next ones none."""
    asked: list[asyncio.StreamWriter] = []

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(writer)

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    hosts = Hosts(f"postgresql://postgres@127.0.0.1:{port},127.0.0.1:{postgres_server.port}/postgres", 2)
    for _ in range(3):
        (await hosts.connect()).terminate()
    assert len(asked) == 1
    asked[0].close()
    silent.close()


async def opened(url: str) -> PostgresStore:
    """A store on it."""
    return await PostgresStore.open(url, publish=lambda *_: None, new_id=counter(), busy_seconds=5)
