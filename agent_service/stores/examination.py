"""Looking at a store without changing it: whether this program could use it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from agent_service.stores.errors import SchemaError
from agent_service.stores.sqlite_thread import APPLICATION_ID, SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class Examination:
    """The store's schema, 0 if there is none yet, the one of this program, and by how many seconds its clock is ahead
    of this host's."""

    version: int
    newest: int
    ahead: float = 0.0


def examine_sqlite(path: Path) -> Examination:
    """Raises SchemaError for a file that cannot be used, and for one that cannot be made."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise SchemaError(f"there is no folder {folder}; make it, or name another file")
    for place in (folder, *((path,) if path.exists() else ())):
        if not os.access(place, os.R_OK | os.W_OK):
            raise SchemaError(f"{place} cannot be written to; let this user write there, or name another file")
    if not path.exists() or not path.stat().st_size:
        return Examination(0, SCHEMA_VERSION)
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (application,) = connection.execute("PRAGMA application_id").fetchone()
    except sqlite3.Error as error:
        raise SchemaError(f"cannot use {path}: {error}") from error
    if application != APPLICATION_ID:
        raise SchemaError(f"{path} is a database of something else; name another file")
    if version > SCHEMA_VERSION:
        raise SchemaError(f"{path} has schema {version}, newer than {SCHEMA_VERSION}; use the newer program")
    return Examination(version, SCHEMA_VERSION)
