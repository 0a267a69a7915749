"""Files that are read again when they change, so that keys and certificates are replaced without a restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

log = structlog.get_logger()

T = TypeVar("T")


class FileError(Exception):
    """A file cannot be used; the text names it and says what to change."""


class Watched(Generic[T]):
    """What `read` makes of some files, as they are now.

    `read` raises FileError for files that cannot be used: at first this passes, later the last good value stays and
    the error is logged once. Two files that belong together may be replaced one after the other: it is read again
    after each.
    """

    def __init__(self, paths: tuple[Path, ...], read: Callable[[], T]) -> None:
        self._paths = paths
        self._read = read
        self._seen = self._stamps()
        self._value = read()

    @property
    def value(self) -> T:
        """Looks at the times of the files, which takes microseconds."""
        stamps = self._stamps()
        if stamps != self._seen:
            # Before reading: what is written meanwhile is another change.
            self._seen = stamps
            try:
                self._value = self._read()
            except FileError as error:
                log.error("file.not_reloaded", error=str(error))
            else:
                log.info("file.reloaded", paths=[str(path) for path in self._paths])
        return self._value

    def _stamps(self) -> tuple[object, ...]:
        return tuple(_stamp(path) for path in self._paths)


def read_bytes(path: Path) -> bytes:
    """The file. Raises FileError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error


def _stamp(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
