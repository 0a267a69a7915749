"""The service with a store that does not flush, for the test that must notice it. Takes the service's arguments."""

from __future__ import annotations

import sqlite3
import sys
from typing import Any

from agent_service.cli import main


class _Unflushed(sqlite3.Connection):
    """Never lets itself be told to flush."""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        """The statement, or one that says not to flush."""
        return super().execute(sql.replace("synchronous = FULL", "synchronous = OFF"), *parameters)


if __name__ == "__main__":
    connect = sqlite3.connect
    sqlite3.connect = lambda *args, **kwargs: connect(*args, factory=_Unflushed, **kwargs)  # type: ignore[assignment]  # the same function, of another class
    sys.exit(main())
