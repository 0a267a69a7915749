"""Which processes use a SQLite file: each holds a lock on a file beside it, which the system drops when it dies."""

from __future__ import annotations

import os
from pathlib import Path

from agent_service.stores.errors import SchemaError

try:
    import fcntl
except ImportError:  # Windows: nobody knows to be alone, so the leases of lost runs are waited for
    fcntl = None  # type: ignore[assignment]  # a module, or None where there is none


class Presence:
    """`alone` is True if no other process used the file when this one came. Raises SchemaError."""

    def __init__(self, path: Path) -> None:
        self.alone = False
        if fcntl is None:
            return
        # Not the file itself: closing another handle on it would drop SQLite's own locks. Links are followed, as SQLite
        # does, so that one file has one lock.
        try:
            self._file = os.fdopen(os.open(f"{path.resolve()}-lock", os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise SchemaError(f"cannot lock the store {path}: {error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.alone = True
        except OSError:
            pass

    def share(self) -> None:
        """Lets others come. Until then they wait in this method."""
        if fcntl is not None:
            fcntl.flock(self._file, fcntl.LOCK_SH)

    def close(self) -> None:
        """This process does not use the file any more."""
        if fcntl is not None:
            self._file.close()
