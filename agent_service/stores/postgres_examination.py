"""Looking at a PostgreSQL database without changing it: whether this program could use it."""

from __future__ import annotations

import time

from agent_service.stores.errors import SchemaError
from agent_service.stores.examination import Examination
from agent_service.stores.postgres_database import SCHEMA_VERSION
from agent_service.stores.postgres_hosts import SCHEMA, START_ERRORS, Hosts, unusable
from agent_service.stores.urls import without_password

_LOOK = f"""
    SELECT to_regclass('{SCHEMA}.schema_version') IS NOT NULL,
        EXISTS (SELECT FROM pg_tables WHERE schemaname = '{SCHEMA}'),
        CASE WHEN to_regnamespace('{SCHEMA}') IS NULL THEN has_database_privilege(current_database(), 'CREATE')
            ELSE has_schema_privilege('{SCHEMA}', 'CREATE') END,
        extract(epoch FROM clock_timestamp())::float8"""


async def examine_postgres(url: str, seconds: float) -> Examination:
    """Raises SchemaError for a database that cannot be reached, written to or used."""
    place = without_password(url)
    try:
        connection = await Hosts(url, seconds).connect()
        try:
            before = time.time()
            (row,) = await connection.fetch(_LOOK)
            ours, others, makes, clock = row
            ahead = clock - (before + time.time()) / 2
            version = await connection.fetchval(f"SELECT version FROM {SCHEMA}.schema_version") if ours else 0
        finally:
            connection.terminate()
    except START_ERRORS as error:
        raise unusable(url, error) from error
    if others and not ours:
        raise SchemaError(f"the schema '{SCHEMA}' of {place} belongs to something else; name another database")
    if version > SCHEMA_VERSION:
        raise SchemaError(f"{place} has schema {version}, newer than {SCHEMA_VERSION}; use the newer program")
    if version < SCHEMA_VERSION and not makes:
        raise SchemaError(
            f"the role of {place} may not make tables; as an administrator: CREATE SCHEMA {SCHEMA} AUTHORIZATION role"
        )
    return Examination(version, SCHEMA_VERSION, ahead)
