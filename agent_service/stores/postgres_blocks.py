"""Memory blocks of the PostgreSQL store."""

from __future__ import annotations

from agent_service.domain.memory import BlockFilter, BlockRecord, MemoryBlock, check_same_block
from agent_service.engine.registry import EditBlock
from agent_service.stores import postgres_block_rows as rows
from agent_service.stores.errors import memory_block_not_found
from agent_service.stores.postgres import PostgresStore
from agent_service.stores.postgres_database import Connection
from agent_service.stores.postgres_hints import CLOCK


class PostgresBlocks:
    """Implements Blocks, on the connections of a store."""

    def __init__(self, store: PostgresStore) -> None:
        self._database = store.database
        self._hints = store.hints

    async def create_block(self, tenant: str, block: MemoryBlock) -> BlockRecord:
        """See Blocks."""

        async def work(db: Connection) -> BlockRecord:
            key = (tenant, block.memory_block_id)
            existing = (await rows.lock_blocks(db, [key])).get(key)
            if existing is not None:
                return check_same_block(existing, block)
            now = await self._now(db)
            record = BlockRecord(block, 1, now, now)
            await rows.insert_block(db, tenant, record)
            return record

        return await self._database.write(work)

    async def get_block(self, tenant: str, block_id: str) -> BlockRecord:
        """See Blocks."""
        found = await rows.load_blocks(self._database, tenant, (block_id,))
        if not found:
            raise memory_block_not_found(block_id)
        return found[0]

    async def list_blocks(self, tenant: str, which: BlockFilter, after_id: str, limit: int) -> tuple[BlockRecord, ...]:
        """See Blocks."""
        return await rows.list_blocks(self._database, tenant, which, after_id, limit)

    async def update_block(self, tenant: str, block_id: str, edit: EditBlock) -> BlockRecord:
        """See Blocks."""

        async def work(db: Connection) -> BlockRecord:
            before = await _lock_block(db, tenant, block_id)
            after = before.changed(edit(before), await self._now(db))
            if after is not before:
                await rows.update_blocks(db, [(tenant, after)])
            return after

        return await self._database.write(work)

    async def delete_block(self, tenant: str, block_id: str, etag: str) -> None:
        """See Blocks."""

        async def work(db: Connection) -> None:
            (await _lock_block(db, tenant, block_id)).expect(etag)
            await rows.delete_block(db, tenant, block_id)

        await self._database.write(work)

    async def _now(self, db: Connection) -> int:
        if (now := self._hints.clock) is not None:
            return now
        return int(await db.fetchval(f"SELECT {CLOCK}"))


async def _lock_block(db: Connection, tenant: str, block_id: str) -> BlockRecord:
    found = (await rows.lock_blocks(db, [(tenant, block_id)])).get((tenant, block_id))
    if found is None:
        raise memory_block_not_found(block_id)
    return found
