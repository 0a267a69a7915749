"""What else happens to a run while its conversation is summed up: timeouts, other starts; and other ways to call."""

from __future__ import annotations

import pytest
from agentrpc.v1 import agent_service_pb2, runs_pb2
from google.protobuf.duration_pb2 import Duration

from tests.scripted_openai import Gate, gated, says, silent
from tests.service import kinds, scripted
from tests.test_compaction import SMALL, compactions, grown, long, told
from tests.test_lost_owner import ended

pytestmark = pytest.mark.anyio


async def test_a_run_that_times_out_while_the_summary_is_written_stores_none_of_it(store: str) -> None:
    """The request counts as an attempt, and the next run asks for the summary anew."""
    script = [says("one"), says("two"), silent(), says("S"), says("four")]
    async with scripted(script, store) as (client, upstream):
        fields = await grown(client, SMALL, long("A"), long("B"))
        late = (await client.ask(long("C"), run_timeout=Duration(nanos=200_000_000), **fields)).run
        assert late.error.message == "the run was running for longer than its timeout of 0.2 s"
        assert (late.status, late.model_attempts) == (runs_pb2.RUN_STATUS_FAILED, 1)
        assert "summary" not in kinds(await client.messages(fields["conversation_id"]))
        await client.ask("D:", **fields)
        assert told(upstream.requests[-1]) == ["summary S", "user D"]


async def test_a_start_that_supersedes_a_run_while_the_summary_is_written(store: str) -> None:
    """The old run is cancelled, nothing of its summary is stored, and the new run has its own."""
    script = [says("one"), says("two"), silent(), says("S"), says("four")]
    async with scripted(script, store) as (client, upstream):
        fields = await grown(client, SMALL, long("A"), long("B"))
        await client.ask(long("C"), run_id="run-3", background=True, **fields)
        await upstream.wait_for_requests(3)
        await client.ask("D:", on_busy=agent_service_pb2.ON_BUSY_SUPERSEDE, **fields)
        assert (await client.run("run-3")).status == runs_pb2.RUN_STATUS_CANCELLED
        assert told(upstream.requests[-1]) == ["summary S", "user D"]


async def test_a_run_that_waits_while_the_summary_is_written_is_shown_it(store: str) -> None:
    """It begins after the run before it, and is not compacted again."""
    gate = Gate()
    script = [says("one"), says("two"), gated(says("S"), gate), says("three"), says("four")]
    async with scripted(script, store) as (client, upstream):
        fields = await grown(client, SMALL, long("A"), long("B"))
        await client.ask(long("C"), run_id="run-3", background=True, **fields)
        await upstream.wait_for_requests(3)
        queued = {"on_busy": agent_service_pb2.ON_BUSY_ENQUEUE, "background": True}
        await client.ask("D:", run_id="run-4", **queued, **fields)
        gate.open()
        await ended(client, "run-4")
        assert told(upstream.requests[-1]) == ["summary S", "user C", "assistant three", "user D"]
        assert await compactions(client, "run-4") == []
