"""The SQL of leases and of what is due in PostgreSQL."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from agent_service.domain.run import Claim
from agent_service.engine.store import Standing
from agent_service.stores import codec
from agent_service.stores.postgres_database import Connection, Database
from agent_service.stores.postgres_hints import CLOCK
from agent_service.stores.postgres_rows import FINAL, columns

if TYPE_CHECKING:
    import asyncpg

_Ids = tuple[tuple[str, str], ...]

_RENEW = f"""
    WITH held AS (
        SELECT r.run_key FROM unnest($1::text[], $2::text[], $3::bigint[]) AS w (tenant, run_id, epoch)
        JOIN runs r USING (tenant, run_id, epoch) WHERE r.status = 'running'
        ORDER BY r.conversation_key, r.run_key FOR NO KEY UPDATE OF r
    )
    UPDATE runs r SET lease_expire_time = coalesce($5::bigint, {CLOCK}) + $4::bigint
    FROM held WHERE r.run_key = held.run_key
    RETURNING r.tenant, r.run_id, r.epoch"""


async def renew(database: Database, claims: Collection[Claim], lease: int, clock: int | None) -> tuple[Claim, ...]:
    """Lets claims last `lease` nanoseconds from now; returns those that are stale."""
    held = columns(((claim.tenant, claim.run_id, claim.epoch) for claim in claims), 3)

    async def work(db: Connection) -> set[Claim]:
        return {Claim(*row) for row in await db.fetch(_RENEW, *held, lease, clock)}

    renewed = await database.write(work)
    return tuple(claim for claim in claims if claim not in renewed)


async def lost_runs(database: Database, limit: int, clock: int | None) -> _Ids:
    """Running runs whose lease is over, if this program can read them."""
    return _ids(
        await database.fetch(
            "SELECT tenant, run_id FROM runs WHERE status = 'running' AND codec <= $2 "
            f"AND lease_expire_time <= coalesce($3::bigint, {CLOCK}) ORDER BY lease_expire_time LIMIT $1",
            limit,
            codec.CODEC_VERSION,
            clock,
        )
    )


async def due_runs(database: Database, limit: int, clock: int | None) -> _Ids:
    """Runs of which a call or the pause is overdue, if this program can read them."""
    # The time is one value for the whole statement, so that the indexes on it are used.
    return _ids(
        await database.fetch(
            f"WITH clock AS MATERIALIZED (SELECT coalesce($3::bigint, {CLOCK}) AS now) "
            "SELECT tenant, run_id FROM runs "
            "WHERE pause_expire_time > 0 AND pause_expire_time <= (SELECT now FROM clock) AND codec <= $2 "
            "UNION SELECT r.tenant, r.run_id FROM calls k JOIN runs r USING (run_key) "
            "WHERE k.state = 'pending' AND k.deadline > 0 AND k.deadline <= (SELECT now FROM clock) "
            "AND r.status = 'paused' AND r.codec <= $2 AND k.codec <= $2 LIMIT $1",
            limit,
            codec.CODEC_VERSION,
            clock,
        )
    )


async def queued_runs(database: Database, limit: int) -> _Ids:
    """Queued runs that are the first of their conversation, which has no other run that is running or paused, if this
    program can read them."""
    return _ids(
        await database.fetch(
            "SELECT tenant, run_id FROM runs AS q WHERE status = 'queued' AND codec <= $2 "
            "AND run_key = (SELECT min(run_key) FROM runs "
            "WHERE conversation_key = q.conversation_key AND status = 'queued') "
            "AND NOT EXISTS (SELECT FROM runs "
            "WHERE conversation_key = q.conversation_key AND status IN ('running', 'paused')) LIMIT $1",
            limit,
            codec.CODEC_VERSION,
        )
    )


async def trim_events(database: Database, ended_before: int, limit: int) -> int:
    """Deletes the events of runs that ended before that time, the earliest first; says of how many runs."""
    ended = f"SELECT run_key FROM events WHERE {FINAL} AND create_time < $1"
    if not await database.fetch(f"{ended} LIMIT 1", ended_before):
        return 0

    async def work(db: Connection) -> int:
        # Other processes may be at it, too: each takes other runs.
        found = await db.fetch(f"{ended} ORDER BY create_time LIMIT $2 FOR UPDATE SKIP LOCKED", ended_before, limit)
        keys = [run_key for (run_key,) in found]
        await db.execute("DELETE FROM events WHERE run_key = ANY($1::bigint[])", keys)
        return len(keys)

    return await database.write(work)


async def standing(database: Database, runs: Collection[tuple[str, str]]) -> dict[tuple[str, str], Standing]:
    """How far these runs are."""
    found = await database.fetch(
        "SELECT tenant, run_id, last_sequence, epoch FROM unnest($1::text[], $2::text[]) AS w (tenant, run_id) "
        "JOIN runs USING (tenant, run_id)",
        *columns(runs, 2),
    )
    return {(tenant, run_id): Standing(last, epoch) for tenant, run_id, last, epoch in found}


def _ids(found: list[asyncpg.Record]) -> _Ids:
    return tuple((tenant, run_id) for tenant, run_id in found)
