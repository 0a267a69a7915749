"""Summaries of any size: none of them fills the window, nor keeps a conversation from going on."""

from __future__ import annotations

import pytest
from agentrpc.v1 import agents_pb2, runs_pb2

from agent_service.engine.compaction import CUT_MARK
from agent_service.engine.tokens import BY_SIZE
from tests.scripted_openai import Reply, Request, says
from tests.service import scripted
from tests.test_compaction import SMALL, asks_for_summary, grown, long, narrow, told

pytestmark = pytest.mark.anyio


async def test_a_summary_that_is_too_long_is_cut(store: str) -> None:
    """At a quarter of the window, whatever the model writes; so the conversation goes on within it."""
    written = iter("STUVWXYZ")

    def script(request: Request) -> Reply:
        return says(next(written) * 8000) if asks_for_summary(request) else says("ok")

    async with narrow(store, script, 1000) as (client, upstream):
        fields = await grown(client, SMALL, *map(long, "ABCDEFGH"))
        assert (await client.ask("I:", **fields)).run.stop_reason == runs_pb2.STOP_REASON_END_TURN
        assert upstream.rejected == []
        texts = [m.summary.text for m in await client.messages(fields["conversation_id"]) if m.HasField("summary")]
        assert len(texts) > 1
        assert all(text.endswith(CUT_MARK) and 200 < BY_SIZE.count(text) <= 250 for text in texts)


async def test_a_summary_that_is_too_long_for_another_model_is_summed_up_in_turn(store: str) -> None:
    """One that was written for a larger window is read part by part, like the conversation."""

    def script(request: Request) -> Reply:
        if asks_for_summary(request):
            return says("Small." if len(request.raw) < 4000 else "y" * 8000)
        return says("ok")

    wide = agents_pb2.ContextPolicy(window_tokens=10_000, threshold=0.06, keep=0.02, summary_prompt="Sum up.")
    async with scripted(script, store) as (client, upstream):
        fields = await grown(client, wide, "A" * 4000, "B:")
        large = [m.summary.text for m in await client.messages(fields["conversation_id"]) if m.HasField("summary")]
        assert large == ["y" * 8000]
        before = upstream.request_count
        await client.create_agent("small", context=SMALL)
        answer = await client.ask("C:", **fields | {"agent_id": "small"})
        assert answer.run.stop_reason == runs_pb2.STOP_REASON_END_TURN
        asked = [request.last["content"] for request in upstream.requests[before:] if asks_for_summary(request)]
        assert sum(text.count("y" * 10) for text in asked) >= 790
        assert all(len(text) < 4000 for text in asked)
        assert told(upstream.requests[-1])[0] == "summary Small."
