"""Tenants share a server and know nothing of each other, whatever they call, on every store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agentrpc.v1 import agent_registry_service_pb2 as registry_pb
from agentrpc.v1 import agent_service_pb2 as agent_pb
from agentrpc.v1 import agents_pb2, inbox_service_pb2, memory_pb2, run_service_pb2, runs_pb2, server_service_pb2
from google.protobuf.field_mask_pb2 import FieldMask

from tests.contract import METHODS, Method
from tests.credentials import KeyFile
from tests.scripted_openai import Reply, calls, says
from tests.service import SECRET, Client, connected, event_kinds, refusal, returned, scripted, step, submit
from tests.sleepers import make_agents, memory_runs, part_of

pytestmark = pytest.mark.anyio

ASKED = calls(("get_secret_code", {"name": "Alice"}))
MARK = "of-acme"
"""In all that belongs to the first tenant; nobody else may read it anywhere."""


@asynccontextmanager
async def two_tenants(store: str, folder: Path, *script: Reply) -> AsyncIterator[tuple[Client, Client]]:
    """A client of each of two tenants of one service."""
    keys = KeyFile(folder / "keys.toml")
    tokens = [keys.add("one", "acme"), keys.add("two", "rival")]
    async with (
        scripted(script, store, api_keys=keys.path) as (anybody, _),
        connected(anybody.target, token=tokens[0]) as one,
        connected(anybody.target, token=tokens[1]) as two,
    ):
        yield one, two


@dataclass(frozen=True)
class World:
    """What the first tenant has: an agent, a conversation with a paused run, and a claim on its call."""

    run_id: str
    conversation_id: str
    agent_id: str
    tool_call_id: str
    block_id: str
    claim_token: str
    page_tokens: dict[str, str]


async def world_of(owner: Client) -> World:
    """Makes all of it, and another of each, so that there are tokens of pages."""
    labels = {"project": MARK}
    for number in (1, 2):
        block = memory_pb2.MemoryBlock(memory_block_id=f"block-{number}-{MARK}", label="human", value=MARK)
        await owner.registry.CreateMemoryBlock(registry_pb.CreateMemoryBlockRequest(memory_block=block))
        blocks = [block.memory_block_id]
        await owner.create_agent(f"agent-{number}-{MARK}", instructions=MARK, memory_block_ids=blocks)
        conversation = f"conversation-{number}-{MARK}"
        request = registry_pb.CreateConversationRequest(conversation_id=conversation, labels=labels)
        await owner.registry.CreateConversation(request)
        fields = {"run_id": f"run-{number}-{MARK}", "conversation_id": conversation, "labels": labels}
        await owner.ask(MARK, SECRET, agent_id=f"agent-{number}-{MARK}", **fields)
    claimed = await owner.inbox.ClaimToolCalls(inbox_service_pb2.ClaimToolCallsRequest(worker_id=f"w-{MARK}"))
    (claim,) = claimed.calls
    claimed_number = claim.call.run_id.split("-")[1]
    lists: dict[str, Any] = {
        "ListRuns": await owner.list_runs(page_size=1),
        "ListPendingToolCalls": await owner.waiting(page_size=1),
        "ListConversations": await owner.registry.ListConversations(registry_pb.ListConversationsRequest(page_size=1)),
        "ListMemoryBlocks": await owner.registry.ListMemoryBlocks(registry_pb.ListMemoryBlocksRequest(page_size=1)),
        "ListAgents": await owner.registry.ListAgents(registry_pb.ListAgentsRequest(page_size=3)),
    }
    return World(
        claim.call.run_id,
        f"conversation-{claimed_number}-{MARK}",
        f"agent-{claimed_number}-{MARK}",
        claim.call.call.tool_call_id,
        f"block-{claimed_number}-{MARK}",
        claim.claim_token,
        {name: page.next_page_token for name, page in lists.items()},
    )


Case = Callable[[Client, World], Awaitable[None]]
CASES: dict[str, Case] = {}


def case(method: str) -> Callable[[Case], Case]:
    """What the second tenant tries with a method."""

    def add(attempt: Case) -> Case:
        CASES[method] = attempt
        return attempt

    return add


async def not_found(call: Any, what: str) -> None:
    """It is refused as if there were nothing of that id; no word of what there is."""
    refused = await refusal(call)
    assert (refused.code, refused.reason) == ("NOT_FOUND", f"{what}_NOT_FOUND")
    assert all(value.endswith(MARK) for value in refused.metadata.values())


def starts(world: World) -> dict[str, agent_pb.StepRequest]:
    """Starts with something of the first tenant, by what is not found."""
    return {
        "CONVERSATION": step("Hi", conversation_id=world.conversation_id),
        "AGENT": step("Hi", agent_id=world.agent_id),
    }


def answers(world: World) -> agent_pb.SubmitToolReturnsRequest:
    """An answer to the first tenant's call, with its claim."""
    return submit(world.run_id, returned(world.tool_call_id, "stolen", claim_token=world.claim_token))


@case("BuildRequest")
async def _(stranger: Client, world: World) -> None:
    for what, start in starts(world).items():
        await not_found(stranger.agent.BuildRequest(agent_pb.BuildRequestRequest(step=start)), what)
    await not_found(stranger.agent.BuildRequest(agent_pb.BuildRequestRequest(submit=answers(world))), "RUN")


@case("Step")
async def _(stranger: Client, world: World) -> None:
    for what, start in starts(world).items():
        await not_found(stranger.agent.Step(start), what)


@case("Stream")
async def _(stranger: Client, world: World) -> None:
    for what, start in starts(world).items():
        await not_found(stranger.agent.Stream(agent_pb.StreamRequest(step=start)), what)


@case("SubmitToolReturns")
async def _(stranger: Client, world: World) -> None:
    await not_found(stranger.agent.SubmitToolReturns(answers(world)), "RUN")
    own = (await stranger.ask("Go.", SECRET)).run
    foreign = returned(world.tool_call_id, "stolen", claim_token=world.claim_token)
    refused = await refusal(stranger.agent.SubmitToolReturns(submit(own.run_id, foreign)))
    assert refused.reason == "UNKNOWN_TOOL_CALL"
    assert MARK not in refused.message


@case("StreamToolReturns")
async def _(stranger: Client, world: World) -> None:
    request = agent_pb.StreamToolReturnsRequest(submit=answers(world))
    await not_found(stranger.agent.StreamToolReturns(request), "RUN")


@case("GetRun")
async def _(stranger: Client, world: World) -> None:
    await not_found(stranger.runs.GetRun(run_service_pb2.GetRunRequest(run_id=world.run_id)), "RUN")


@case("WatchRun")
async def _(stranger: Client, world: World) -> None:
    await not_found(stranger.watching(world.run_id), "RUN")
    await not_found(stranger.watching(world.run_id, after=10**6), "RUN")


@case("ListRuns")
async def _(stranger: Client, world: World) -> None:
    filters: list[dict[str, Any]] = [
        {},
        {"conversation_id": world.conversation_id},
        {"agent_id": world.agent_id},
        {"labels": {"project": MARK}},
        {"statuses": [runs_pb2.RUN_STATUS_PAUSED]},
        {"page_token": world.page_tokens["ListRuns"]},
    ]
    for each in filters:
        assert not (await stranger.list_runs(**each)).runs


@case("CancelRun")
async def _(stranger: Client, world: World) -> None:
    await not_found(stranger.runs.CancelRun(run_service_pb2.CancelRunRequest(run_id=world.run_id)), "RUN")


@case("RetryRun")
async def _(stranger: Client, world: World) -> None:
    await not_found(stranger.runs.RetryRun(run_service_pb2.RetryRunRequest(run_id=world.run_id)), "RUN")


@case("DeleteRun")
async def _(stranger: Client, world: World) -> None:
    await not_found(stranger.runs.DeleteRun(run_service_pb2.DeleteRunRequest(run_id=world.run_id)), "RUN")


@case("ListPendingToolCalls")
async def _(stranger: Client, world: World) -> None:
    for each in (
        {},
        {"conversation_id": world.conversation_id},
        {"page_token": world.page_tokens["ListPendingToolCalls"]},
    ):
        assert not (await stranger.waiting(**each)).calls


@case("WatchPendingToolCalls")
async def _(stranger: Client, world: World) -> None:
    which = inbox_service_pb2.PendingToolCallFilter(conversation_id=world.conversation_id)
    for request in (
        inbox_service_pb2.WatchPendingToolCallsRequest(),
        inbox_service_pb2.WatchPendingToolCallsRequest(filter=which),
    ):
        watch: Any = stranger.inbox.WatchPendingToolCalls(request)
        assert (await watch.read()).HasField("synced")
        watch.cancel()


@case("ClaimToolCalls")
async def _(stranger: Client, world: World) -> None:
    request = inbox_service_pb2.ClaimToolCallsRequest(worker_id="w", max_calls=100)
    assert not (await stranger.inbox.ClaimToolCalls(request)).calls


@case("ExtendToolCall")
async def _(stranger: Client, world: World) -> None:
    request = inbox_service_pb2.ExtendToolCallRequest(
        run_id=world.run_id, tool_call_id=world.tool_call_id, claim_token=world.claim_token
    )
    await not_found(stranger.inbox.ExtendToolCall(request), "RUN")
    request.run_id = (await stranger.ask("Go.", SECRET)).run.run_id
    refused = await refusal(stranger.inbox.ExtendToolCall(request))
    assert refused.reason == "UNKNOWN_TOOL_CALL"
    assert MARK not in refused.message


@case("CreateAgent")
async def _(stranger: Client, world: World) -> None:
    assert (await stranger.create_agent(world.agent_id, instructions="Mine.")).instructions == "Mine."
    assert (await stranger.get_agent(world.agent_id)).instructions == "Mine."
    thief = agents_pb2.Agent(agent_id="thief", memory_block_ids=[world.block_id])
    refused = await refusal(stranger.registry.CreateAgent(registry_pb.CreateAgentRequest(agent=thief)))
    assert refused.fields == ("agent.memory_block_ids[0]",)


@case("GetAgent")
async def _(stranger: Client, world: World) -> None:
    await not_found(stranger.registry.GetAgent(registry_pb.GetAgentRequest(agent_id=world.agent_id)), "AGENT")


@case("ListAgents")
async def _(stranger: Client, world: World) -> None:
    for token in ("", world.page_tokens["ListAgents"]):
        page = await stranger.registry.ListAgents(registry_pb.ListAgentsRequest(page_token=token))
        assert all(agent.configured for agent in page.agents)


@case("UpdateAgent")
async def _(stranger: Client, world: World) -> None:
    agent = agents_pb2.Agent(agent_id=world.agent_id, instructions="Stolen.")
    request = registry_pb.UpdateAgentRequest(agent=agent, update_mask=FieldMask(paths=["instructions"]))
    await not_found(stranger.registry.UpdateAgent(request), "AGENT")


@case("DeleteAgent")
async def _(stranger: Client, world: World) -> None:
    await not_found(stranger.registry.DeleteAgent(registry_pb.DeleteAgentRequest(agent_id=world.agent_id)), "AGENT")


@case("CreateMemoryBlock")
async def _(stranger: Client, world: World) -> None:
    for block_id, value in ((world.block_id, "Mine."), ("other", "Also mine.")):
        block = memory_pb2.MemoryBlock(memory_block_id=block_id, label="human", value=value)
        made = await stranger.registry.CreateMemoryBlock(registry_pb.CreateMemoryBlockRequest(memory_block=block))
        assert made.memory_block.value == value


@case("GetMemoryBlock")
async def _(stranger: Client, world: World) -> None:
    request = registry_pb.GetMemoryBlockRequest(memory_block_id=world.block_id)
    await not_found(stranger.registry.GetMemoryBlock(request), "MEMORY_BLOCK")


@case("ListMemoryBlocks")
async def _(stranger: Client, world: World) -> None:
    filters: list[dict[str, Any]] = [{}, {"label": "human"}, {"page_token": world.page_tokens["ListMemoryBlocks"]}]
    for each in filters:
        page = await stranger.registry.ListMemoryBlocks(registry_pb.ListMemoryBlocksRequest(**each))
        assert not page.memory_blocks
    request = registry_pb.ListMemoryBlocksRequest(agent_id=world.agent_id)
    await not_found(stranger.registry.ListMemoryBlocks(request), "AGENT")


@case("UpdateMemoryBlock")
async def _(stranger: Client, world: World) -> None:
    block = memory_pb2.MemoryBlock(memory_block_id=world.block_id, label="human", value="Stolen.", etag="1")
    request = registry_pb.UpdateMemoryBlockRequest(memory_block=block, update_mask=FieldMask(paths=["value"]))
    await not_found(stranger.registry.UpdateMemoryBlock(request), "MEMORY_BLOCK")


@case("DeleteMemoryBlock")
async def _(stranger: Client, world: World) -> None:
    request = registry_pb.DeleteMemoryBlockRequest(memory_block_id=world.block_id)
    await not_found(stranger.registry.DeleteMemoryBlock(request), "MEMORY_BLOCK")


@case("CreateConversation")
async def _(stranger: Client, world: World) -> None:
    request = registry_pb.CreateConversationRequest(conversation_id=world.conversation_id, labels={"project": "mine"})
    made = (await stranger.registry.CreateConversation(request)).conversation
    assert dict(made.labels) == {"project": "mine"}
    assert not await stranger.messages(world.conversation_id)


@case("GetConversation")
async def _(stranger: Client, world: World) -> None:
    request = registry_pb.GetConversationRequest(conversation_id=world.conversation_id)
    await not_found(stranger.registry.GetConversation(request), "CONVERSATION")


@case("ListConversations")
async def _(stranger: Client, world: World) -> None:
    filters: list[dict[str, Any]] = [
        {},
        {"labels": {"project": MARK}},
        {"page_token": world.page_tokens["ListConversations"]},
    ]
    for each in filters:
        page = await stranger.registry.ListConversations(registry_pb.ListConversationsRequest(**each))
        assert not page.conversations


@case("DeleteConversation")
async def _(stranger: Client, world: World) -> None:
    request = registry_pb.DeleteConversationRequest(conversation_id=world.conversation_id)
    await not_found(stranger.registry.DeleteConversation(request), "CONVERSATION")


@case("ListMessages")
async def _(stranger: Client, world: World) -> None:
    request = registry_pb.ListMessagesRequest(conversation_id=world.conversation_id)
    await not_found(stranger.registry.ListMessages(request), "CONVERSATION")
    made = await stranger.registry.CreateConversation(registry_pb.CreateConversationRequest())
    own = made.conversation.conversation_id
    request = registry_pb.ListMessagesRequest(conversation_id=own, run_id=world.run_id)
    await not_found(stranger.registry.ListMessages(request), "RUN")


@case("GetServerInfo")
async def _(stranger: Client, world: World) -> None:
    info = await stranger.server.GetServerInfo(server_service_pb2.GetServerInfoRequest())
    assert MARK not in str(info)


@pytest.mark.parametrize("method", METHODS, ids=str)
async def test_nothing_of_another_tenant_is_found(store: str, tmp_path: Path, method: Method) -> None:
    """By no method: ids, filters, tokens of pages and of claims lead nowhere, and nothing of the other changes."""
    attempt = CASES[method.name]
    async with two_tenants(store, tmp_path, ASKED, ASKED, ASKED, says("Done.")) as (owner, stranger):
        world = await world_of(owner)
        before = await _now(owner, world)
        said = await owner.messages(world.conversation_id)
        await attempt(stranger, world)
        assert await _now(owner, world) == before
        assert await owner.messages(world.conversation_id) == said
        # Still claimed, and open to nobody but who has the claim.
        await owner.agent.SubmitToolReturns(answers(world))


async def _now(owner: Client, world: World) -> list[Any]:
    """What may not change."""
    request = registry_pb.GetMemoryBlockRequest(memory_block_id=world.block_id)
    block = await owner.registry.GetMemoryBlock(request)
    return [await owner.run(world.run_id), await owner.get_agent(world.agent_id), block]


def test_there_is_no_case_without_a_method() -> None:
    """A method that is renamed takes its case along."""
    assert set(CASES) == {method.name for method in METHODS}


async def test_the_same_ids_are_independent(store: str, tmp_path: Path) -> None:
    """Two tenants with one run_id, conversation_id, agent_id and request_id: each has its own run, events, messages and
    inbox, also while the other works; what one deletes stays with the other, and so does what cannot be used again."""
    script = [ASKED, ASKED, says("First."), says("Second.")]
    async with two_tenants(store, tmp_path, *script) as clients:
        runs = []
        for client, name in zip(clients, ("one", "two"), strict=True):
            await client.create_agent("sales", instructions=f"You are {name}.")
            await client.registry.CreateConversation(registry_pb.CreateConversationRequest(conversation_id="conv"))
            fields = {"run_id": "run", "conversation_id": "conv", "agent_id": "sales"}
            runs.append((await client.ask(f"I am {name}.", SECRET, **fields)).run)
        call_ids = [run.pending_tool_calls[0].tool_call_id for run in runs]
        assert call_ids[0] != call_ids[1]
        watches = [asyncio.create_task(client.watch("run")) for client in clients]
        for client, call_id in zip(clients, call_ids, strict=True):
            assert [c.call.tool_call_id for c in (await client.waiting()).calls] == [call_id]
            await client.answer("run", returned(call_id, "AZURE"), request_id="request")
        for client, watch, text in zip(clients, watches, ("First.", "Second."), strict=True):
            events = await watch
            assert event_kinds(events).count("run_stopped") == 2
            said = await client.messages("conv")
            assert said[-1].assistant.text == text
        first, second = clients
        await first.delete("run")
        assert (await refusal(first.agent.Step(step("Again.", run_id="run")))).reason == "RUN_ID_REUSED"
        assert (await second.run("run")).status == runs_pb2.RUN_STATUS_COMPLETED
        await first.registry.DeleteConversation(registry_pb.DeleteConversationRequest(conversation_id="conv"))
        await first.registry.DeleteAgent(registry_pb.DeleteAgentRequest(agent_id="sales"))
        assert await second.messages("conv") == said
        assert (await second.get_agent("sales")).instructions == "You are two."


async def test_a_run_ended_by_one_tenant_leaves_the_run_of_that_id_of_another(store: str, tmp_path: Path) -> None:
    """A cancel ends the work of its tenant only."""
    async with two_tenants(store, tmp_path, ASKED, ASKED, says("Done.")) as (first, second):
        (await first.ask("Go.", SECRET, run_id="run"))
        call_id = (await second.ask("Go.", SECRET, run_id="run")).run.pending_tool_calls[0].tool_call_id
        assert (await first.cancel("run")).status == runs_pb2.RUN_STATUS_CANCELLED
        run = (await second.answer("run", returned(call_id, "AZURE"))).run
        assert run.status == runs_pb2.RUN_STATUS_COMPLETED


async def test_configured_agents_are_everybodys_and_nobody_may_change_them(store: str, tmp_path: Path) -> None:
    """They belong to the operator."""
    async with two_tenants(store, tmp_path) as clients:
        for client in clients:
            assert (await client.get_agent("default")).configured
            deleted = client.registry.DeleteAgent(registry_pb.DeleteAgentRequest(agent_id="default"))
            assert (await refusal(deleted)).reason == "AGENT_READ_ONLY"


async def test_a_sleeptime_agent_is_made_of_the_agents_of_its_tenant(store: str, tmp_path: Path) -> None:
    """Those of another one are not there, in a creation as in a change; the same ids may be of each."""
    async with two_tenants(store, tmp_path) as (owner, stranger):
        for agent_id in ("clerk", "keeper"):
            await owner.create_agent(agent_id, instructions=MARK)
        desk = agents_pb2.Sleeptime(foreground_agent_id="clerk", memory_agent_ids=["keeper"])
        sleeptime = {"kind": agents_pb2.AGENT_KIND_SLEEPTIME, "sleeptime": desk}
        refused = await refusal(stranger.create_agent("desk", **sleeptime))
        assert refused.code == "INVALID_ARGUMENT"
        assert refused.message == (
            "agent.sleeptime.foreground_agent_id: no agent 'clerk'; ListAgents shows all; "
            "agent.sleeptime.memory_agent_ids[0]: no agent 'keeper'; ListAgents shows all"
        )
        await stranger.create_agent("mine")
        mine = agents_pb2.Sleeptime(foreground_agent_id="mine", memory_agent_ids=["default"])
        await stranger.create_agent("desk", kind=agents_pb2.AGENT_KIND_SLEEPTIME, sleeptime=mine)
        changed = agents_pb2.Agent(agent_id="desk", sleeptime=desk)
        mask = FieldMask(paths=["sleeptime"])
        update = registry_pb.UpdateAgentRequest(agent=changed, update_mask=mask)
        assert (await refusal(stranger.registry.UpdateAgent(update))).code == "INVALID_ARGUMENT"


async def test_a_memory_run_is_of_the_tenant_of_what_it_reads(store: str, tmp_path: Path) -> None:
    """Two tenants have agents and conversations of the same ids: each memory agent reads what was said in its own."""
    script = [says("Noted.")] * 4
    async with two_tenants(store, tmp_path, *script) as tenants:
        for number, client in enumerate(tenants):
            await make_agents(client)
            request = registry_pb.CreateConversationRequest(conversation_id="talk")
            await client.registry.CreateConversation(request)
            await client.ask(f"I am {number}.", agent_id="desk", conversation_id="talk", run_id="run-1")
        for number, client in enumerate(tenants):
            (read,) = await memory_runs(client, 1)
            assert read.parent_run_id == "run-1"
            assert (await part_of(client, read)).text == f"User: I am {number}.\n\nAssistant: Noted."
            listed = (await client.list_runs(parent_run_id="run-1")).runs
            assert [run.run_id for run in listed] == [read.run_id]
        (read,) = await memory_runs(tenants[0], 1)
        assert (await refusal(tenants[1].run(read.run_id))).reason == "RUN_NOT_FOUND"
