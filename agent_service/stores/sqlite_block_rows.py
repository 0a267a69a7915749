"""The SQL of memory blocks in the SQLite store."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from agent_service.domain.memory import BlockFilter, BlockRecord
from agent_service.stores import codec
from agent_service.stores.records import block_columns


def load_blocks(db: sqlite3.Connection, tenant: str, block_ids: tuple[str, ...]) -> tuple[BlockRecord, ...]:
    """Those of these blocks that there are, in this order."""
    if not block_ids:
        return ()
    rows = db.execute(
        "SELECT codec, body FROM json_each(?) CROSS JOIN memory_blocks ON tenant = ? AND memory_block_id = value "
        "ORDER BY key",
        (codec.encode(block_ids), tenant),
    )
    return tuple(codec.decode_block(version, body) for version, body in rows)


def list_blocks(
    db: sqlite3.Connection, tenant: str, which: BlockFilter, after_id: str, limit: int
) -> tuple[BlockRecord, ...]:
    """A page of blocks, by id."""
    wanted = codec.encode(sorted(which.block_ids)) if which.block_ids is not None else None
    rows = db.execute(
        "SELECT codec, body FROM memory_blocks WHERE tenant = ?1 AND memory_block_id > ?2 AND (?3 = '' OR label = ?3) "
        "AND (?4 IS NULL OR memory_block_id IN (SELECT value FROM json_each(?4))) ORDER BY memory_block_id LIMIT ?5",
        (tenant, after_id, which.label, wanted, limit),
    )
    return tuple(codec.decode_block(version, body) for version, body in rows)


def put_blocks(db: sqlite3.Connection, tenant: str, records: Iterable[BlockRecord]) -> None:
    """Writes new or changed blocks."""
    db.executemany(
        "INSERT INTO memory_blocks (tenant, memory_block_id, label, codec, body) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (tenant, memory_block_id) DO UPDATE SET label = excluded.label, codec = excluded.codec, "
        "body = excluded.body",
        [(tenant, *block_columns(record)) for record in records],
    )


def delete_block(db: sqlite3.Connection, tenant: str, block_id: str) -> None:
    """Deletes a block."""
    db.execute("DELETE FROM memory_blocks WHERE tenant = ? AND memory_block_id = ?", (tenant, block_id))
