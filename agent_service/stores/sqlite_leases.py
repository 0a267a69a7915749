"""The SQL of leases: who works on which run, until when, and how far runs are."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

from agent_service.domain.run import Claim
from agent_service.engine.store import Standing
from agent_service.stores import codec


def renew(db: sqlite3.Connection, claims: Collection[Claim], until: int) -> tuple[Claim, ...]:
    """Lets claims last until then; returns those that are stale."""
    return tuple(
        claim
        for claim in claims
        if not db.execute(
            "UPDATE runs SET lease_expire_time = ? "
            "WHERE tenant = ? AND run_id = ? AND epoch = ? AND status = 'running'",
            (until, claim.tenant, claim.run_id, claim.epoch),
        ).rowcount
    )


def lost_runs(db: sqlite3.Connection, now: int, limit: int) -> tuple[tuple[str, str], ...]:
    """Running runs whose lease is over, if this program can read them."""
    return tuple(
        db.execute(
            "SELECT tenant, run_id FROM runs WHERE status = 'running' AND lease_expire_time <= ? AND codec <= ? "
            "ORDER BY lease_expire_time LIMIT ?",
            (now, codec.CODEC_VERSION, limit),
        )
    )


def due_runs(db: sqlite3.Connection, now: int, limit: int) -> tuple[tuple[str, str], ...]:
    """Runs of which a call or the pause is overdue, if this program can read them."""
    return tuple(
        db.execute(
            "SELECT tenant, run_id FROM runs "
            "WHERE pause_expire_time > 0 AND pause_expire_time <= ?1 AND codec <= ?3 UNION "
            "SELECT runs.tenant, run_id FROM calls JOIN runs USING (run_key) "
            "WHERE state = 'pending' AND deadline > 0 AND deadline <= ?1 AND status = 'paused' "
            "AND runs.codec <= ?3 AND calls.codec <= ?3 LIMIT ?2",
            (now, limit, codec.CODEC_VERSION),
        )
    )


def queued_runs(db: sqlite3.Connection, limit: int) -> tuple[tuple[str, str], ...]:
    """Queued runs that are the first of their conversation, which has no other run that is running or paused, if this
    program can read them."""
    return tuple(
        db.execute(
            "SELECT tenant, run_id FROM runs AS q WHERE status = 'queued' AND codec <= ?2 "
            "AND run_key = (SELECT min(run_key) FROM runs "
            "WHERE conversation_key = q.conversation_key AND status = 'queued') "
            "AND NOT EXISTS (SELECT 1 FROM runs "
            "WHERE conversation_key = q.conversation_key AND status IN ('running', 'paused')) LIMIT ?1",
            (limit, codec.CODEC_VERSION),
        )
    )


def end_all(db: sqlite3.Connection, now: int) -> None:
    """Ends every lease; for a process that knows that no other one is there."""
    db.execute("UPDATE runs SET lease_expire_time = ?1 WHERE status = 'running' AND lease_expire_time > ?1", (now,))


def data_version(db: sqlite3.Connection) -> int:
    """A number that changes when another connection has written."""
    return int(db.execute("PRAGMA data_version").fetchone()[0])


def standing(db: sqlite3.Connection, runs: Collection[tuple[str, str]]) -> dict[tuple[str, str], Standing]:
    """How far these runs are."""
    found = db.execute(
        "SELECT tenant, run_id, last_sequence, epoch FROM json_each(?) AS wanted CROSS JOIN runs "
        "ON tenant = json_extract(wanted.value, '$[0]') AND run_id = json_extract(wanted.value, '$[1]')",
        (codec.encode(list(runs)),),
    )
    return {(tenant, run_id): Standing(last, epoch) for tenant, run_id, last, epoch in found}
