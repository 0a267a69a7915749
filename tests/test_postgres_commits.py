"""Writes that PostgreSQL commits together: what fails by itself, what fails with others, and what nobody knows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import pytest
from agentrpc.v1 import server_service_pb2

from agent_service.domain.registry import CallFilter
from agent_service.stores.postgres_batches import LANES
from agent_service.stores.postgres_database import Connection, Database
from tests.blocks import appends, make, remembering, value
from tests.persistent import COMPLETED, PAUSED, Callers, Watcher, is_unavailable, script, until
from tests.postgres import Postgres
from tests.scripted_openai import says
from tests.service import SECRET, Client, durable, refusal, returned, scripted, step, submit
from tests.store_contract import LEASE, PINNED, TENANT, opened, unchanged
from tests.store_contract import client as planned
from tests.stored import SCHEMA, emptied, rows

pytestmark = pytest.mark.anyio

PATIENCE = 20.0
"""How long calls wait for the database where none is to give up, in seconds."""
AT_ONCE = PATIENCE / 2
"""Within this time something happened without waiting for the end of that one."""


@pytest.fixture
async def url(postgres_server: Postgres) -> str:
    """An empty database."""
    return await emptied(postgres_server.url)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """Another program that uses the same tables."""
    connection = await asyncpg.connect(url, server_settings={"search_path": SCHEMA})
    try:
        yield connection
    finally:
        connection.terminate()


@asynccontextmanager
async def trigger(url: str, when: str, body: str) -> AsyncIterator[None]:
    """Does this at each such row, for this block."""
    async with connected(url) as db:
        await db.execute(f"CREATE FUNCTION interfere() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$")
        await db.execute(f"CREATE {when} EXECUTE FUNCTION interfere()")
        try:
            yield
        finally:
            await db.execute("DROP FUNCTION interfere CASCADE")


async def paused(client: Client, *run_ids: str) -> dict[str, Any]:
    """Runs that wait for a return, and the submits that give it to them."""
    submits = {}
    for run_id in run_ids:
        run = (await client.ask("ask", SECRET, run_id=run_id)).run
        answer = returned(run.pending_tool_calls[0], "A-1")
        submits[run_id] = submit(run_id, answer, request_id=f"answer-{run_id}", background=True)
    return submits


def waiting(url: str, for_what: str) -> Any:
    """Asks who of the service waits for this."""
    query = f"SELECT pid FROM pg_stat_activity WHERE application_name = 'agent-service' AND {for_what}"
    return lambda: rows(url, query)


async def terminate(url: str, which: str) -> None:
    """The server ends those connections of the service."""
    mine = f"application_name = 'agent-service' AND {which}"
    await rows(url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {mine}")


async def test_a_write_that_is_refused_does_not_fail_its_neighbours(url: str) -> None:
    """All others that were to be committed with it are. It can be repeated when the reason is gone."""
    others = [f"neighbour-{number}" for number in range(6)]
    async with scripted(script(), url, store_busy_seconds=PATIENCE) as (client, _):
        submits = await paused(client, "first", "second", "bad", *others)
        forbid = "TRIGGER forbid BEFORE UPDATE ON runs FOR EACH ROW WHEN (NEW.run_id = 'bad')"
        async with trigger(url, forbid, "RAISE check_violation;"):
            async with connected(url) as db, db.transaction():
                # Whatever comes while these two are held up is committed together.
                await db.execute("SELECT FROM runs WHERE run_id IN ('first', 'second') FOR UPDATE")
                calls = {}
                for run_id in ("first", "second"):
                    calls[run_id] = asyncio.ensure_future(client.agent.SubmitToolReturns(submits[run_id]))
                await until(lambda: _two(waiting(url, "wait_event_type = 'Lock'")), "nothing is held up")
                bad = asyncio.ensure_future(refusal(client.agent.SubmitToolReturns(submits["bad"])))
                for run_id in others:
                    calls[run_id] = asyncio.ensure_future(client.agent.SubmitToolReturns(submits[run_id]))
                for _ in range(5):
                    await client.server.GetServerInfo(server_service_pb2.GetServerInfoRequest())
            answers = await asyncio.gather(*calls.values())
            assert [len(answer.receipt.accepted_tool_call_ids) for answer in answers] == [1] * len(calls)
            assert (await bad).code == "INTERNAL"
            assert (await client.run("bad")).status == PAUSED
        await client.agent.SubmitToolReturns(submits["bad"])
        for run_id in submits:
            assert (await client.watch(run_id))[-1].run_stopped.status == COMPLETED


async def _two(found: Any) -> bool:
    return len(await found()) == LANES


async def test_a_commit_that_fails_may_be_repeated(url: str) -> None:
    """The connection ends while the database still checks what is to be committed: nothing is stored, the caller is
    told UNAVAILABLE without another attempt, and the repeat is accepted.
    """
    held = "CONSTRAINT TRIGGER held AFTER INSERT ON receipts DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
    async with scripted(script(), url, store_busy_seconds=PATIENCE) as (client, _):
        submits = await paused(client, "run-1")
        async with trigger(url, held, "PERFORM pg_sleep(60); RETURN NULL;"):
            refused = asyncio.ensure_future(refusal(client.agent.SubmitToolReturns(submits["run-1"])))
            await until(waiting(url, "wait_event = 'PgSleep' AND query = 'COMMIT'"), "no commit is held up")
            await terminate(url, "wait_event = 'PgSleep'")
            assert is_unavailable(await asyncio.wait_for(refused, AT_ONCE))
            assert (await client.run("run-1")).status == PAUSED
            assert await rows(url, f"SELECT FROM {SCHEMA}.receipts") == []
        answer = await client.agent.SubmitToolReturns(submits["run-1"])
        assert len(answer.receipt.accepted_tool_call_ids) == 1
        assert (await client.watch("run-1"))[-1].run_stopped.status == COMPLETED


@asynccontextmanager
async def commits_unheard_of(url: str) -> AsyncIterator[None]:
    """Commits are done, and not answered: they wait for a standby that never comes."""
    async with connected(url) as admin, connected(url) as probe:
        await admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        await admin.execute("SELECT pg_reload_conf()")
        await probe.execute("SET synchronous_commit = on")
        probing = asyncio.ensure_future(_commit_for_ever(probe))
        try:
            stuck = f"SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND pid = {probe.get_server_pid()}"
            await until(lambda: rows(url, stuck), "commits are answered")
            yield
        finally:
            await admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
            await admin.execute("SELECT pg_reload_conf()")
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)


async def _commit_for_ever(db: asyncpg.Connection[asyncpg.Record]) -> None:
    while True:
        await db.execute("SELECT pg_logical_emit_message(true, 'probe', '')")


async def test_a_commit_that_nobody_heard_of_is_found_by_the_repeat(url: str) -> None:
    """The connection ends after the commit and before its answer: the caller is told UNAVAILABLE, the repeat has the
    receipt that was stored, the run goes on by itself, and its watchers miss nothing.
    """
    unheard = "wait_event = 'SyncRep'"
    async with scripted(script(), url, store_busy_seconds=PATIENCE, lease_seconds=1) as (client, upstream):
        submits = await paused(client, "run-1")
        watcher = Watcher(client, "run-1")
        await watcher.live.wait()
        start = step("tell", run_id="run-2")
        async with commits_unheard_of(url):
            calls = [
                asyncio.ensure_future(refusal(client.agent.SubmitToolReturns(submits["run-1"]))),
                asyncio.ensure_future(refusal(client.agent.Step(start))),
            ]
            await until(lambda: _two(waiting(url, unheard)), "commits are answered")
            await terminate(url, unheard)
            assert all(map(is_unavailable, await asyncio.wait_for(asyncio.gather(*calls), AT_ONCE)))
        answer = await client.agent.SubmitToolReturns(submits["run-1"])
        assert list(answer.receipt.accepted_tool_call_ids) == [submits["run-1"].tool_returns[0].tool_call_id]
        assert (await client.agent.Step(start)).run.status == COMPLETED
        events = await watcher.ended()
        assert events == durable(await client.watch("run-1"))
        assert (await client.run("run-1")).status == COMPLETED
        accepted = [event for event in watcher.events if event.HasField("tool_returns_accepted")]
        assert len(accepted) == 1
        upstream.check_histories()


async def test_nothing_is_acknowledged_before_a_standby_has_it(url: str) -> None:
    """However often the call is repeated while the standby is away: what waits for it is neither shown nor told. A
    call that gave up must not make the database stop waiting.
    """
    async with scripted(script(), url, store_busy_seconds=0.3, lease_seconds=1) as (client, _):
        submits = await paused(client, "run-1")
        async with commits_unheard_of(url):
            for _ in range(4):
                assert is_unavailable(await refusal(client.agent.SubmitToolReturns(submits["run-1"])))
                assert (await client.run("run-1")).status == PAUSED
        answer = await Callers(client).insist(lambda: client.agent.SubmitToolReturns(submits["run-1"]))
        assert len(answer.receipt.accepted_tool_call_ids) == 1


async def test_what_the_database_rolled_back_is_not_taken_for_committed(url: str) -> None:
    """A transaction in which a statement failed ends with the word ROLLBACK, and without an error."""
    database = await Database.open(url, seconds=5, size=1)

    async def work(db: Connection) -> None:
        with suppress(asyncpg.PostgresError):
            await db.execute("SELECT no_such_function()")

    with pytest.raises(AssertionError, match="nothing was committed"):
        await database.write(work)
    await database.close()


async def test_a_commit_is_told_here_before_it_is_seen_as_written_elsewhere(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked how far a run is while the answer to a commit of this process is on its way, the store says so only when
    what was committed has been told: else its readers would look for it in the log, and lose deltas."""
    heard = asyncio.Event()
    transact = Database._transact

    async def late(self: Database, work: Any, begin: str, deadline: float) -> Any:
        result = await transact(self, work, begin, deadline)
        if begin == "BEGIN":
            await heard.wait()
        return result

    monkeypatch.setattr(Database, "_transact", late)
    async with opened(url) as kept:
        starting = asyncio.create_task(kept.start("run_1"))
        try:
            await until(lambda: rows(url, "SELECT 1 FROM runs"), "not committed")
            asked = asyncio.create_task(kept.store.standing([(TENANT, "run_1")]))
            await until(waiting(url, "state = 'idle' AND query LIKE '%last_sequence, epoch%'"), "not looked")
            assert (asked.done(), kept.told) == (False, [])
        finally:
            heard.set()
        assert (await asked)[TENANT, "run_1"].last_sequence == kept.told[0][2][-1].sequence
        await starting


async def test_runs_start_on_a_database_that_was_set_back(url: str) -> None:
    """A standby that lacked the last commits, or a backup, may not have what the runs of an agent are pinned to."""
    async with opened(url) as kept:
        await kept.start("run-1")
        await kept.start("run-2")
        async with connected(url) as db:
            await db.execute(
                "TRUNCATE pins, runs, conversations, messages, events, calls, receipts, memory_work RESTART IDENTITY"
            )
            await db.execute("INSERT INTO pins (tenant, sha256, codec, body) VALUES ('another', '', 1, '{}')")
        await kept.start("run-1")
        assert await kept.store.get_pinned(TENANT, "run-1") == PINNED


async def test_a_write_that_waits_for_a_lock_keeps_nobody_from_hearing_of_others(url: str) -> None:
    """How far runs are is said while another program holds the row of one that is to be moved."""
    async with opened(url) as kept:
        await kept.start("run_1")
        async with connected(url) as db, db.transaction():
            await db.execute("SELECT FROM runs FOR UPDATE")
            moving = asyncio.create_task(kept.store.move(TENANT, "run_1", unchanged))
            await until(waiting(url, "wait_event_type = 'Lock'"), "not blocked")
            assert (await kept.store.standing([(TENANT, "run_1")])).keys() == {(TENANT, "run_1")}
            assert not moving.done()
        await moving


async def test_an_edit_of_memory_waits_for_no_other_block(url: str) -> None:
    """Such as one that all agents share: another program holds it, and the block beside it is edited all the same."""
    async with scripted([appends("notes", "x"), says("Done.")], url, store_busy_seconds=PATIENCE) as (client, _):
        await make(client, "law", read_only=True)
        await make(client, "notes")
        await remembering(client, "law", "notes")
        async with connected(url) as db, db.transaction():
            await db.execute("SELECT FROM memory_blocks WHERE label = 'law' FOR UPDATE")
            await asyncio.wait_for(client.ask("Go.", agent_id="keeper"), AT_ONCE)
        assert await value(client, "notes") == "x"


async def test_a_call_that_is_settled_while_a_worker_asks_for_it_is_given_to_nobody(url: str) -> None:
    """The worker finds it pending, waits for whoever settles it, and then finds that it is not any more."""
    async with opened(url) as kept:
        await kept.paused(planned("c1"))
        async with connected(url) as db, db.transaction():
            await db.execute("SELECT FROM runs FOR UPDATE")
            claiming = asyncio.create_task(kept.store.claim_calls(TENANT, CallFilter(), "worker", LEASE, 1))
            await until(waiting(url, "wait_event_type = 'Lock'"), "not blocked")
            await db.execute("UPDATE calls SET state = 'returned'")
        assert await claiming == ()
