"""Owners whose writes fail, and starts and submits whose success is not heard of: the run goes on, once."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from agentrpc.v1 import runs_pb2

from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.domain.moves import UNKNOWN_OUTCOME, record_answer
from agent_service.domain.run import Claim
from agent_service.engine.loop import moved
from agent_service.stores.sqlite import SqliteStore
from tests.commits import Commit, Commits, commits, disk_full, io_error, lost_reply
from tests.scripted_openai import Reply, Request, ScriptedOpenAI, calls, says
from tests.server_tools import executions
from tests.service import SECRET, Client, event_kinds, kinds, refusal, returned, scripted
from tests.service import step as step_request
from tests.service import submit as submit_request
from tests.store_contract import TENANT, opened, step
from tests.test_sqlite_store import writer_held

__all__ = ["commits"]

pytestmark = pytest.mark.anyio

_TOOLS = ("tests.server_tools:add",)
_ANSWERS = (calls(("add", {"a": 1, "b": 2})), calls(("get_secret_code", {"name": "Alice"})), says("Thanks."))
_PAUSED, _COMPLETED = runs_pb2.RUN_STATUS_PAUSED, runs_pb2.RUN_STATUS_COMPLETED


def _answer(request: Request) -> Reply:
    """The same answer whenever the model is asked again."""
    return _ANSWERS[sum(message["role"] == "assistant" for message in request.messages)]


class _Case(NamedTuple):
    """A commit of the owner that fails in this way; model requests and executions in all, and the tool's return."""

    mark: str
    nth: int
    failure: Commit
    requests: int = 3
    executed: int = 1
    outcome: str = "3"


_CASES = {
    "an answer is not stored": _Case("tool_call", 1, disk_full, requests=4),
    "an answer is stored": _Case("tool_call", 1, lost_reply),
    "an execution is not begun": _Case("started", 1, io_error),
    "an execution is perhaps begun": _Case("started", 1, lost_reply, executed=0, outcome=UNKNOWN_OUTCOME),
    "an outcome is not stored": _Case("tool_return", 1, disk_full, outcome=UNKNOWN_OUTCOME),
    "an outcome is stored": _Case("tool_return", 1, lost_reply),
    "a pause is not stored": _Case("tool_call", 2, io_error, requests=4),
    "a pause is stored": _Case("tool_call", 2, lost_reply),
    "an end is not stored": _Case("assistant", 1, disk_full, requests=4),
    "an end is stored": _Case("assistant", 1, lost_reply),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store's file will be."""
    return tmp_path / "runs.sqlite3"


@asynccontextmanager
async def service(
    path: Path, monkeypatch: pytest.MonkeyPatch, script: Any
) -> AsyncIterator[tuple[Client, ScriptedOpenAI]]:
    """A service that soon takes over what was lost."""
    monkeypatch.setattr("agent_service.engine.upkeep.SWEEP_SECONDS", 0.05)
    async with scripted(script, str(path), tools=_TOOLS, lease_seconds=1.0) as both:
        yield both


@pytest.mark.parametrize("what", _CASES)
async def test_a_run_goes_on_after_a_write_of_its_owner_failed(
    path: Path, commits: Commits, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Its callers keep waiting and are answered. What was stored is not done again: the model is only asked once more
    if its answer was not stored, and the tool is executed at most once.
    """
    case, executed = _CASES[what], executions.total()
    async with service(path, monkeypatch, _answer) as (client, upstream):
        commits.at(case.mark, case.failure, nth=case.nth)
        paused = await client.ask("Add, then ask.", SECRET, run_id="run_1")
        assert paused.run.status == _PAUSED
        done = await client.answer("run_1", returned(paused.run.pending_tool_calls[0], "A-1"))
        assert done.run.status == _COMPLETED
        assert (len(upstream.requests), executions.total() - executed) == (case.requests, case.executed)
        assert commits.unused == []
        messages = await client.messages(done.run.conversation_id)
        assert kinds(messages) == ["user", "tool_call", "tool_return", "tool_call", "tool_return", "assistant"]
        assert messages[2].tool_return.text == case.outcome
        events = await client.watch("run_1")
        assert [event.sequence for event in events] == list(range(1, done.run.last_sequence + 1))
        assert event_kinds(events).count("run_stopped") == 2
        upstream.check_histories()


async def test_a_start_whose_reply_was_lost_is_joined_when_repeated(
    path: Path, commits: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller is told UNAVAILABLE although the run was stored; the repeat waits for its one answer."""
    async with service(path, monkeypatch, [says("Hello.")]) as (client, upstream):
        commits.at("run_accepted", lost_reply)
        request = step_request("Hi", run_id="run_1")
        assert (await refusal(client.agent.Step(request))).reason == "STORE_UNAVAILABLE"
        again = await client.agent.Step(request)
        assert kinds(again.messages) == ["user", "assistant"]
        assert (again.run.status, len(upstream.requests)) == (_COMPLETED, 1)


async def test_a_submit_whose_reply_was_lost_is_answered_when_repeated(
    path: Path, commits: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The return was taken the first time: the repeat has its receipt, and waits for the one answer to it."""
    async with service(path, monkeypatch, _ANSWERS[1:]) as (client, upstream):
        paused = (await client.ask("Ask.", SECRET, run_id="run_1")).run
        request = submit_request("run_1", returned(paused.pending_tool_calls[0], "A-1"), request_id="req_1")
        commits.at("tool_returns_accepted", lost_reply)
        assert (await refusal(client.agent.SubmitToolReturns(request))).reason == "STORE_UNAVAILABLE"
        again = await client.agent.SubmitToolReturns(request)
        assert list(again.receipt.accepted_tool_call_ids) == [paused.pending_tool_calls[0].tool_call_id]
        assert kinds(again.messages) == ["tool_return", "assistant"]
        assert (again.run.status, len(upstream.requests)) == (_COMPLETED, 2)
        assert await client.agent.SubmitToolReturns(request) == again


# The store


async def test_a_write_whose_reply_was_lost_is_looked_for(path: Path, commits: Commits) -> None:
    """Nobody was told of its events, so watchers must look at the log, as they do for what others wrote."""
    async with opened(str(path)) as kept:
        await kept.start()
        await kept.store.written_elsewhere()
        assert not await kept.store.written_elsewhere()
        commits.at("assistant", lost_reply)
        with pytest.raises(AgentServiceError):
            await kept.answer(text="Hi.")
        assert await kept.store.written_elsewhere()
        assert not await kept.store.written_elsewhere()


async def test_writes_that_are_perhaps_committed_are_not_repeated(path: Path, commits: Commits) -> None:
    """When nobody knows what became of the commit of two writes, both are UNAVAILABLE; each is stored once."""
    async with opened(str(path)) as kept:
        for run_id in ("run_1", "run_2"):
            await kept.start(run_id)
        commits.at("assistant", lost_reply)
        answer = moved(record_answer, step(text="Hi."))
        async with writer_held(kept):
            both = [
                asyncio.ensure_future(kept.store.owner_move(Claim(TENANT, run_id, 1), answer))
                for run_id in ("run_1", "run_2")
            ]
        for write in both:
            with pytest.raises(AgentServiceError) as failed:
                await write
            assert failed.value.reason is Reason.STORE_UNAVAILABLE
        for run_id in ("run_1", "run_2"):
            assert [event.sequence for event in await kept.events(run_id)] == [1, 2, 3, 4, 5]


async def test_the_store_goes_on_after_it_could_not_ask_for_the_writes_of_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question fails, and the writes after it are stored."""
    async with opened(str(path)) as kept:
        assert isinstance(kept.store, SqliteStore)

        def broken(db: sqlite3.Connection) -> int:
            raise sqlite3.OperationalError("disk I/O error")

        with monkeypatch.context() as broken_once:
            broken_once.setattr("agent_service.stores.sqlite_leases.data_version", broken)
            with pytest.raises(AgentServiceError, match="disk I/O error"):
                await asyncio.wait_for(kept.store.written_elsewhere(), 10)
        await asyncio.wait_for(kept.start(), 10)
