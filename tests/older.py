"""Stores as older programs left them: each has a run that waits for two codes, of which it has one."""

from __future__ import annotations

from pathlib import Path

from tests.scripted_openai import ScriptedOpenAI, says
from tests.service import returned, serving

SCHEMAS = Path(__file__).parent / "schemas"
"""Dumps of SQLite files, and in `postgres` of databases, by the version of their schema. No pause in them ends soon."""


async def check_resumes(store: str, answered: str, waiting: str) -> None:
    """The receipt of the first call is known, the other one is answered, and the model sees the whole conversation."""
    async with (
        ScriptedOpenAI([says("ALPHA-7 and BETA-8.")]) as upstream,
        serving(upstream, store) as service,
    ):
        again = await service.answer("run_paused", returned(answered, "ALPHA-7"), request_id="req_1")
        assert [call.tool_call_id for call in again.run.pending_tool_calls] == [waiting]
        done = await service.answer("run_paused", returned(waiting, "BETA-8"))
        assert done.messages[-1].assistant.text == "ALPHA-7 and BETA-8."
    (request,) = upstream.requests
    sent = [(message["role"], message.get("content")) for message in request.messages]
    assert sent[1:] == [
        ("user", "Hello."),
        ("assistant", "Hello, I am here."),
        ("user", "The codes of Alice and Bob?"),
        ("assistant", None),
        ("tool", "ALPHA-7"),
        ("tool", "BETA-8"),
    ]
