"""What a store that several processes share holds, as another program sees and changes it: SQL, whatever the store."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import asyncpg

from agent_service.stores.urls import is_postgres

SCHEMA = "agent_service"
"""Where the tables are in a PostgreSQL database."""

_TABLES = f"SELECT tablename FROM pg_tables WHERE schemaname = '{SCHEMA}'"
_OTHERS = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"


async def emptied(store: str) -> str:
    """The same setting, once nothing of the store is left, nor anybody who is connected to it."""
    if is_postgres(store):
        async with _connected(store) as database:
            while await database.fetchval(f"SELECT count(pg_terminate_backend(pid)) {_OTHERS}"):
                pass
            # Many times as fast as to truncate the tables, or to make them anew.
            tables = await database.fetch(f"{_TABLES} AND tablename <> 'schema_version'")
            await database.execute("SET session_replication_role = replica")
            await database.execute("".join(f"DELETE FROM {table};" for (table,) in tables) or "SELECT")
    else:
        for file in Path(store).parent.glob(f"{Path(store).name}*"):
            file.unlink()
    return store


async def edit(store: str, *statements: str) -> None:
    """Another program writes to the store. What the store itself would refuse is not refused."""
    if is_postgres(store):
        async with _connected(store, session_replication_role="replica") as database, database.transaction():
            for statement in statements:
                await database.execute(statement)
        return
    with closing(sqlite3.connect(store, isolation_level=None)) as file:
        file.execute("BEGIN IMMEDIATE")
        triggers = file.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        dropped = [f"DROP TRIGGER {name}" for name, _ in triggers]
        for statement in (*dropped, *statements, *(sql for _, sql in triggers), "COMMIT"):
            file.execute(statement)


async def edit_bodies(store: str, table: str, which: str, **fields: Any) -> None:
    """Another program sets these fields of the JSON in the rows that meet a condition."""
    for (body,) in await rows(store, f"SELECT body FROM {table} WHERE {which}"):
        edited = json.dumps(json.loads(body) | fields, separators=(",", ":"))
        await edit(store, f"UPDATE {table} SET body = {_quoted(edited)} WHERE body = {_quoted(body)}")


async def lost_twice(store: str) -> None:
    """Makes the store what it is after the process that works on a run was killed, the second time in a row."""
    await edit_bodies(store, "runs", "status = 'running'", losses=2)
    await edit(store, "UPDATE runs SET lease_expire_time = 1 WHERE status = 'running'")


async def rows(store: str, query: str) -> list[tuple[Any, ...]]:
    """What the query finds."""
    if is_postgres(store):
        async with _connected(store) as database:
            return [tuple(row) for row in await database.fetch(query)]
    with closing(sqlite3.connect(store)) as file:
        return file.execute(query).fetchall()


async def everything(store: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables."""
    known = "SELECT name FROM sqlite_schema WHERE type = 'table'"
    tables = await rows(store, _TABLES if is_postgres(store) else known)
    return {table: sorted(await rows(store, f"SELECT * FROM {table}"), key=repr) for (table,) in tables}


@asynccontextmanager
async def locked(store: str) -> AsyncIterator[None]:
    """Another program keeps everybody from writing, for this block."""
    if is_postgres(store):
        async with _connected(store) as database, database.transaction():
            await database.execute("LOCK TABLE conversations, runs IN EXCLUSIVE MODE")
            yield
        return
    with closing(sqlite3.connect(store, isolation_level=None)) as file:
        file.execute("BEGIN IMMEDIATE")
        yield


async def in_use(store: str) -> bool:
    """Whether somebody is in the middle of a transaction."""
    if is_postgres(store):
        return bool(await rows(store, f"SELECT 1 {_OTHERS} AND state <> 'idle'"))
    with closing(sqlite3.connect(store, timeout=0, isolation_level=None)) as file:
        try:
            file.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        return False


@asynccontextmanager
async def _connected(url: str, **settings: str) -> AsyncIterator[asyncpg.Connection]:
    database = await asyncpg.connect(url, server_settings={"search_path": SCHEMA, **settings})
    try:
        yield database
    finally:
        await database.close()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
