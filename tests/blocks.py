"""Memory blocks in tests over gRPC: calls of the registry, and a model that edits."""

from __future__ import annotations

from typing import Any

from agentrpc.v1 import agent_registry_service_pb2 as pb
from agentrpc.v1 import agents_pb2, events_pb2, memory_pb2
from google.protobuf.field_mask_pb2 import FieldMask

from tests.scripted_openai import Reply, calls
from tests.service import Client

TOOLS = ["memory_append", "memory_replace", "memory_insert", "memory_rethink"]


async def make(client: Client, block_id: str, value: str = "", **fields: Any) -> memory_pb2.MemoryBlock:
    """CreateMemoryBlock; the label is the id unless told otherwise."""
    return (await client.registry.CreateMemoryBlock(create_request(block_id, value, **fields))).memory_block


def create_request(block_id: str, value: str = "", **fields: Any) -> pb.CreateMemoryBlockRequest:
    """A CreateMemoryBlockRequest."""
    label = fields.pop("label", block_id)
    block = memory_pb2.MemoryBlock(memory_block_id=block_id, label=label, value=value, **fields)
    return pb.CreateMemoryBlockRequest(memory_block=block)


async def block(client: Client, block_id: str) -> memory_pb2.MemoryBlock:
    """GetMemoryBlock."""
    return (await client.registry.GetMemoryBlock(pb.GetMemoryBlockRequest(memory_block_id=block_id))).memory_block


async def value(client: Client, block_id: str) -> str:
    """What a block holds."""
    return (await block(client, block_id)).value


async def update(client: Client, block_id: str, *paths: str, **fields: Any) -> memory_pb2.MemoryBlock:
    """UpdateMemoryBlock of these fields."""
    return (await client.registry.UpdateMemoryBlock(update_request(block_id, *paths, **fields))).memory_block


def update_request(block_id: str, *paths: str, **fields: Any) -> pb.UpdateMemoryBlockRequest:
    """An UpdateMemoryBlockRequest."""
    changed = memory_pb2.MemoryBlock(memory_block_id=block_id, **fields)
    return pb.UpdateMemoryBlockRequest(memory_block=changed, update_mask=FieldMask(paths=paths))


async def overwrite(client: Client, block_id: str, text: str) -> memory_pb2.MemoryBlock:
    """A caller reads a block and gives it another value."""
    return await update(client, block_id, "value", value=text, etag=(await block(client, block_id)).etag)


async def delete(client: Client, block_id: str, etag: str = "") -> None:
    """DeleteMemoryBlock."""
    await client.registry.DeleteMemoryBlock(pb.DeleteMemoryBlockRequest(memory_block_id=block_id, etag=etag))


async def remembering(client: Client, *block_ids: str, agent_id: str = "keeper", **fields: Any) -> agents_pb2.Agent:
    """An agent with these blocks."""
    return await client.create_agent(agent_id, memory_block_ids=block_ids, instructions="Remember.", **fields)


def appends(label: str, text: str) -> Reply:
    """The model adds a text to a block."""
    return calls(("memory_append", {"label": label, "text": text}))


def rethinks(label: str, text: str) -> Reply:
    """The model gives a block another value."""
    return calls(("memory_rethink", {"label": label, "value": text}))


def reads(events: list[events_pb2.RunEvent]) -> list[list[tuple[str, int]]]:
    """What the model was shown, by label and revision, as the events tell it."""
    told = [event.memory_read for event in events if event.HasField("memory_read")]
    return [[(each.label, each.revision) for each in read.blocks] for read in told]


def memory_of(system: str) -> str:
    """The part of a system prompt that is memory."""
    return system[system.index("Your memory, as it is now") :]
