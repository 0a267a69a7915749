"""How a store is named by a URL."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit


def is_postgres(setting: str) -> bool:
    """Whether it is the URL of a PostgreSQL database."""
    return setting.startswith(("postgresql://", "postgres://"))


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
