"""How a store is named by a URL."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def is_postgres(setting: str) -> bool:
    """Whether it is the URL of a PostgreSQL database."""
    return setting.lower().startswith(("postgresql://", "postgres://"))


def problem_of(setting: str) -> str:
    """Why a store cannot be meant by this, without showing what may be a password; empty if one can."""
    if not is_postgres(setting):
        return (
            "" if not _URL.match(setting) else "is a URL, but not of PostgreSQL; write postgresql://user@host/database"
        )
    try:
        parts = urlsplit(setting)
    except ValueError:
        parts = None
    if parts is None or parts.fragment or "@" in parts.path + parts.query:
        return "the URL cannot be read; write / ? # [ ] and @ in user and password as %2F %3F %23 %5B %5D and %40"
    return ""


def without_password(url: str) -> str:
    """The URL without password and parameters, for people to read."""
    parts = urlsplit(url)
    login, _, place = parts.netloc.rpartition("@")
    user = login.partition(":")[0]
    return urlunsplit((parts.scheme, f"{user}@{place}" if user else place, parts.path, "", ""))


def one_by_one(url: str) -> tuple[str, ...]:
    """A URL for each of the hosts that this one names, in their order."""
    parts = urlsplit(url)
    login, at, places = parts.netloc.rpartition("@")
    return tuple(urlunsplit(parts._replace(netloc=f"{login}{at}{place}")) for place in places.split(","))
