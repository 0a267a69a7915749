"""Tool rules over the death of server processes: what was called counts once, whoever goes on with the run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from agentrpc.v1 import runs_pb2

from tests.process import running
from tests.ruled import A, B, answer, asks, child, defies, most, outcomes, rule
from tests.scripted_openai import calls, says
from tests.service import returned
from tests.test_lost_owner import ended, world

pytestmark = pytest.mark.anyio

LOOKS_UP = calls(("look_up", {"name": "Alice"}))


async def test_rules_go_on_in_another_process_after_a_pause(tmp_path: Path, shared_store: str) -> None:
    """Counts, the last call and what was required are read from the store."""
    store = ("--store", shared_store)
    script = [asks("a"), asks("b"), defies("a"), says("Done.")]
    rules = [most("a", 1), child("a", "b"), rule(required_before_exit="b"), rule(terminal="b")]
    async with world(script) as (upstream, _, env):
        async with running(tmp_path, env, *store) as (server, client):
            await client.create_agent("strict", tool_rules=rules)
            run = (await client.ask("Go.", A, B, agent_id="strict")).run
            await server.kill()
        async with running(tmp_path, env, *store) as (server, client):
            (call,) = run.pending_tool_calls
            failed = returned(call, "broken", status="TOOL_RETURN_STATUS_ERROR")
            run = (await client.answer(run.run_id, failed)).run
            assert (upstream.requests[1].tool_names, run.pending_tool_calls[0].name) == (["b"], "b")
            await server.kill()
        async with running(tmp_path, env, *store) as (server, client):
            again = await answer(client, run, "broken", status="TOOL_RETURN_STATUS_ERROR")
            assert "'a' was called once, which is the most in a run" in outcomes(again.messages)[1][1]
            assert again.run.stop_reason == runs_pb2.STOP_REASON_END_TURN
        upstream.check_histories()


async def test_a_call_that_is_executed_again_counts_once(tmp_path: Path, shared_store: str) -> None:
    """The process dies in the midst of a server tool that may be repeated; the one that goes on knows the call, and its
    output decides what comes next."""
    store = ("--store", shared_store)
    script = [LOOKS_UP, LOOKS_UP, says("Not found.")]
    rules = [most("look_up", 2), rule(conditional={"tool_name": "look_up", "tools_by_output": {"no": "look_up"}})]
    async with world(script, AGENT_SERVICE_LEASE_SECONDS="1") as (upstream, desk, env):
        async with running(tmp_path, env, *store) as (server, client):
            await client.create_agent("strict", server_tools=["look_up", "pay"], tool_rules=rules)
            await client.ask("Go.", agent_id="strict", run_id="run-1", background=True)
            execution = await desk.execution()
            execution.die()
            await server.ended()
        async with running(tmp_path, env, *store) as (_, client):
            again = await desk.execution()
            assert (again.tool_call_id, again.attempt) == (execution.tool_call_id, 2)
            again.answer("no")
            (await desk.execution()).answer("maybe")
            await ended(client, "run-1")
            assert [request.tool_names for request in upstream.requests] == [["look_up", "pay"], ["look_up"], ["pay"]]


async def test_a_terminal_tool_whose_outcome_is_unknown_does_not_end_the_run(tmp_path: Path, shared_store: str) -> None:
    """The model is told, and goes on."""
    store = ("--store", shared_store)
    script = [calls(("pay", {"amount": 7})), says("I do not know.")]
    async with world(script, AGENT_SERVICE_LEASE_SECONDS="1") as (upstream, desk, env):
        async with running(tmp_path, env, *store) as (server, client):
            await client.create_agent("payer", server_tools=["pay"], tool_rules=[rule(terminal="pay")])
            await client.ask("Go.", agent_id="payer", run_id="run-1", background=True)
            (await desk.execution()).die()
            await server.ended()
        async with running(tmp_path, env, *store) as (_, client):
            events = await ended(client, "run-1")
            assert events[-1].run_stopped.stop_reason == runs_pb2.STOP_REASON_END_TURN
            assert "unknown" in upstream.requests[1].new_returns[0]


async def test_two_processes_follow_the_rules_of_one_run(tmp_path: Path, shared_store: str) -> None:
    """Started at one and answered at the other, which asks the model; and back."""
    store = ("--store", shared_store)
    script = [asks("a"), asks("b")]
    async with (
        world(script) as (upstream, _, env),
        running(tmp_path, env, *store) as (_, here),
        running(tmp_path, env, *store) as (_, there),
    ):
        run = (await here.ask("Go.", A, B, tool_rules=[child("a", "b"), rule(terminal="b")])).run
        async with asyncio.timeout(20):
            run = (await answer(there, run, "one")).run
            over = (await answer(here, run, "two")).run
        assert over.stop_reason == runs_pb2.STOP_REASON_TOOL_RULE
        assert upstream.requests[1].tool_names == ["b"]
