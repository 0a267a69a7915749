"""Edits of memory blocks over failing commits and dying processes: each is there exactly once, as its outcome is."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.blocks import appends, block, make, remembering, value
from tests.commits import FAILURES, Commit, Commits, commits, lost_reply
from tests.process import running
from tests.ruled import outcomes
from tests.scripted_openai import Reply, Request, calls, says
from tests.service import scripted
from tests.test_lost_owner import ended, world

__all__ = ["commits"]

pytestmark = pytest.mark.anyio

EDITS = 12
"""What the model appends in a run, one text with each answer."""


def counts(request: Request) -> Reply:
    """The model appends the next number, until it has appended all."""
    done = sum(message["role"] == "assistant" for message in request.messages)
    return appends("notes", f"<{done}>") if done < EDITS else says("Done.")


def edits_once(request: Request) -> Reply:
    """The model edits with its first answer, also when it is asked again for it."""
    return says("Done.") if request.new_returns else appends("notes", "x")


@pytest.mark.parametrize("failure", FAILURES)
async def test_an_edit_that_cannot_be_committed_has_no_outcome_either(
    tmp_path: Path, commits: Commits, monkeypatch: pytest.MonkeyPatch, failure: Commit
) -> None:
    """Both come with the next commit: the call had not started, so nothing is unknown."""
    monkeypatch.setattr("agent_service.engine.upkeep.SWEEP_SECONDS", 0.05)
    async with scripted(edits_once, str(tmp_path / "runs.sqlite3"), lease_seconds=1.0) as (client, upstream):
        await make(client, "notes")
        await remembering(client, "notes")
        commits.at("notes", failure)
        await client.ask("Go.", agent_id="keeper", run_id="run-1", background=True)
        events = await ended(client, "run-1")
        assert commits.unused == []
        texts = outcomes(event.message_stored.message for event in events)
        assert texts == [("memory_append", "Memory block 'notes' now has 1 of at most 5000 characters.")]
        assert ((await block(client, "notes")).revision, len(upstream.requests)) == (2, 2)


async def test_an_edit_whose_commit_was_not_heard_of_is_not_made_twice(
    tmp_path: Path, commits: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outcome was stored with it."""
    monkeypatch.setattr("agent_service.engine.upkeep.SWEEP_SECONDS", 0.05)
    async with scripted(edits_once, str(tmp_path / "runs.sqlite3"), lease_seconds=1.0) as (client, _):
        await make(client, "notes")
        await remembering(client, "notes")
        commits.at("notes", lost_reply)
        await client.ask("Go.", agent_id="keeper", run_id="run-1", background=True)
        await ended(client, "run-1")
        assert (commits.unused, await value(client, "notes")) == ([], "x")


async def test_nothing_of_an_edit_is_seen_before_its_commit(tmp_path: Path, commits: Commits) -> None:
    """Neither the value nor the outcome; then both."""
    async with scripted(edits_once, str(tmp_path / "runs.sqlite3")) as (client, upstream):
        await make(client, "notes")
        await remembering(client, "notes")
        with commits.held("notes") as held:
            await client.ask("Go.", agent_id="keeper", run_id="run-1", background=True)
            await held.reached.wait()
            assert await value(client, "notes") == ""
            stored = await client.messages((await client.run("run-1")).conversation_id)
            assert (outcomes(stored), len(upstream.requests)) == ([], 1)
        await ended(client, "run-1")
        assert await value(client, "notes") == "x"


async def test_an_edit_that_had_not_begun_is_made_by_the_next_process(tmp_path: Path, shared_store: str) -> None:
    """The process dies in the server tool before it: that one's outcome is unknown, the edit is made once."""
    both = calls(("pay", {"amount": 7}), ("memory_append", {"label": "notes", "text": "paid"}))
    async with world([both, says("Done.")], AGENT_SERVICE_LEASE_SECONDS="1") as (upstream, desk, env):
        async with running(tmp_path, env, "--store", shared_store) as (server, client):
            await make(client, "notes")
            await remembering(client, "notes", server_tools=["pay"])
            await client.ask("Go.", agent_id="keeper", run_id="run-1", background=True)
            (await desk.execution()).die()
            await server.ended()
        async with running(tmp_path, env, "--store", shared_store) as (_, client):
            await ended(client, "run-1")
            assert await value(client, "notes") == "paid"
            unknown, edited = upstream.requests[1].new_returns
            assert "unknown" in unknown
            assert "now has 4 of" in edited


async def test_each_edit_is_there_once_whenever_the_process_dies(tmp_path: Path, shared_store: str) -> None:
    """Killed at random moments of a run that edits all the time; no outcome is unknown."""
    dice = random.Random(7)
    async with world(counts, AGENT_SERVICE_LEASE_SECONDS="1") as (upstream, _, env):
        async with running(tmp_path, env, "--store", shared_store) as (server, client):
            await make(client, "notes")
            await remembering(client, "notes")
            await client.ask("Go.", agent_id="keeper", run_id="run-1", background=True)
            await upstream.wait_for_requests(2)
            await server.kill()
        for _ in range(3):
            asked = len(upstream.requests)
            async with running(tmp_path, env, "--store", shared_store) as (server, _):
                await upstream.wait_for_requests(asked + dice.randint(2, 4))
                await server.kill()
        async with running(tmp_path, env, "--store", shared_store) as (_, client):
            events = await asyncio.wait_for(ended(client, "run-1"), 30)
            texts = [text for _, text in outcomes(event.message_stored.message for event in events)]
            assert (len(texts), [text for text in texts if "now has" not in text]) == (EDITS, [])
            assert await value(client, "notes") == "\n".join(f"<{n}>" for n in range(EDITS))
            assert (await block(client, "notes")).revision == EDITS + 1
        upstream.check_histories()
