"""Server processes die, or are stopped, while they execute several calls of one answer."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
from agentrpc.v1 import runs_pb2

from tests.process import lease, running
from tests.scripted_openai import calls, says
from tests.service import SECRET, returned
from tests.test_batches import CODE, ORDER, PAY, executions, searches, until_told
from tests.test_lost_owner import crashes, ended, stop_between_writes, world
from tests.test_server_tools import approve

pytestmark = pytest.mark.anyio

FETCH = ("fetch", {"url": "x"})
UNKNOWN = "Outcome unknown"


async def test_a_crash_loses_at_most_what_had_no_outcome(tmp_path: Path, shared_store: str) -> None:
    """Of four calls that were executed together, what had returned stays so, those of idempotent tools start again, and
    the outcome of the other is unknown. The caller answered meanwhile, and the model reads all in its own order."""
    store = ("--store", shared_store)
    script = [calls(CODE, *searches(2), FETCH, ("search", {"query": "2"}), PAY), says("Done.")]
    async with world(script, **lease(shared_store)) as (upstream, desk, env):
        async with running(tmp_path, env, *store) as (server, client):
            await client.ask("All.", SECRET, run_id="run-1", background=True)
            before = await executions(desk, 4)
            assert set(before) == {"0", "1", "fetch", "2"}
            before["1"].answer("found 1")
            await until_told(client, "run-1", "found 1")
            (code,) = (await client.run("run-1")).pending_tool_calls
            await client.answer("run-1", returned(code, "SECRET-42"), background=True)
            before["fetch"].die()
            await server.ended()
        async with running(tmp_path, env, *store) as (server, client):
            after = await executions(desk, 2)
            assert set(after) == {"0", "2"}
            for name, execution in after.items():
                assert (execution.tool_call_id, execution.attempt) == (before[name].tool_call_id, 2)
                execution.answer(f"found {name}")
            (await executions(desk, 1))["pay"].answer("paid")
            events = await ended(client, "run-1")
            assert events[-1].run_stopped.status == runs_pb2.RUN_STATUS_COMPLETED
            returns = upstream.requests[1].new_returns
            assert [text.partition(":")[0] for text in returns] == [
                "SECRET-42",
                "found 0",
                "found 1",
                UNKNOWN,
                "found 2",
                "paid",
            ]
            assert (desk.count, upstream.request_count) == (7, 2)
            assert not crashes(server)
        upstream.check_histories()


async def test_an_owner_that_was_stopped_writes_no_outcome_of_what_it_executed(
    tmp_path: Path, shared_store: str
) -> None:
    """Stopped for longer than its lease while it executes two calls: another process executes them anew, and what the
    first one brings is refused."""
    store = ("--store", shared_store)
    script = [calls(*searches(2)), says("Done.")]
    async with (
        world(script, AGENT_SERVICE_LEASE_SECONDS="1") as (upstream, desk, env),
        running(tmp_path, env, *store) as (a, at_a),
        running(tmp_path, env, *store) as (b, at_b),
    ):
        await at_a.ask("Find.", run_id="run-1", background=True)
        stale = await executions(desk, 2)
        await stop_between_writes(a, shared_store)
        for execution in stale.values():
            execution.answer("stale")
        for name, execution in (await executions(desk, 2)).items():
            assert (execution.attempt, execution.pid) == (2, b.process.pid)
            execution.answer(f"found {name}")
        events = await ended(at_b, "run-1")
        a.process.send_signal(signal.SIGCONT)
        await a.logged("run.taken_away", "run-1")
        assert await ended(at_a, "run-1") == events
        assert upstream.requests[1].new_returns == ["found 0", "found 1"]
        assert (desk.count, upstream.request_count) == (4, 2)
        assert not crashes(a, b)


async def test_a_process_that_stops_leaves_all_calls_to_the_next_one(tmp_path: Path, shared_store: str) -> None:
    """SIGTERM while two calls are executed: the process ends in order, and the next one executes them again."""
    store = ("--store", shared_store)
    script = [calls(*searches(2)), says("Done.")]
    more = lease(shared_store) | {"AGENT_SERVICE_GRACE_SECONDS": "0"}
    async with world(script, **more) as (upstream, desk, env):
        async with running(tmp_path, env, *store) as (server, client):
            await client.ask("Find.", run_id="run-1", background=True)
            before = await executions(desk, 2)
            server.terminate()
            for execution in before.values():
                await execution.ended()
            assert await server.ended() == 0
            assert not crashes(server)
        async with running(tmp_path, env, *store) as (_, client):
            for name, execution in (await executions(desk, 2)).items():
                assert execution.tool_call_id == before[name].tool_call_id
                execution.answer(f"found {name}")
            await ended(client, "run-1")
            assert upstream.requests[1].new_returns == ["found 0", "found 1"]


async def test_server_tools_that_wait_do_so_over_the_death_of_their_process(tmp_path: Path, shared_store: str) -> None:
    """The start said so once; whoever takes the last answer executes them, each once."""
    store = ("--store", shared_store)
    script = [calls(PAY, CODE, ORDER), says("Done.")]
    async with world(script, **lease(shared_store)) as (upstream, desk, env):
        async with running(tmp_path, env, *store) as (server, client):
            paused = (await client.ask("All.", SECRET, run_id="run-1", server_tools_wait=True)).run
            code, order = paused.pending_tool_calls
            await client.answer("run-1", approvals=[approve(order)])
            await server.kill()
        async with running(tmp_path, env, *store) as (server, client):
            assert desk.count == 0
            resuming = asyncio.ensure_future(client.answer("run-1", returned(code, "SECRET-42")))
            (await executions(desk, 1))["pay"].answer("paid")
            (await executions(desk, 1))["order"].answer("ordered")
            await resuming
            assert upstream.requests[1].new_returns == ["paid", "SECRET-42", "ordered"]
            assert (desk.count, upstream.request_count) == (2, 2)
