"""PostgreSQL is restarted, stands still, or refuses: what callers are told, and that all goes on by itself after it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.stores.postgres_database import Connection, Database
from tests.persistent import COMPLETED, Callers, Watcher, is_unavailable, script, until
from tests.postgres import Postgres, Stop, postgres
from tests.process import API_KEY, environment, running
from tests.scripted_openai import Gate, ScriptedOpenAI
from tests.service import SECRET, Client, durable, refusal, refusal_of, returned, scripted, serving, step, submit
from tests.stored import emptied, locked, rows

pytestmark = pytest.mark.anyio

BUSY = 0.5
"""How long a call waits for the database in most of these tests, in seconds."""
LOCK = "SELECT FROM agent_service.runs WHERE run_id = 'run-1' FOR UPDATE"
WAITING = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
IDLE = "SELECT FROM pg_stat_activity WHERE application_name = 'agent-service' AND state = 'idle in transaction'"
PROMPT = BUSY + 2.5
"""The longest that a refusal may take, on a machine that has other things to do."""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server that keeps what it has."""
    with postgres() as running:
        yield running


@pytest.fixture
async def url(server: Postgres) -> str:
    """Its database, empty."""
    if not server.processes:
        server.start()
    return await emptied(server.url)


def killed(server: Postgres) -> None:
    """All its processes die."""
    server.kill()


def fast(server: Postgres) -> None:
    """It ends all connections and stops."""
    server.stop(Stop.FAST)


def immediate(server: Postgres) -> None:
    """It stops and recovers when it starts."""
    server.stop(Stop.IMMEDIATE)


# Restarted


@pytest.mark.parametrize("stop", [fast, immediate, killed])
async def test_nothing_is_lost_when_the_database_restarts_under_load(
    server: Postgres, url: str, stop: Callable[[Postgres], None]
) -> None:
    """While it is away calls are UNAVAILABLE with RetryInfo; then the same calls with the same ids are answered. Runs
    in the middle of a model answer go on or are done again, watchers miss nothing, and the log says each thing once.
    """
    gate = Gate()
    with capture_logs([structlog.processors.format_exc_info]) as logs:
        async with scripted(script(gate), url, store_busy_seconds=BUSY, lease_seconds=1) as (client, upstream):
            callers = Callers(client)
            callers.kept["paused"] = await callers.ask("ask paused", "paused")
            await client.ask("slow during", run_id="during", background=True)
            watchers = {run_id: Watcher(client, run_id) for run_id in ("paused", "during")}
            for watcher in watchers.values():
                await watcher.live.wait()
            async with callers.at_work(4):
                await callers.answered.reach(8)
                await asyncio.to_thread(stop, server)
                await callers.refused.reach(4)
                gate.open()  # Its answer comes while nothing can be stored.
                await callers.refused.reach(8)
                await asyncio.to_thread(server.start)
                await callers.answered.reach(callers.answered.count + 8)
            await callers.answer("paused")
            for run_id, watcher in watchers.items():
                assert await watcher.ended() == durable(await client.watch(run_id))
                assert (await client.run(run_id)).status == COMPLETED
            await callers.check(client)
            await until(_logged(logs, "store.hints_back"), "hints are not heard")
            upstream.check_histories()
    for once in ("store.hints_lost", "upkeep.failed"):
        assert len([line for line in logs if line["event"] == once]) <= 3
    assert [line for line in logs if line["log_level"] == "error"] == []


def _logged(logs: list[Any], event: str) -> Callable[[], Any]:
    async def logged() -> bool:
        return any(line["event"] == event for line in logs)

    return logged


async def test_a_restart_within_the_patience_of_a_call_is_not_noticed(server: Postgres, url: str) -> None:
    """Calls that come meanwhile wait, and so does a run that has its model's answer: the model is not asked again."""
    gate = Gate()
    async with scripted(script(gate), url, store_busy_seconds=20, lease_seconds=60) as (client, upstream):
        await client.ask("slow", run_id="run-1", background=True)
        watcher = Watcher(client, "run-1")
        await watcher.live.wait()
        await upstream.wait_for_requests(1)
        await asyncio.to_thread(server.stop)
        asked = asyncio.ensure_future(client.ask("tell", run_id="run-2"))
        read = asyncio.ensure_future(client.run("run-1"))
        gate.open()
        await gate.reached(2)
        assert (await asyncio.wait({asked, read}, timeout=0.2))[0] == set()
        await asyncio.to_thread(server.start)
        assert (await asked).run.status == COMPLETED
        assert (await read).run_id == "run-1"
        await watcher.ended()
        assert (await client.run("run-1")).model_attempts == 1
        assert upstream.request_count == 2


# Standing still


async def _all_refused(client: Client, paused: Any) -> None:
    """Every kind of call, many at once, is UNAVAILABLE within its time, and health goes on meanwhile."""
    began = time.monotonic()
    answer = submit(paused.run_id, returned(paused.pending_tool_calls[0], "A-1"))
    waiting = [
        *(refusal(client.agent.Step(step("Hi", run_id=f"refused-{number}"))) for number in range(100)),
        *(refusal(client.agent.SubmitToolReturns(answer)) for _ in range(3)),
        *(refusal(client.run(paused.run_id)) for _ in range(30)),
        refusal(client.cancel(paused.run_id)),
        refusal(client.list_runs()),
        refusal(client.waiting()),
        refusal(client.create_agent("new", model="scripted-model")),
    ]
    calls = asyncio.gather(*waiting)
    health = health_pb2_grpc.HealthStub(client.channel)
    asked = time.monotonic()
    await health.Check(health_pb2.HealthCheckRequest())
    assert time.monotonic() - asked < BUSY
    assert not calls.done()
    told = await asyncio.wait_for(calls, 30)
    assert [refused for refused in told if not is_unavailable(refused)] == []
    assert time.monotonic() - began < PROMPT


async def test_a_database_that_stands_still_makes_no_call_hang(server: Postgres, url: str) -> None:
    """Calls are UNAVAILABLE about when their time is over, however many there are. When it goes on after the leases
    were over, each run is finished once, by the process that worked on it or by another one.
    """
    gate = Gate()
    options = {"store_busy_seconds": BUSY, "lease_seconds": 1}
    async with (
        ScriptedOpenAI(script(gate)) as upstream,
        serving(upstream, url, **options) as client,
        serving(upstream, url, **options) as other,
    ):
        paused = (await client.ask("ask", SECRET, run_id="paused")).run
        await client.ask("slow", run_id="slow", background=True)
        await upstream.wait_for_requests(2)
        began = time.monotonic()
        server.pause()
        try:
            while time.monotonic() - began < 1.5:
                await _all_refused(client, paused)
        finally:
            server.go_on()
        gate.open()
        callers = Callers(other)
        answered = await callers.insist(lambda: client.answer("paused", returned(paused.pending_tool_calls[0], "A-1")))
        assert answered.run.status == COMPLETED
        for at in (client, other):
            assert await Watcher(at, "slow").ended() == await Watcher(client, "slow").ended()
        assert (await client.run("slow")).status == COMPLETED
        assert len(await client.messages((await client.run("slow")).conversation_id)) == 2


async def test_an_owner_that_could_not_renew_its_lease_goes_on_if_nobody_took_it(server: Postgres, url: str) -> None:
    """The database stood still for longer than the lease; the model is not asked again."""
    gate = Gate()
    async with scripted(script(gate), url, store_busy_seconds=BUSY, lease_seconds=1) as (client, upstream):
        await client.ask("slow", run_id="slow", background=True)
        await upstream.wait_for_requests(1)
        began = time.monotonic()
        server.pause()
        try:
            while time.monotonic() - began < 1.2:
                assert is_unavailable(await refusal(client.run("slow")))
        finally:
            server.go_on()
        await Callers(client).insist(lambda: client.run("slow"))
        gate.open()
        await Watcher(client, "slow").ended()
        run = await client.run("slow")
        assert (run.status, run.model_attempts, upstream.request_count) == (COMPLETED, 1, 1)


async def test_a_table_locked_by_another_program_makes_no_call_hang(server: Postgres, url: str) -> None:
    """What writes is UNAVAILABLE in time, what reads is answered, and no connection goes on waiting on the server."""
    async with scripted(script(), url, store_busy_seconds=BUSY) as (client, _):
        paused = (await client.ask("ask", SECRET, run_id="paused")).run
        answer = submit("paused", returned(paused.pending_tool_calls[0], "A-1"))
        async with locked(url):
            for _ in range(3):
                began = time.monotonic()
                refused = await asyncio.gather(
                    *(refusal(client.agent.Step(step("Hi", run_id=f"run-{number}"))) for number in range(20)),
                    refusal(client.agent.SubmitToolReturns(answer)),
                )
                assert all(map(is_unavailable, refused))
                assert time.monotonic() - began < PROMPT
                assert (await client.run("paused")) == paused
            await until(lambda: _nobody_waits(url), "a connection waits for the lock")
        callers = Callers(client)
        assert (await callers.insist(lambda: client.agent.SubmitToolReturns(answer))).run.status == COMPLETED
        assert (await callers.ask("tell", "run-0")).run.status == COMPLETED


async def test_a_statement_that_waits_too_long_costs_no_other_connection(url: str) -> None:
    """What answers meanwhile is used on, so that locks and load do not make everybody connect anew."""
    database = await Database.open(url, seconds=BUSY, size=2)

    async def wait_for_lock(db: Connection) -> None:
        await db.execute("SELECT FROM runs FOR UPDATE")

    async def used() -> int:
        return int((await database.fetch("SELECT pg_backend_pid()"))[0][0])

    await asyncio.gather(used(), used())  # Now there are two.
    async with locked(url):
        waiting = asyncio.create_task(database.write(wait_for_lock))
        await until(lambda: rows(url, WAITING), "it does not wait")
        before = await used()
        while not waiting.done():
            assert await used() == before
        assert is_unavailable_error(waiting.exception())
        assert await used() == before
    await database.close()


async def test_no_connection_to_a_server_that_became_read_only_is_used_again(url: str) -> None:
    """One write finds it out for all, also for reads: they would be told what an old primary still has."""
    database = await Database.open(url, seconds=BUSY, size=4)

    async def used_at_once() -> set[int]:
        asked = (database.fetch("SELECT pg_backend_pid() FROM pg_sleep(0.2)") for _ in range(4))
        return {pid for ((pid,),) in await asyncio.gather(*asked)}

    async def write(db: Connection) -> None:
        await db.execute("DELETE FROM tombstones")

    before = await used_at_once()
    admin = await asyncpg.connect(url, server_settings={"default_transaction_read_only": "off"})
    try:
        await admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await admin.execute("SELECT pg_reload_conf()")
        await until(lambda: _read_only(url), "it can be written to")
        with pytest.raises(AgentServiceError, match="read-only") as refused:
            await database.write(write)
        assert is_unavailable_error(refused.value)
    finally:
        await admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
        await admin.execute("SELECT pg_reload_conf()")
        admin.terminate()
    await until(lambda: _writable(url), "it cannot be written to")
    await database.write(write)
    assert not before & await used_at_once()
    await database.close()


async def _read_only(url: str) -> bool:
    return await rows(url, "SHOW default_transaction_read_only") == [("on",)]


async def _writable(url: str) -> bool:
    return not await _read_only(url)


def is_unavailable_error(error: BaseException | None) -> bool:
    """Whether it is what callers are told of an outage."""
    return isinstance(error, AgentServiceError) and error.reason is Reason.STORE_UNAVAILABLE


async def _nobody_waits(url: str) -> bool:
    return not await rows(url, WAITING)


async def test_a_process_that_stands_still_in_a_transaction_keeps_nobody_from_its_rows(
    tmp_path: Path, server: Postgres, url: str
) -> None:
    """The server ends its transaction soon. When the process goes on, so does the call that it was working on."""
    async with ScriptedOpenAI(script(), api_key=API_KEY) as upstream:
        env = environment(upstream, AGENT_SERVICE_STORE_BUSY_SECONDS="2", AGENT_SERVICE_LEASE_SECONDS="60")
        async with running(tmp_path, env, "--store", url) as (process, client):
            paused = (await client.ask("ask", SECRET, run_id="run-1")).run
            mine = await asyncpg.connect(url)
            try:
                async with mine.transaction():
                    await mine.execute(LOCK)
                    answer = returned(paused.pending_tool_calls[0], "A-1")
                    answering = asyncio.ensure_future(client.answer("run-1", answer, request_id="answer-1"))
                    await until(lambda: rows(url, WAITING), "it does not get so far")
                    process.process.send_signal(signal.SIGSTOP)
                await until(lambda: rows(url, IDLE), "it is not in the middle of a transaction")
                async with mine.transaction():
                    await asyncio.wait_for(mine.execute(LOCK), 10)
            finally:
                process.process.send_signal(signal.SIGCONT)
                mine.terminate()
            await asyncio.wait({answering})
            if error := answering.exception():
                assert isinstance(error, grpc.aio.AioRpcError)
                assert is_unavailable(refusal_of(error))
            again = await client.answer("run-1", answer, request_id="answer-1")
            assert again.run.status == COMPLETED
