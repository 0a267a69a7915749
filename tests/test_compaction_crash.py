"""A server process dies, or a commit fails, around a compaction: it is there as a whole or not at all, and once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from agentrpc.v1 import events_pb2, runs_pb2

from tests.commits import FAILURES, Commit, Commits, commits, lost_reply
from tests.process import API_KEY, environment, running
from tests.scripted_openai import ScriptedOpenAI, says, silent
from tests.service import event_kinds, kinds, scripted
from tests.test_compaction import SMALL, grown, long, told
from tests.test_lost_owner import ended

__all__ = ["commits"]

pytestmark = pytest.mark.anyio

COMPACTED = ["user", "assistant", "user", "assistant", "user", "summary", "assistant"]


def check(events: list[events_pb2.RunEvent]) -> None:
    """The run came to its end with one compaction."""
    assert events[-1].run_stopped.stop_reason == runs_pb2.STOP_REASON_END_TURN
    assert event_kinds(events).count("compaction") == 1


@pytest.mark.parametrize("stored", [False, True], ids=["while it is asked for", "right after it was stored"])
async def test_a_process_that_dies_at_a_summary(stored: bool, tmp_path: Path, shared_store: str) -> None:
    """Before it was stored it is asked for anew, in the process that goes on; after that it is not."""
    before, after = ([says("S"), silent()], []) if stored else ([silent()], [says("S")])
    script = [says("one"), says("two"), *before, *after, says("three")]
    async with ScriptedOpenAI(script, api_key=API_KEY) as upstream:
        env = environment(upstream, AGENT_SERVICE_LEASE_SECONDS="1")
        async with running(tmp_path, env, "--store", shared_store) as (server, client):
            fields = await grown(client, SMALL, long("A"), long("B"))
            await client.ask(long("C"), run_id="run-3", background=True, **fields)
            await upstream.wait_for_requests(2 + len(before))
            await server.kill()
        async with running(tmp_path, env, "--store", shared_store) as (_, client):
            check(await ended(client, "run-3"))
            assert kinds(await client.messages(fields["conversation_id"])) == COMPACTED
            assert told(upstream.requests[-1]) == ["summary S", "user C"]
            assert (await client.run("run-3")).model_attempts == 3
        assert upstream.request_count == 5


@pytest.mark.parametrize("failure", [*FAILURES, lost_reply], ids=lambda failure: failure.__name__)
async def test_a_commit_of_a_compaction_that_fails(failure: Commit, tmp_path: Path, commits: Commits) -> None:
    """Whether it was committed is seen by what is stored, and the run goes on from there."""
    committed = failure is lost_reply
    script: list[Any] = [says("one"), says("two"), says("S"), *([] if committed else [says("S")]), says("three")]
    async with scripted(script, str(tmp_path / "runs.sqlite3"), lease_seconds=1.0) as (client, upstream):
        fields = await grown(client, SMALL, long("A"), long("B"))
        commits.at("compaction", failure)
        await client.ask(long("C"), run_id="run-3", background=True, **fields)
        check(await ended(client, "run-3"))
        assert commits.unused == []
        assert kinds(await client.messages(fields["conversation_id"])) == COMPACTED
        assert told(upstream.requests[-1]) == ["summary S", "user C"]
