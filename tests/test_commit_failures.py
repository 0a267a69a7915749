"""Commits that are late, that fail, or whose success is not heard of: what callers, models and tools see of them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import runs_pb2, server_service_pb2

from tests.commits import FAILURES, Commit, Commits, commits, lost_reply
from tests.scripted_openai import ScriptedOpenAI, calls, says, silent
from tests.server_tools import executions
from tests.service import SECRET, Client, Refusal, event_kinds, kinds, refusal, returned, scripted, serving
from tests.service import step as step_request
from tests.service import submit as submit_request

__all__ = ["commits"]

pytestmark = pytest.mark.anyio

_TOOLS = ("tests.server_tools:add",)
_ADDS = calls(("add", {"a": 1, "b": 2}))
_ASKS = calls(("get_secret_code", {"name": "Alice"}))
_ASKS_TWICE = calls(("get_secret_code", {"name": "Alice"}), ("get_secret_code", {"name": "Bob"}))
_SCRIPT = (_ADDS, _ASKS, says("Thanks."))
_PAUSED, _CANCELLED = runs_pb2.RUN_STATUS_PAUSED, runs_pb2.RUN_STATUS_CANCELLED


class _Before(NamedTuple):
    """A commit of the run below, and what may have happened before it: the last event, model requests, executions."""

    mark: str
    nth: int
    sequence: int
    requests: int
    executed: int


_POINTS = {
    "a start": _Before("run_accepted", 1, 0, 0, 0),
    "a model answer": _Before("tool_call", 1, 3, 1, 0),
    "the start of a server tool": _Before("started", 1, 4, 1, 0),
    "the outcome of a server tool": _Before("tool_return", 1, 4, 1, 1),
    "a pause": _Before("tool_call", 2, 5, 2, 1),
    "a submit": _Before("tool_returns_accepted", 1, 7, 2, 1),
    "an end": _Before("assistant", 1, 10, 3, 1),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store's file will be."""
    return tmp_path / "runs.sqlite3"


@asynccontextmanager
async def service(path: Path, *script: Any) -> AsyncIterator[tuple[Client, ScriptedOpenAI]]:
    """A service on the file, and its model endpoint."""
    async with scripted(script, str(path), tools=_TOOLS) as both:
        yield both


async def blocking(client: Client, seen: list[int]) -> None:
    """The run by Step and SubmitToolReturns; notes the last event that each answer tells."""
    paused = await client.ask("Add, then ask.", SECRET, run_id="run_1")
    seen.append(paused.run.last_sequence)
    answer = returned(paused.run.pending_tool_calls[0], "A-1")
    seen.append((await client.answer("run_1", answer, request_id="req_1")).run.last_sequence)


async def streamed(client: Client, seen: list[int]) -> None:
    """The same by Stream and StreamToolReturns; notes each event."""
    start = pb.StreamRequest(step=step_request("Add, then ask.", SECRET, run_id="run_1"))
    event = None
    async for response in client.agent.Stream(start):
        event = response.event
        seen.append(event.sequence)
    assert event is not None
    answer = submit_request("run_1", returned(event.run_stopped.remaining[0], "A-1"), request_id="req_1")
    async for resumed in client.agent.StreamToolReturns(pb.StreamToolReturnsRequest(submit=answer)):
        event = resumed.event
        seen.append(event.sequence)


async def arrived(client: Client) -> None:
    """Lets everything that is on its way to a client arrive."""
    for _ in range(5):
        await client.server.GetServerInfo(server_service_pb2.GetServerInfoRequest())


async def whole_log(client: Client, run_id: str = "run_1") -> list[str]:
    """The kinds of all events of a run that is over; their numbers have no gap."""
    events = await client.watch(run_id)
    stored = [event for event in events if event.WhichOneof("payload") != "live"]
    assert [event.sequence for event in stored] == list(range(1, len(stored) + 1))
    return event_kinds(stored)


def is_unavailable(refused: Refusal) -> bool:
    """Whether the caller was told that the store is unavailable, and when to repeat the call."""
    told = (refused.code, refused.reason, (refused.retry_seconds or 0) > 0)
    return told == ("UNAVAILABLE", "STORE_UNAVAILABLE", True)


_LOG = [
    *("run_accepted", "message_stored", "run_started", "message_stored", "message_stored"),
    *("message_stored", "run_stopped"),
    *("tool_returns_accepted", "message_stored", "run_resumed", "message_stored", "run_stopped"),
]


# Late commits


@pytest.mark.parametrize("play", [blocking, streamed])
@pytest.mark.parametrize("point", _POINTS)
async def test_nothing_is_seen_or_done_before_its_commit(path: Path, commits: Commits, point: str, play: Any) -> None:
    """While a commit lasts, no event or answer of it is seen, and nothing that follows from it is done: no model
    request, no execution. Then all goes on.
    """
    before, seen, executed = _POINTS[point], list[int](), executions.total()
    async with service(path, *_SCRIPT) as (client, upstream):
        with commits.held(before.mark, nth=before.nth) as held:
            playing = asyncio.ensure_future(play(client, seen))
            await held.reached.wait()
            await arrived(client)
            assert max(seen, default=0) <= before.sequence
            assert (len(upstream.requests), executions.total() - executed) == (before.requests, before.executed)
            if before.sequence:
                assert (await client.run("run_1")).last_sequence == before.sequence
            else:
                assert (await refusal(client.run("run_1"))).code == "NOT_FOUND"
        await playing
        assert (seen[-1], await whole_log(client)) == (len(_LOG), _LOG)
        assert (len(upstream.requests), executions.total() - executed) == (3, 1)


async def test_a_cancel_is_not_seen_before_its_commit(path: Path, commits: Commits) -> None:
    """Neither by its caller nor by a watcher, and the model request goes on until then."""
    async with service(path, silent()) as (client, upstream):
        await client.ask("Hi", run_id="run_1", background=True)
        await upstream.wait_for_requests(1)
        with commits.held("cancelled") as held:
            watching = asyncio.ensure_future(client.watch("run_1"))
            cancelling = asyncio.ensure_future(client.cancel("run_1"))
            await held.reached.wait()
            await arrived(client)
            assert not cancelling.done()
            assert not watching.done()
            assert (await client.run("run_1")).status == runs_pb2.RUN_STATUS_RUNNING
            assert upstream.disconnected.count == 0
        assert (await cancelling).status == _CANCELLED
        assert event_kinds(await watching)[-1] == "run_stopped"
        await upstream.disconnected.reach(1)


async def test_what_was_committed_and_not_published_is_there_after_a_crash(path: Path, commits: Commits) -> None:
    """A process dies between the commit of a pause and telling it: nobody had seen the pause, and the next process on
    the file shows it and takes the returns.
    """
    seen: list[int] = []
    left = path.with_name("left.sqlite3")
    async with service(path, _ADDS, _ASKS, says("Thanks."), says("Thanks.")) as (client, upstream):
        with commits.held("tool_call", nth=2, after=True) as held:
            playing = asyncio.ensure_future(streamed(client, seen))
            await held.reached.wait()
            await arrived(client)
            assert max(seen) <= _POINTS["a pause"].sequence
            for suffix in ("", "-wal"):
                shutil.copy(f"{path}{suffix}", f"{left}{suffix}")
        await playing
        async with serving(upstream, str(left), tools=_TOOLS) as client:
            run = await client.run("run_1")
            assert (run.status, run.last_sequence) == (_PAUSED, 7)
            await client.answer("run_1", returned(run.pending_tool_calls[0], "A-1"))
            assert await whole_log(client) == _LOG


# Commits that fail


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_start_that_cannot_be_committed_did_not_happen(path: Path, commits: Commits, failure: Commit) -> None:
    """It is UNAVAILABLE, there is no run and no model request; the repeat starts the run."""
    async with service(path, says("Hello.")) as (client, upstream):
        commits.at("run_accepted", failure)
        assert is_unavailable(await refusal(client.agent.Step(step_request("Hi", run_id="run_1"))))
        assert (await refusal(client.run("run_1"))).code == "NOT_FOUND"
        assert (len(upstream.requests), commits.unused) == (0, [])
        again = await client.ask("Hi", run_id="run_1")
        assert kinds(again.messages) == ["user", "assistant"]
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_submit_that_cannot_be_committed_did_not_happen(path: Path, commits: Commits, failure: Commit) -> None:
    """It is UNAVAILABLE, the pause stands and the model is not asked; the repeat is accepted and told once."""
    async with service(path, *_SCRIPT) as (client, upstream):
        paused = (await client.ask("Add, then ask.", SECRET, run_id="run_1")).run
        answer = submit_request("run_1", returned(paused.pending_tool_calls[0], "A-1"), request_id="req_1")
        commits.at("tool_returns_accepted", failure)
        assert is_unavailable(await refusal(client.agent.SubmitToolReturns(answer)))
        assert (await client.run("run_1"), len(upstream.requests)) == (paused, 2)
        done = await client.agent.SubmitToolReturns(answer)
        assert (list(done.receipt.accepted_tool_call_ids), len(upstream.requests)) == (
            [paused.pending_tool_calls[0].tool_call_id],
            3,
        )
        assert await whole_log(client) == _LOG


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_cancel_that_cannot_be_committed_did_not_happen(path: Path, commits: Commits, failure: Commit) -> None:
    """It is UNAVAILABLE and the pause stands; the repeat cancels."""
    async with service(path, _ASKS) as (client, _):
        paused = (await client.ask("Ask.", SECRET, run_id="run_1")).run
        commits.at("cancelled", failure)
        assert is_unavailable(await refusal(client.cancel("run_1")))
        assert await client.run("run_1") == paused
        assert (await client.cancel("run_1")).status == _CANCELLED
        assert (await whole_log(client))[-2:] == ["message_stored", "run_stopped"]


# Commits whose success is not heard of


async def test_a_submit_whose_reply_was_lost_has_the_same_receipt_when_repeated(path: Path, commits: Commits) -> None:
    """The caller is told UNAVAILABLE although the return was taken; the repeat changes nothing."""
    async with service(path, _ASKS_TWICE) as (client, _):
        first = (await client.ask("Ask.", SECRET, run_id="run_1")).run.pending_tool_calls[0]
        answer = submit_request("run_1", returned(first, "A-1"), request_id="req_1")
        commits.at("tool_returns_accepted", lost_reply)
        assert is_unavailable(await refusal(client.agent.SubmitToolReturns(answer)))
        stored = await client.run("run_1")
        again = await client.agent.SubmitToolReturns(answer)
        assert again.receipt.request_id == "req_1"
        assert list(again.receipt.accepted_tool_call_ids) == [first.tool_call_id]
        assert len(again.receipt.remaining) == 1
        assert again.run == stored == await client.run("run_1")
        watched = await client.watch("run_1", stored.last_sequence - 3, stop_at="STOP_AT_NEXT_STOP")
        assert event_kinds(watched)[:3] == ["tool_returns_accepted", "message_stored", "run_stopped"]


async def test_a_cancel_whose_reply_was_lost_is_answered_when_repeated(path: Path, commits: Commits) -> None:
    """The run was cancelled the first time; the model request is dropped at the latest with the repeat."""
    async with service(path, silent()) as (client, upstream):
        await client.ask("Hi", run_id="run_1", background=True)
        await upstream.wait_for_requests(1)
        commits.at("cancelled", lost_reply)
        assert is_unavailable(await refusal(client.cancel("run_1")))
        stored = await client.run("run_1")
        assert stored.status == _CANCELLED
        assert await client.cancel("run_1") == stored
        await upstream.disconnected.reach(1)
        assert (await whole_log(client))[-1] == "run_stopped"
