"""The part of AgentRegistryService that keeps memory blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grpc
from agentrpc.v1 import agent_registry_service_pb2 as pb
from agentrpc.v1 import agent_registry_service_pb2_grpc as pb_grpc
from agentrpc.v1 import memory_pb2

from agent_service.domain.errors import FieldViolation, invalid
from agent_service.domain.memory import (
    CHANGEABLE,
    FIELDS,
    BlockFilter,
    BlockRecord,
    MemoryBlock,
    label_problem,
    problems,
)
from agent_service.engine.agents import Agents
from agent_service.engine.limits import Limits
from agent_service.engine.registry import Registry
from agent_service.engine.runs import Runs
from agent_service.transport import translate
from agent_service.transport.access import current_caller
from agent_service.transport.paging import bounded_page, page_size, read_token, write_token
from agent_service.transport.requests import Reader, masked

Context = grpc.aio.ServicerContext[Any, Any]


class MemoryServicer(pb_grpc.AgentRegistryServiceServicer):
    """Adapts memory blocks onto the registry."""

    def __init__(self, agents: Agents, registry: Registry, runs: Runs, limits: Limits) -> None:
        self._agents = agents
        self._registry = registry
        self._runs = runs
        self._limits = limits

    async def CreateMemoryBlock(
        self, request: pb.CreateMemoryBlockRequest, context: Context
    ) -> pb.CreateMemoryBlockResponse:
        reader = Reader(self._limits, "memory_block.")
        reader.id("memory_block_id", request.memory_block.memory_block_id)
        reader.done()
        block = self._block(request.memory_block)
        self._check(block, FIELDS)
        block = replace(block, memory_block_id=block.memory_block_id or self._runs.parts.new_id("mem"))
        record = await self._registry.create_block(current_caller().tenant, block)
        return pb.CreateMemoryBlockResponse(memory_block=translate.memory_block(record))

    async def GetMemoryBlock(self, request: pb.GetMemoryBlockRequest, context: Context) -> pb.GetMemoryBlockResponse:
        block_id = self._block_id("", request.memory_block_id)
        record = await self._registry.get_block(current_caller().tenant, block_id)
        return pb.GetMemoryBlockResponse(memory_block=translate.memory_block(record))

    async def ListMemoryBlocks(
        self, request: pb.ListMemoryBlocksRequest, context: Context
    ) -> pb.ListMemoryBlocksResponse:
        reader = Reader(self._limits)
        reader.id("agent_id", request.agent_id)
        if request.label and (problem := label_problem(request.label)):
            reader.problems.add("label", problem)
        size = page_size(reader.problems, self._limits, request.page_size)
        _, after_id = read_token(reader.problems, "memory_blocks", request.page_token)
        reader.done()
        block_ids = None
        if request.agent_id:
            agent = await self._agents.look_up(request.agent_id, current_caller())
            block_ids = frozenset(agent.definition.memory_block_ids)
        which = BlockFilter(block_ids, request.label)
        found = await self._registry.list_blocks(current_caller().tenant, which, after_id, size + 1)
        shown = bounded_page(map(translate.memory_block, found), size, self._limits.max_response_bytes)
        more = bool(shown) and len(shown) < len(found)
        token = write_token("memory_blocks", 0, shown[-1].memory_block_id) if more else ""
        return pb.ListMemoryBlocksResponse(memory_blocks=shown, next_page_token=token)

    async def UpdateMemoryBlock(
        self, request: pb.UpdateMemoryBlockRequest, context: Context
    ) -> pb.UpdateMemoryBlockResponse:
        block_id = self._block_id("memory_block.", request.memory_block.memory_block_id)
        names, etag = masked(request.update_mask.paths, CHANGEABLE), request.memory_block.etag
        if "value" in names and not etag:
            text = "is empty, and value is to be changed; read the block and send its etag"
            raise invalid(FieldViolation("memory_block.etag", text))
        wanted = self._block(request.memory_block)

        def edit(present: BlockRecord) -> MemoryBlock:
            present.expect(etag)
            block = replace(present.block, **{name: getattr(wanted, name) for name in names})
            self._check(block, names)
            return block

        record = await self._registry.update_block(current_caller().tenant, block_id, edit)
        return pb.UpdateMemoryBlockResponse(memory_block=translate.memory_block(record))

    async def DeleteMemoryBlock(
        self, request: pb.DeleteMemoryBlockRequest, context: Context
    ) -> pb.DeleteMemoryBlockResponse:
        block_id = self._block_id("", request.memory_block_id)
        await self._registry.delete_block(current_caller().tenant, block_id, request.etag)
        return pb.DeleteMemoryBlockResponse()

    def _block_id(self, prefix: str, block_id: str) -> str:
        reader = Reader(self._limits, prefix)
        reader.required_id("memory_block_id", block_id, "a memory block")
        reader.done()
        return block_id

    def _block(self, value: memory_pb2.MemoryBlock) -> MemoryBlock:
        return MemoryBlock(
            memory_block_id=value.memory_block_id,
            label=value.label,
            value=value.value,
            description=value.description,
            limit=value.limit or self._limits.default_memory_block_limit,
            read_only=value.read_only,
        )

    def _check(self, block: MemoryBlock, fields: tuple[str, ...]) -> None:
        limits = self._limits
        found = problems(block, limits.max_memory_block_limit, limits.max_memory_description_bytes, fields)
        violations = tuple(FieldViolation(f"memory_block.{field}", text) for field, text in found)
        if violations:
            raise invalid(*violations)
