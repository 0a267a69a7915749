"""Memory blocks as callers make, read, change and delete them, and as agents name them."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from agentrpc.v1 import agent_registry_service_pb2 as pb
from agentrpc.v1 import agents_pb2, server_service_pb2
from google.protobuf.field_mask_pb2 import FieldMask

from tests.blocks import (
    appends,
    block,
    create_request,
    delete,
    make,
    memory_of,
    overwrite,
    remembering,
    update,
    update_request,
    value,
)
from tests.scripted_openai import Gate, Reply, Request, ScriptedOpenAI, gated, says
from tests.service import Client, refusal, scripted, serving

pytestmark = pytest.mark.anyio

SMILES = "\U0001f600" * 3


def writes_down(request: Request) -> Reply:
    """The model writes down what it is told."""
    if request.last["role"] == "tool":
        return says("Noted.")
    return appends("human", request.last["content"])


async def listed(client: Client, **fields: Any) -> list[list[str]]:
    """The ids of ListMemoryBlocks, page by page."""
    pages, token = [], ""
    while True:
        page = await client.registry.ListMemoryBlocks(pb.ListMemoryBlocksRequest(page_token=token, **fields))
        pages.append([each.memory_block_id for each in page.memory_blocks])
        token = page.next_page_token
        if not token:
            return pages


async def test_a_block_is_read_as_it_was_made(store: str) -> None:
    """With what the server adds; a limit that is not named is the default, an id that is not named is issued."""
    async with scripted([], store) as (client, _):
        made = await make(client, "human", SMILES, label="the-Human_1", description="Who.", limit=3, read_only=True)
        assert made == await block(client, "human")
        assert (made.label, made.value, made.description) == ("the-Human_1", SMILES, "Who.")
        assert (made.limit, made.read_only, made.revision, bool(made.etag)) == (3, True, 1, True)
        assert made.create_time == made.update_time
        issued = await make(client, "", label="x")
        assert (issued.memory_block_id[:4], issued.limit) == ("mem_", 5000)


async def test_a_repeated_create_returns_the_block(store: str) -> None:
    """An equal one; another content is refused, whichever field differs."""
    async with scripted([], store) as (client, _):
        made = await make(client, "human", "Ada")
        assert await make(client, "human", "Ada", limit=5000) == made
        for fields in ({"value": "Bob"}, {"label": "x"}, {"limit": 7}, {"read_only": True}, {"description": "x"}):
            request = create_request("human", **{"value": "Ada", **fields})  # type: ignore[arg-type]  # each its own
            refused = await refusal(client.registry.CreateMemoryBlock(request))
            assert (refused.code, refused.reason) == ("ALREADY_EXISTS", "MEMORY_BLOCK_ID_REUSED")
        assert await block(client, "human") == made


async def test_an_update_changes_what_the_mask_names(store: str) -> None:
    """It counts the revision and changes the etag; a change to what it is already is none."""
    async with scripted([], store) as (client, _):
        made = await make(client, "human", "Ada")
        changed = await update(client, "human", "description", "limit", description="Who.", limit=10, value="ignored")
        assert (changed.value, changed.description, changed.limit, changed.revision) == ("Ada", "Who.", 10, 2)
        assert changed.etag != made.etag
        assert await update(client, "human", "limit", limit=10) == changed
        whole = await update(client, "human", etag=changed.etag, value="Bob")
        assert (whole.value, whole.description, whole.limit, whole.label) == ("Bob", "", 5000, "human")


async def test_a_value_is_only_overwritten_by_who_has_seen_it(store: str) -> None:
    """Without the etag the update is refused with its field; with an old one it is told the present one."""
    async with scripted([], store) as (client, _):
        made = await make(client, "human", "Ada")
        for paths in (("value",), ()):
            refused = await refusal(client.registry.UpdateMemoryBlock(update_request("human", *paths, value="Bob")))
            assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", ("memory_block.etag",))
        now = await overwrite(client, "human", "Bob")
        refused = await refusal(
            client.registry.UpdateMemoryBlock(update_request("human", "value", value="Eve", etag=made.etag))
        )
        assert (refused.code, refused.reason) == ("ABORTED", "ETAG_MISMATCH")
        assert refused.metadata == {"etag": now.etag}
        assert await value(client, "human") == "Bob"


async def test_of_two_updates_with_one_etag_one_wins(store: str) -> None:
    """The other one is told the etag of the first."""
    async with scripted([], store) as (client, _):
        made = await make(client, "human", "Ada")
        requests = [update_request("human", "value", value=name, etag=made.etag) for name in "ABCDE"]
        results = await asyncio.gather(
            *(client.registry.UpdateMemoryBlock(request) for request in requests), return_exceptions=True
        )
        won = [r.memory_block for r in results if isinstance(r, pb.UpdateMemoryBlockResponse)]
        lost = [r.code().name for r in results if isinstance(r, grpc.aio.AioRpcError)]
        assert (len(won), lost) == (1, ["ABORTED"] * 4)
        assert await block(client, "human") == won[0]


async def test_bad_fields_are_named(store: str) -> None:
    """Their path, what was found, what is allowed."""
    async with scripted([], store) as (client, _):
        request = create_request("human", "aaaa", label="no spaces", limit=-1, description="x" * 5000)
        refused = await refusal(client.registry.CreateMemoryBlock(request))
        assert refused.fields == ("memory_block.label", "memory_block.limit", "memory_block.description")
        assert "memory_block.limit: -1 is not 1 to 100000, or 0 for the default" in refused.message
        refused = await refusal(client.registry.CreateMemoryBlock(create_request("human", SMILES, limit=2)))
        assert refused.message == "memory_block.value: 3 characters; at most 2, the block's limit, are allowed"
        refused = await refusal(client.registry.CreateMemoryBlock(create_request("no spaces", label="x")))
        assert refused.fields == ("memory_block.memory_block_id",)
        await make(client, "human", "Ada")
        refused = await refusal(client.registry.UpdateMemoryBlock(update_request("human", "limit", limit=2)))
        assert refused.message == (
            "memory_block.limit: 2 is less than the 3 characters of its value; shorten that, too, or first"
        )
        refused = await refusal(client.registry.UpdateMemoryBlock(update_request("human", "label", label="x")))
        assert "'label' cannot be changed; these can: value, description, limit, read_only" in refused.message
        refused = await refusal(client.registry.ListMemoryBlocks(pb.ListMemoryBlocksRequest(label="\0", page_size=-1)))
        assert refused.fields == ("label", "page_size")


async def test_an_update_is_held_to_what_it_changes(shared_store: str) -> None:
    """A block that was made when more was allowed is not in the way of a change of its other fields."""
    async with ScriptedOpenAI([]) as upstream:
        async with serving(upstream, shared_store) as client:
            made = await make(client, "human", "Ada", description="Who.", limit=50)
        limits = '{"max_memory_block_limit": 10, "max_memory_description_bytes": 2}'
        async with serving(upstream, shared_store, limits=limits) as client:
            changed = await update(client, "human", "value", "read_only", value="x" * 50, etag=made.etag)
            assert (len(changed.value), changed.limit, changed.description) == (50, 50, "Who.")
            request = update_request("human", "limit", "description", limit=11, description="Who")
            refused = await refusal(client.registry.UpdateMemoryBlock(request))
            assert refused.fields == ("memory_block.limit", "memory_block.description")


async def test_a_deleted_block_is_gone(store: str) -> None:
    """With an old etag it stays; a second time there is none."""
    async with scripted([], store) as (client, _):
        made = await make(client, "human", "Ada")
        await overwrite(client, "human", "Bob")
        request = pb.DeleteMemoryBlockRequest(memory_block_id="human", etag=made.etag)
        assert (await refusal(client.registry.DeleteMemoryBlock(request))).reason == "ETAG_MISMATCH"
        await delete(client, "human", (await block(client, "human")).etag)
        for call in (delete(client, "human"), block(client, "human"), update(client, "human", "limit", limit=1)):
            refused = await refusal(call)
            assert (refused.code, refused.reason) == ("NOT_FOUND", "MEMORY_BLOCK_NOT_FOUND")


async def test_lists_are_by_id_and_page_by_page(store: str) -> None:
    """All, those of an agent, those of a label; an unknown agent is refused."""
    async with scripted([], store) as (client, _):
        for block_id in ("c", "a", "B", "e"):
            await make(client, block_id, label="even" if block_id in "Be" else block_id)
        await remembering(client, "e", "a", "c")
        assert await listed(client, page_size=3) == [["B", "a", "c"], ["e"]]
        assert await listed(client, agent_id="keeper", page_size=2) == [["a", "c"], ["e"]]
        assert await listed(client, agent_id="keeper", label="even") == [["e"]]
        assert await listed(client, label="odd") == [[]]
        refused = await refusal(client.registry.ListMemoryBlocks(pb.ListMemoryBlocksRequest(agent_id="nobody")))
        assert refused.reason == "AGENT_NOT_FOUND"


async def test_a_page_is_bounded_by_bytes(store: str) -> None:
    """Larger blocks come in more pages."""
    async with scripted([], store, limits='{"max_response_bytes": 3000}') as (client, _):
        for block_id in "abc":
            await make(client, block_id, "x" * 1400)
        assert await listed(client) == [["a", "b"], ["c"]]


async def test_an_agent_names_blocks_that_are_there(store: str) -> None:
    """Unknown and doubled ones, and those with the same label, are refused where they stand; so are too many."""
    async with scripted([], store, limits='{"max_memory_blocks": 4}') as (client, _):
        await make(client, "a")
        await make(client, "b", label="a")
        agent = agents_pb2.Agent(agent_id="x", memory_block_ids=["a", "nobody", "a", "b"])
        for call in (
            client.registry.CreateAgent(pb.CreateAgentRequest(agent=agent)),
            client.registry.CreateAgent(pb.CreateAgentRequest(agent=agents_pb2.Agent(memory_block_ids=["a"] * 5))),
            client.registry.CreateAgent(pb.CreateAgentRequest(agent=agents_pb2.Agent(memory_block_ids=["\0"]))),
        ):
            refused = await refusal(call)
            assert refused.code == "INVALID_ARGUMENT"
            assert refused.fields[0].startswith("agent.memory_block_ids")
        refused = await refusal(client.registry.CreateAgent(pb.CreateAgentRequest(agent=agent)))
        assert refused.message == (
            "agent.memory_block_ids[1]: no memory block 'nobody'; make it first (CreateMemoryBlock); "
            "agent.memory_block_ids[2]: 'a' is named twice; "
            "agent.memory_block_ids[3]: its label 'a' is that of 'a', too; the blocks of an agent have different labels"
        )


async def test_an_agents_blocks_can_be_changed(store: str) -> None:
    """By the mask; a change of something else is not held up by a block that was deleted meanwhile."""
    async with scripted([], store) as (client, _):
        for block_id in "ab":
            await make(client, block_id)
        await remembering(client, "a")
        request = pb.UpdateAgentRequest(
            agent=agents_pb2.Agent(agent_id="keeper", memory_block_ids=["b", "a"]),
            update_mask=FieldMask(paths=["memory_block_ids"]),
        )
        changed = (await client.registry.UpdateAgent(request)).agent
        assert (list(changed.memory_block_ids), changed.instructions) == (["b", "a"], "Remember.")
        await delete(client, "a")
        request.agent.description, request.update_mask.paths[:] = "x", ["description"]
        assert (await client.registry.UpdateAgent(request)).agent.description == "x"
        request.update_mask.paths[:] = ["memory_block_ids"]
        request.agent.memory_block_ids[:] = ["b", "c"]
        assert (await refusal(client.registry.UpdateAgent(request))).fields == ("agent.memory_block_ids[1]",)


async def test_the_server_says_what_it_can_and_its_limits(store: str) -> None:
    """The capability, and the four limits in force."""
    async with scripted([], store, limits='{"max_memory_blocks": 7}') as (client, _):
        info = await client.server.GetServerInfo(server_service_pb2.GetServerInfoRequest())
        limits = info.limits
        assert "memory_blocks" in info.capabilities
        assert (limits.default_memory_block_limit, limits.max_memory_block_limit) == (5000, 100_000)
        assert (limits.max_memory_blocks, limits.max_memory_description_bytes) == (7, 4096)


async def test_a_caller_and_a_run_that_race_lose_nothing(store: str) -> None:
    """Whoever comes second builds upon the first, or is told so."""
    async with scripted(writes_down, store) as (client, _):
        await make(client, "human", "start")
        await remembering(client, "human")
        for number in range(8):
            seen = await block(client, "human")
            text = f"{seen.value}\ncaller {number}"
            update_ = client.registry.UpdateMemoryBlock(update_request("human", "value", value=text, etag=seen.etag))
            run = client.ask(f"run {number}", agent_id="keeper")
            _, updated = await asyncio.gather(run, update_, return_exceptions=True)
            lost = isinstance(updated, grpc.aio.AioRpcError)
            assert not isinstance(updated, grpc.aio.AioRpcError) or updated.code() is grpc.StatusCode.ABORTED
            lines = (await value(client, "human")).split("\n")
            assert f"run {number}" in lines
            assert (f"caller {number}" in lines) is not lost
            assert lines[: len(seen.value.split("\n"))] == seen.value.split("\n")


async def test_runs_that_append_at_once_lose_nothing(store: str) -> None:
    """Of two agents, and many conversations: each text is there once."""
    async with scripted(writes_down, store) as (client, _):
        await make(client, "human", "start")
        await remembering(client, "human", agent_id="one")
        await remembering(client, "human", agent_id="two")
        asked = [client.ask(f"run {n}", agent_id="one" if n % 2 else "two") for n in range(24)]
        await asyncio.gather(*asked)
        lines = (await value(client, "human")).split("\n")
        assert lines[0] == "start"
        assert sorted(lines[1:]) == sorted(f"run {n}" for n in range(24))
        assert (await block(client, "human")).revision == 25


async def test_requests_are_equal_but_for_the_block_that_changed(store: str) -> None:
    """What stands before it in the prompt stays the same, to the byte, so that endpoints can remember it."""
    gate = Gate()
    script = [appends("b", "more"), gated(appends("c", "x"), gate), appends("a", "y"), says("Done.")]
    async with scripted(script, store) as (client, upstream):
        for block_id in "abc":
            await make(client, block_id, f"value of {block_id}")
        await remembering(client, *"abc")
        await client.ask("Go.", agent_id="keeper", run_id="run-1", background=True)
        await upstream.wait_for_requests(2)
        gate.open()
        await client.watch("run-1")
        systems = [memory_of(request.system) for request in upstream.requests]
        for label, before, after in zip("bca", systems, systems[1:], strict=False):
            shared = before[: before.index(f"[end of '{label}']")]
            assert after.startswith(shared)
            assert after != before
