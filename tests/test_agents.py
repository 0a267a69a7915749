"""The agents of a server: what they can do, what they refuse, and what the server says of itself."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from agentrpc.v1 import agent_service_pb2, runs_pb2, server_service_pb2

from agent_service import __version__
from agent_service.engine.limits import Limits
from agent_service.stores.urls import is_postgres
from tests.modes import MODES, start
from tests.scripted_openai import says
from tests.service import SECRET, kinds, refusal, scripted, step

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("mode", MODES)
async def test_the_responder_answers_in_text_without_tools(store: str, mode: str) -> None:
    """It is given none of the server's tools, and goes on with a conversation of another agent."""
    async with scripted(lambda _: says("Hello."), store, tools="tests.server_tools:add") as (client, upstream):
        answered = await start(client, mode, step("Hello?", agent_id="responder"))
        assert (answered.run.agent_id, answered.run.stop_reason) == ("responder", runs_pb2.STOP_REASON_END_TURN)
        assert kinds(answered.messages) == ["user", "assistant"]
        assert upstream.requests[0].tool_names == []
        later = await start(client, mode, step("Again?", conversation_id=answered.run.conversation_id))
        assert later.run.agent_id == "default"
        assert upstream.requests[1].tool_names == ["add"]
        assert [message["role"] for message in upstream.requests[1].history] == ["user", "assistant", "user"]


@pytest.mark.parametrize("mode", MODES)
async def test_the_responder_refuses_client_tools(store: str, mode: str) -> None:
    """It cannot pause, says so, and stores nothing; it never ignores what it cannot do."""
    async with scripted([], store) as (client, _):
        request = step("Code?", SECRET, agent_id="responder", run_id="run-1")
        refused = await refusal(start(client, mode, request))
        assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "AGENT_CANNOT")
        path = "step.client_tools" if mode in ("steps", "tokens") else "client_tools"
        assert refused.message == (
            f"{path}: agent 'responder' has no tools and cannot pause; use another agent or send no client tools"
        )
        assert refused.metadata == {"agent_id": "responder", "kind": "responder"}
        dry = await refusal(client.agent.BuildRequest(agent_service_pb2.BuildRequestRequest(step=request)))
        assert (dry.code, dry.reason, dry.metadata) == (refused.code, refused.reason, refused.metadata)
        assert dry.message == "step." + refused.message.removeprefix("step.")
        assert (await refusal(client.run("run-1"))).code == "NOT_FOUND"


async def test_the_server_says_what_it_is(store: str) -> None:
    """Version, store, model, agents with their tools, and every limit that callers can meet."""
    settings = {
        "tools": "tests.server_tools:add,tests.server_tools:delete_file",
        "limits": {"max_request_bytes": 2_000_000, "default_max_steps": 7},
    }
    async with scripted([says("Hello.")], store, **settings) as (client, _):
        info = await client.server.GetServerInfo(server_service_pb2.GetServerInfoRequest())
        assert info.version == __version__
        assert info.store == ("memory" if store == "memory" else "postgres" if is_postgres(store) else "sqlite")
        assert info.default_model == "scripted-model"
        default, responder = info.agents
        assert (default.agent_id, default.kind, default.is_default) == ("default", "llm", True)
        assert default.client_tools and list(default.server_tools) == ["add", "delete_file"]
        assert (responder.agent_id, responder.kind, responder.is_default) == ("responder", "responder", False)
        assert not responder.client_tools and not responder.server_tools
        assert {"client_tools", "approvals", "resumable_streams"} <= set(info.capabilities)

        limits = asdict(Limits()) | {"max_request_bytes": 2_000_000, "default_max_steps": 7}
        shown = {field.name: getattr(info.limits, field.name) for field in info.limits.DESCRIPTOR.fields}
        assert shown == {name: limits[name] for name in shown}
        assert (await client.ask("Hello?")).run.max_steps == info.limits.default_max_steps
