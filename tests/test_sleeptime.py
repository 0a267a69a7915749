"""Sleeptime agents over gRPC: memory agents read what was said, each part once, in runs of their own."""

from __future__ import annotations

import pytest
from agentrpc.v1 import runs_pb2

from tests.scripted_openai import Request
from tests.service import SECRET, scripted
from tests.sleepers import KEEPER, answers, make_agents, memory_runs, part_of, reads

pytestmark = pytest.mark.anyio

COMPLETED = runs_pb2.RUN_STATUS_COMPLETED


async def test_a_memory_agent_reads_each_part_after_every_nth_run(store: str) -> None:
    """In a run of its own, linked to the run whose end was the cause, and each message in exactly one of them."""
    async with scripted(answers, store) as (client, upstream):
        await make_agents(client, every=2)
        ids = []
        conversation = ""
        for text in ("a", "b", "c", "d", "e"):
            answer = await client.ask(text, agent_id="desk", conversation_id=conversation)
            conversation = answer.run.conversation_id
            assert (answer.run.agent_id, answer.run.status) == ("desk", COMPLETED)
            ids.append(answer.run.run_id)
            await memory_runs(client, len(ids) // 2)
        first, second = await memory_runs(client, 2)
        assert [first.parent_run_id, second.parent_run_id] == [ids[1], ids[3]]
        assert conversation not in (first.conversation_id, second.conversation_id)
        parts = [await part_of(client, run) for run in (first, second)]
        assert [(part.conversation_id, part.first, part.last) for part in parts] == [
            (conversation, 1, 4),
            (conversation, 5, 8),
        ]
        assert parts[0].text == "user: a\nassistant: You said a.\nuser: b\nassistant: You said b."
        assert [run.run_id for run in (await client.list_runs(parent_run_id=ids[1])).runs] == [first.run_id]
