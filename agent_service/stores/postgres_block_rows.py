"""The SQL of memory blocks in PostgreSQL. Whoever changes blocks locks them, after runs, and by their ids."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from agent_service.domain.memory import BlockFilter, BlockRecord
from agent_service.stores import codec
from agent_service.stores.postgres_rows import columns
from agent_service.stores.records import block_columns

if TYPE_CHECKING:
    from agent_service.stores.postgres_database import Connection
    from agent_service.stores.postgres_rows import Reader

BlockKey = tuple[str, str]
"""Tenant and id."""

_LOAD = """
    SELECT b.tenant, b.memory_block_id, b.codec, b.body
    FROM unnest($1::text[], $2::text[]) AS w (tenant, memory_block_id)
    JOIN memory_blocks b USING (tenant, memory_block_id)"""


async def load_blocks(db: Reader, tenant: str, block_ids: tuple[str, ...]) -> tuple[BlockRecord, ...]:
    """Those of these blocks that there are, in this order."""
    found = await _load(db, _LOAD, [(tenant, block_id) for block_id in block_ids])
    return tuple(found[tenant, block_id] for block_id in block_ids if (tenant, block_id) in found)


async def lock_blocks(db: Connection, keys: Collection[BlockKey]) -> dict[BlockKey, BlockRecord]:
    """Those of these blocks that there are, locked to the end of the transaction."""
    return await _load(db, f"{_LOAD} ORDER BY b.tenant, b.memory_block_id FOR UPDATE OF b", sorted(set(keys)))


async def _load(db: Reader, sql: str, keys: Collection[BlockKey]) -> dict[BlockKey, BlockRecord]:
    found = await db.fetch(sql, *columns(keys, 2))
    return {(tenant, block_id): codec.decode_block(*block) for tenant, block_id, *block in found}


async def list_blocks(
    db: Reader, tenant: str, which: BlockFilter, after_id: str, limit: int
) -> tuple[BlockRecord, ...]:
    """A page of blocks, by id."""
    found = await db.fetch(
        "SELECT codec, body FROM memory_blocks WHERE tenant = $1 AND memory_block_id > $2 AND ($3 = '' OR label = $3) "
        "AND ($4::text[] IS NULL OR memory_block_id = ANY($4)) ORDER BY memory_block_id LIMIT $5",
        tenant,
        after_id,
        which.label,
        None if which.block_ids is None else sorted(which.block_ids),
        limit,
    )
    return tuple(codec.decode_block(version, body) for version, body in found)


async def insert_block(db: Connection, tenant: str, record: BlockRecord) -> None:
    """Writes a new block."""
    await db.execute(
        "INSERT INTO memory_blocks (tenant, memory_block_id, label, codec, body) VALUES ($1, $2, $3, $4, $5)",
        tenant,
        *block_columns(record),
    )


async def update_blocks(db: Connection, records: Iterable[tuple[str, BlockRecord]]) -> None:
    """Writes changed blocks, each at most once, with their tenants; they are locked."""
    rows = [(tenant, *block_columns(record)) for tenant, record in records]
    await db.execute(
        "UPDATE memory_blocks b SET label = w.label, codec = w.codec, body = w.body "
        "FROM unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::text[]) AS w (tenant, memory_block_id, label, "
        "codec, body) WHERE b.tenant = w.tenant AND b.memory_block_id = w.memory_block_id",
        *columns(rows, 5),
    )


async def delete_block(db: Connection, tenant: str, block_id: str) -> None:
    """Deletes a block."""
    await db.execute("DELETE FROM memory_blocks WHERE tenant = $1 AND memory_block_id = $2", tenant, block_id)
