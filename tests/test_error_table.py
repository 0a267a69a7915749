"""Every reason of a refused call, provoked from outside: the code, details and message that the contract documents, and
nothing stored."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from agentrpc.v1 import agent_registry_service_pb2 as registry_pb
from agentrpc.v1 import agent_service_pb2, agents_pb2, inbox_service_pb2, run_service_pb2, tools_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agent_service import wiring
from agent_service.settings import load_settings
from agent_service.tools import server_tool
from scripts.errors_page import documented
from tests import blocks
from tests.scripted_openai import Gate, Happening, Reply, ScriptedOpenAI, calls, gated, says, silent
from tests.service import SECRET, Client, connected, refusal, returned, scripted, step, submit
from tests.stored import edit, edit_bodies, everything, locked
from tests.test_run_errors import RUNS

pytestmark = pytest.mark.anyio

DOCUMENTED = documented()
ASKED = calls(("get_secret_code", {"name": "Alice"}))
AGE = tools_pb2.ClientToolSchema(
    name="get_age", result_schema_json='{"type": "object", "properties": {"age": {"type": "integer"}}}'
)
STOCK_ASKED = Happening("calls of stock")


async def stock() -> int:
    """Says how many pieces are there, but not within this test."""
    STOCK_ASKED.add()
    await asyncio.Event().wait()
    return 0


@server_tool(requires_approval=True)
def order() -> str:
    """Orders a piece."""
    return "ordered"


TOOLS: dict[str, Any] = {"tools": f"{__name__}:stock,{__name__}:order"}

Call = Callable[[], Any]
"""Makes the call that is refused; may be made again."""


@dataclass(frozen=True)
class Case:
    """How a reason is provoked: `prepare` leads to the call, and to the metadata of its error."""

    prepare: Callable[[Client, str], Awaitable[tuple[Call, dict[str, str]]]]
    script: Sequence[Reply]
    fields: tuple[str, ...]
    retry_seconds: float | None
    touched: bool
    settings: dict[str, Any]


CASES: dict[str, Case] = {}


def refused(
    reason: str,
    *script: Reply,
    fields: tuple[str, ...] = (),
    retry_seconds: float | None = None,
    touched: bool = False,
    **settings: Any,
) -> Callable[[Any], Any]:
    """Adds a case. `fields` are the paths of its field violations."""

    def add(prepare: Any) -> Any:
        CASES[reason] = Case(prepare, script, fields, retry_seconds, touched, settings)
        return prepare

    return add


async def paused(client: Client, tool: tools_pb2.ClientToolSchema = SECRET) -> str:
    """The run run_8f of the conversation conv_2c waits for one call, whose id this is."""
    await converse(client)
    (call,) = (await client.ask("Go.", tool, run_id="run_8f", conversation_id="conv_2c")).run.pending_tool_calls
    return call.tool_call_id


async def converse(client: Client, **fields: Any) -> None:
    """The conversation conv_2c is there."""
    await client.registry.CreateConversation(registry_pb.CreateConversationRequest(conversation_id="conv_2c", **fields))


@refused("INVALID_FIELD", fields=("max_steps",))
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    return lambda: client.ask("Go.", run_id="run_8f", max_steps=0), {}


@refused("INVALID_TOOL_SCHEMA", fields=("client_tools[1].parameters_json",))
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    bad = tools_pb2.ClientToolSchema(name="get_age", parameters_json='{"properties": {"age": {"type": "strng"}}}')
    return lambda: client.ask("Go.", SECRET, bad), {}


@refused("INVALID_RESPONSE_SCHEMA", fields=("response_format.schema_json",))
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    bad = agent_service_pb2.ResponseFormat(schema_json='{"properties": {"age": {"type": "strng"}}}')
    return lambda: client.ask("Go.", response_format=bad), {}


@refused("UNKNOWN_TOOL_CALL", ASKED, fields=("tool_returns[0].tool_call_id",))
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    await paused(client)
    return lambda: client.answer("run_8f", returned("call_x", "AZURE")), {}


@refused("SCHEMA_VIOLATION", calls(("get_age", {})), fields=("tool_returns[0].text",))
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    call_id = await paused(client, AGE)
    return lambda: client.answer("run_8f", returned(call_id, '{"age": "x"}')), {}


@refused("AGENT_NOT_FOUND")
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    return lambda: client.ask("Go.", agent_id="sales"), {}


@refused("RUN_NOT_FOUND")
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    return lambda: client.answer("run_8f", returned("call_x", "AZURE")), {}


@refused("CONVERSATION_NOT_FOUND")
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    return lambda: client.ask("Go.", conversation_id="conv_2c"), {}


@refused("CONVERSATION_PAUSED", ASKED)
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    call_id = await paused(client)
    metadata = {"run_id": "run_8f", "pending_total": "1", "pending_0": f"{call_id} get_secret_code CLIENT_EXECUTION"}
    return lambda: client.ask("And now?", conversation_id="conv_2c"), metadata


@refused("CONVERSATION_BUSY", silent())
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    await converse(client)
    await client.ask("Go.", run_id="run_8f", conversation_id="conv_2c", background=True)
    return lambda: client.ask("And now?", conversation_id="conv_2c"), {"run_id": "run_8f"}


@refused("CALL_EXPIRED", ASKED, touched=True)
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    call_id = await paused(client)
    await edit_bodies(store, "calls", "true", state="expired", settle_time=7)
    await edit(store, "UPDATE calls SET state = 'expired'")
    metadata = {"tool_call_id": call_id, "outcome": "EXPIRED", "time": "7"}
    return lambda: client.answer("run_8f", returned(call_id, "AZURE")), metadata


@refused("CALL_CANCELLED", ASKED)
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    call_id = await paused(client)
    ended = await client.cancel("run_8f")
    metadata = {"tool_call_id": call_id, "outcome": "CANCELLED", "time": str(ended.end_time.ToNanoseconds())}
    return lambda: client.answer("run_8f", returned(call_id, "AZURE")), metadata


@refused("CALL_ALREADY_SETTLED", ASKED, says("It is AZURE."))
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    call_id = await paused(client)
    settled = (await client.answer("run_8f", returned(call_id, "AZURE"))).messages[0]
    metadata = {"tool_call_id": call_id, "outcome": "RETURNED", "time": str(settled.create_time.ToNanoseconds())}
    return lambda: client.answer("run_8f", returned(call_id, "CRIMSON")), metadata


@refused("CALL_NEEDS_TOOL_RETURN", ASKED)
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    call_id = await paused(client)
    approval = tools_pb2.ApprovalDecision(tool_call_id=call_id, approve=tools_pb2.Approve())
    return lambda: client.answer("run_8f", approvals=[approval]), {"tool_call_id": call_id}


@refused("CALL_NEEDS_APPROVAL", calls(("order", {})), **TOOLS)
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    call_id = await paused(client)
    return lambda: client.answer("run_8f", returned(call_id, "ordered")), {"tool_call_id": call_id}


@refused("CALL_NOT_PENDING", calls(("stock", {})), **TOOLS)
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    before = STOCK_ASKED.count
    run = (await client.ask("Go.", run_id="run_8f", background=True)).run
    await STOCK_ASKED.reach(before + 1)
    call_id = (await client.messages(run.conversation_id))[-1].tool_call.tool_calls[0].tool_call_id
    metadata = {"tool_call_id": call_id, "outcome": "STARTED"}
    return lambda: client.answer("run_8f", returned(call_id, "7")), metadata


@refused("RUN_ID_REUSED", says("Hello."))
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    await client.ask("Hello?", run_id="run_8f")
    return lambda: client.ask("Goodbye?", run_id="run_8f"), {"run_id": "run_8f"}


@refused("REQUEST_ID_REUSED", ASKED, says("It is AZURE."))
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    call_id = await paused(client)
    await client.answer("run_8f", returned(call_id, "AZURE"), request_id="req_1")
    again = submit("run_8f", returned(call_id, "CRIMSON"), request_id="req_1")
    return lambda: client.agent.SubmitToolReturns(again), {"request_id": "req_1"}


@refused("QUEUE_FULL", ASKED, retry_seconds=1.0)
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    await paused(client)
    waits: Any = {"conversation_id": "conv_2c", "on_busy": agent_service_pb2.ON_BUSY_ENQUEUE}
    for number in range(16):
        await client.ask("And?", run_id=f"run_{number}", background=True, **waits)
    return lambda: client.ask("And?", run_id="run_more", background=True, **waits), {"conversation_id": "conv_2c"}


async def claims(client: Client) -> inbox_service_pb2.ClaimedToolCall:
    """A worker has the call that run_8f waits for."""
    request = inbox_service_pb2.ClaimToolCallsRequest(worker_id="w1")
    (claimed,) = (await client.inbox.ClaimToolCalls(request)).calls
    return claimed


@refused("CALL_CLAIMED", ASKED)
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    call_id = await paused(client)
    until = str((await claims(client)).call.claim_expire_time.ToNanoseconds())
    metadata = {"tool_call_id": call_id, "worker_id": "w1", "claim_expire_time": until}
    return lambda: client.answer("run_8f", returned(call_id, "AZURE")), metadata


@refused("CLAIM_LOST", ASKED)
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    call_id = await paused(client)
    await claims(client)
    return lambda: client.answer("run_8f", returned(call_id, "AZURE", claim_token="x")), {"tool_call_id": call_id}


@refused("CURSOR_TRIMMED", says("Hello."), event_retention_seconds=1e-6)
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    await client.ask("Hi", run_id="run_8f")
    with pytest.raises(grpc.aio.AioRpcError):
        while await client.watch("run_8f"):
            pass
    return lambda: client.runs.WatchRun(run_service_pb2.WatchRunRequest(run_id="run_8f")), {"last_sequence": "5"}


@refused("RUN_NOT_INTERRUPTED", says("Hello."))
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    await client.ask("Hi", run_id="run_8f")
    request = run_service_pb2.RetryRunRequest(run_id="run_8f")
    return lambda: client.runs.RetryRun(request), {"run_id": "run_8f", "status": "COMPLETED"}


@refused("CURSOR_AHEAD", ASKED)
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    await paused(client)
    request = run_service_pb2.WatchRunRequest(run_id="run_8f", after_sequence=9)
    return lambda: client.runs.WatchRun(request), {"last_sequence": "5"}


@refused("AGENT_CANNOT")
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    return lambda: client.ask("Go.", SECRET, agent_id="responder"), {"agent_id": "responder", "kind": "responder"}


@refused("TOO_LARGE")
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    return lambda: client.agent.Step(step("x" * 4_200_000)), {}


@refused("STORE_UNAVAILABLE", retry_seconds=1.0, touched=True, store_busy_seconds=1.0)
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    async def ask() -> Any:
        async with locked(store):
            return await client.ask("Go.", run_id="run_8f")

    return ask, {}


@refused("INTERNAL", ASKED, touched=True)
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    await paused(client)
    await edit(store, "UPDATE runs SET body = '{'")
    return lambda: client.cancel("run_8f"), {}


@refused("AGENT_ID_REUSED")
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    await client.create_agent("sales", instructions="Sell.")
    return lambda: client.create_agent("sales", instructions="Buy."), {"agent_id": "sales"}


@refused("CONVERSATION_ID_REUSED")
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    await converse(client, labels={"team": "a"})
    return lambda: converse(client, labels={"team": "b"}), {"conversation_id": "conv_2c"}


def update(client: Client, **fields: Any) -> Any:
    """UpdateAgent."""
    return client.registry.UpdateAgent(registry_pb.UpdateAgentRequest(agent=agents_pb2.Agent(**fields)))


@refused("ETAG_MISMATCH")
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    read = await client.create_agent("sales")
    now = (await update(client, agent_id="sales", instructions="Sell.")).agent
    return lambda: update(client, agent_id="sales", instructions="Buy.", etag=read.etag), {"etag": now.etag}


@refused("AGENT_READ_ONLY")
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    return lambda: update(client, agent_id="default", instructions="Buy."), {"agent_id": "default"}


@refused("FOREGROUND_AGENT_NOT_FOUND")
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    for agent_id in ("sales", "notes"):
        await client.create_agent(agent_id)
    parts = agents_pb2.Sleeptime(foreground_agent_id="sales", memory_agent_ids=["notes"])
    await client.create_agent("desk", kind=agents_pb2.AGENT_KIND_SLEEPTIME, sleeptime=parts)
    await client.registry.DeleteAgent(registry_pb.DeleteAgentRequest(agent_id="sales"))
    return lambda: client.ask("Go.", agent_id="desk"), {"agent_id": "desk", "foreground_agent_id": "sales"}


@refused("MEMORY_BLOCK_NOT_FOUND")
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    return lambda: blocks.block(client, "human"), {}


@refused("MEMORY_BLOCK_ID_REUSED")
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    await blocks.make(client, "human", "Ada")
    return lambda: blocks.make(client, "human", "Bob"), {"memory_block_id": "human"}


@refused("RUN_ACTIVE", ASKED)
async def _(client: Client, store: str) -> tuple[Call, dict[str, str]]:
    await paused(client)
    return lambda: client.delete("run_8f"), {"run_id": "run_8f"}


async def contents(client: Client, store: str) -> list[Any]:
    """All that is stored: the rows, or what the lists show of a store in memory."""
    if store != "memory":
        return [await everything(store)]
    conversations = (await client.registry.ListConversations(registry_pb.ListConversationsRequest())).conversations
    agents = (await client.registry.ListAgents(registry_pb.ListAgentsRequest())).agents
    kept = (await client.registry.ListMemoryBlocks(registry_pb.ListMemoryBlocksRequest())).memory_blocks
    messages = [await client.messages(conversation.conversation_id) for conversation in conversations]
    return [list(conversations), list(agents), list(kept), messages, await client.list_runs(), await client.waiting()]


def as_documented(message: str) -> str:
    """The message with the ids that the contract's examples have, and the words of SQLite."""
    message = message.replace("unavailable: it did not answer in time;", "unavailable: database is locked;")
    return re.sub(r"error [0-9a-f]{12};", "error 4e8b151c3e75;", re.sub(r"call_[0-9a-f]{24}", "call_1a", message))


@pytest.mark.parametrize("reason", [reason for reason, case in CASES.items() if not case.touched])
async def test_a_refused_call_says_why_and_stores_nothing(reason: str, store: str) -> None:
    """Code, reason, fields, metadata and message are those of the contract; what is stored stays as it was."""
    await provoke(reason, store)


@pytest.mark.parametrize("reason", [reason for reason, case in CASES.items() if case.touched])
async def test_a_call_that_a_touched_store_refuses_says_why_and_stores_nothing(reason: str, shared_store: str) -> None:
    """The same where another program holds or has changed what is stored."""
    await provoke(reason, shared_store)


async def provoke(reason: str, store: str) -> None:
    """Leads to the error, and checks all that can be seen of it."""
    case, promised = CASES[reason], DOCUMENTED[reason]
    async with scripted(case.script, store, **case.settings) as (client, _):
        call, metadata = await case.prepare(client, store)
        before = await contents(client, store)
        error = await refusal(call())
        assert await contents(client, store) == before
        assert (error.code, error.reason) == (promised.code, reason)
        assert as_documented(error.message) == promised.message
        assert error.fields == case.fields
        assert error.metadata == metadata
        assert error.metadata.keys() == set(promised.metadata_keys) - {"violations_total"}
        assert error.retry_seconds == case.retry_seconds


async def test_a_server_that_stops_takes_no_new_work(store: str) -> None:
    """While running runs have their grace time, a start is refused with SHUTTING_DOWN, when to repeat it, and nothing
    stored."""
    gate = Gate()
    async with (
        ScriptedOpenAI([gated(says("Done."), gate)]) as upstream,
        stoppable(upstream, store, grace_seconds=60.0) as (client, stop),
    ):
        await client.ask("Go.", run_id="run_8f", background=True)
        await upstream.wait_for_requests(1)
        before = await contents(client, store)
        stopping = asyncio.create_task(stop())
        await not_serving(client)
        error = await refusal(client.ask("And now?", run_id="run_9"))
        assert await contents(client, store) == before
        gate.open()
        await stopping
    promised = DOCUMENTED["SHUTTING_DOWN"]
    assert (error.code, error.reason, error.message) == (promised.code, "SHUTTING_DOWN", promised.message)
    assert (error.metadata, error.retry_seconds) == ({}, 1.0)


async def test_more_than_sixteen_bad_fields_are_counted() -> None:
    """The first sixteen are named, and the metadata says how many there are."""
    tools = [tools_pb2.ClientToolSchema(name="no name") for _ in range(18)]
    async with scripted([], "memory") as (client, _):
        error = await refusal(client.ask("Go.", *tools))
    assert error.metadata == {"violations_total": "35"}
    assert len(error.fields) == 16


def test_every_reason_of_the_contract_is_provoked() -> None:
    """A reason without a test fails this one: here, among the reasons of runs, or in a file of its own."""
    elsewhere = {
        "SHUTTING_DOWN",
        "READER_STALLED",  # test_stalled_reader.py
        "UNAUTHENTICATED",  # test_access.py
        "PERMISSION_DENIED",  # test_access.py
        "AUTH_UNAVAILABLE",  # test_jwt.py
    }
    assert set(DOCUMENTED) == {*CASES, *RUNS, *elsewhere}


@asynccontextmanager
async def stoppable(
    upstream: ScriptedOpenAI, store: str, **settings: Any
) -> AsyncIterator[tuple[Client, Callable[[], Coroutine[Any, Any, None]]]]:
    """A service and its client, and what stops the service while the client stays."""
    configured = load_settings(
        store=store, openai_base_url=upstream.base_url, model="scripted-model", port=0, **settings
    )
    async with (
        wiring.model_endpoint(configured) as endpoint,
        AsyncExitStack() as running,
    ):
        server = await running.enter_async_context(wiring.service(configured, endpoint))
        async with connected(f"127.0.0.1:{server.port}") as client:
            yield client, running.aclose


async def not_serving(client: Client) -> None:
    """Returns once the server's health says so."""
    watched = health_pb2_grpc.HealthStub(client.channel).Watch(health_pb2.HealthCheckRequest())
    async for answer in watched:
        if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
            watched.cancel()
            return


def test_the_page_of_errors_is_generated_from_the_contract() -> None:
    """docs/errors.md has a section for each reason."""
    page = (Path(__file__).parents[1] / "docs" / "errors.md").read_text()
    assert re.findall(r"^### (\w+)$", page, re.MULTILINE) == [
        *(reason.name for reason in DOCUMENTED.values() if reason.code),
        *(reason.name for reason in DOCUMENTED.values() if not reason.code),
    ]
