"""Memory blocks of the memory store."""

from __future__ import annotations

from collections.abc import Callable

from agent_service.domain.memory import BlockFilter, BlockRecord, MemoryBlock, check_same_block
from agent_service.engine.registry import EditBlock
from agent_service.stores.errors import memory_block_not_found
from agent_service.stores.memory import MemoryStore


class MemoryBlocks:
    """Implements Blocks."""

    def __init__(self, store: MemoryStore, clock: Callable[[], int]) -> None:
        self._store = store
        self._clock = clock

    async def create_block(self, tenant: str, block: MemoryBlock) -> BlockRecord:
        """See Blocks."""
        existing = self._store.blocks.get((tenant, block.memory_block_id))
        if existing is not None:
            return check_same_block(existing, block)
        now = self._clock()
        return self._put_block(tenant, BlockRecord(block, 1, now, now))

    async def get_block(self, tenant: str, block_id: str) -> BlockRecord:
        """See Blocks."""
        record = self._store.blocks.get((tenant, block_id))
        if record is None:
            raise memory_block_not_found(block_id)
        return record

    async def list_blocks(self, tenant: str, which: BlockFilter, after_id: str, limit: int) -> tuple[BlockRecord, ...]:
        """See Blocks."""
        found = (r for (t, i), r in self._store.blocks.items() if t == tenant and i > after_id and which.takes(r.block))
        return tuple(sorted(found, key=lambda record: record.block.memory_block_id)[:limit])

    async def update_block(self, tenant: str, block_id: str, edit: EditBlock) -> BlockRecord:
        """See Blocks."""
        record = await self.get_block(tenant, block_id)
        return self._put_block(tenant, record.changed(edit(record), self._clock()))

    async def delete_block(self, tenant: str, block_id: str, etag: str) -> None:
        """See Blocks."""
        (await self.get_block(tenant, block_id)).expect(etag)
        del self._store.blocks[tenant, block_id]

    def _put_block(self, tenant: str, record: BlockRecord) -> BlockRecord:
        self._store.blocks[tenant, record.block.memory_block_id] = record
        return record
