"""The main job: ask, pause for a client tool, answer, go on, remember."""

from __future__ import annotations

import pytest
from agentrpc.v1 import runs_pb2, tools_pb2

from tests.scripted_openai import calls, says
from tests.service import SECRET, kinds, returned, scripted

pytestmark = pytest.mark.anyio


async def test_a_client_tool_pauses_the_run_and_its_return_resumes_it(store: str) -> None:
    """Ask -> pause -> return -> answer -> recall, and the conversation lists all of it in order."""
    script = [
        calls(("get_secret_code", {"name": "Alice"})),
        says("The code of Alice is SECRET-42."),
        says("It was SECRET-42."),
    ]
    async with scripted(script, store) as (client, upstream):
        paused = await client.ask("Code of Alice?", SECRET)
        assert paused.run.status == runs_pb2.RUN_STATUS_PAUSED
        assert paused.run.stop_reason == runs_pb2.STOP_REASON_REQUIRES_APPROVAL
        assert kinds(paused.messages) == ["user", "tool_call"]
        (pending,) = paused.run.pending_tool_calls
        assert pending.name == "get_secret_code"
        assert pending.arguments_json == '{"name": "Alice"}'
        assert pending.kind == tools_pb2.PENDING_KIND_CLIENT_EXECUTION
        assert paused.messages[-1].tool_call.tool_calls[0].tool_call_id == pending.tool_call_id
        assert paused.run.last_sequence == 5

        resumed = await client.answer(paused.run.run_id, returned(pending, "SECRET-42"))
        assert kinds(resumed.messages) == ["tool_return", "assistant"]
        assert resumed.messages[0].tool_return.status == tools_pb2.TOOL_RETURN_STATUS_SUCCESS
        assert resumed.messages[0].tool_return.text == "SECRET-42"
        assert resumed.run.status == runs_pb2.RUN_STATUS_COMPLETED
        assert resumed.run.stop_reason == runs_pb2.STOP_REASON_END_TURN

        conversation_id = paused.run.conversation_id
        recalled = await client.ask("What was the code?", conversation_id=conversation_id)
        assert "SECRET-42" in recalled.messages[-1].assistant.text
        history = await client.messages(conversation_id)
        assert kinds(history) == ["user", "tool_call", "tool_return", "assistant", "user", "assistant"]
        assert [message.position for message in history] == [1, 2, 3, 4, 5, 6]
        upstream.check_histories()
        assert upstream.request_count == 3
