"""Memory blocks of the SQLite store."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from agent_service.domain.memory import BlockFilter, BlockRecord, MemoryBlock, check_same_block
from agent_service.engine.registry import EditBlock
from agent_service.stores import sqlite_block_rows as rows
from agent_service.stores.errors import memory_block_not_found
from agent_service.stores.sqlite import SqliteStore


class SqliteBlocks:
    """Implements Blocks, on the connections of a store."""

    def __init__(self, store: SqliteStore, clock: Callable[[], int]) -> None:
        self._write = store.write
        self._read = store.read
        self._clock = clock

    async def create_block(self, tenant: str, block: MemoryBlock) -> BlockRecord:
        """See Blocks."""

        def work(db: sqlite3.Connection) -> BlockRecord:
            existing = rows.load_blocks(db, tenant, (block.memory_block_id,))
            if existing:
                return check_same_block(existing[0], block)
            now = self._clock()
            record = BlockRecord(block, 1, now, now)
            rows.put_blocks(db, tenant, (record,))
            return record

        return await self._write(work)

    async def get_block(self, tenant: str, block_id: str) -> BlockRecord:
        """See Blocks."""
        return await self._read(lambda db: _load_block(db, tenant, block_id))

    async def list_blocks(self, tenant: str, which: BlockFilter, after_id: str, limit: int) -> tuple[BlockRecord, ...]:
        """See Blocks."""
        return await self._read(lambda db: rows.list_blocks(db, tenant, which, after_id, limit))

    async def update_block(self, tenant: str, block_id: str, edit: EditBlock) -> BlockRecord:
        """See Blocks."""

        def work(db: sqlite3.Connection) -> BlockRecord:
            before = _load_block(db, tenant, block_id)
            after = before.changed(edit(before), self._clock())
            if after is not before:
                rows.put_blocks(db, tenant, (after,))
            return after

        return await self._write(work)

    async def delete_block(self, tenant: str, block_id: str, etag: str) -> None:
        """See Blocks."""

        def work(db: sqlite3.Connection) -> None:
            _load_block(db, tenant, block_id).expect(etag)
            rows.delete_block(db, tenant, block_id)

        await self._write(work)


def _load_block(db: sqlite3.Connection, tenant: str, block_id: str) -> BlockRecord:
    found = rows.load_blocks(db, tenant, (block_id,))
    if not found:
        raise memory_block_not_found(block_id)
    return found[0]
