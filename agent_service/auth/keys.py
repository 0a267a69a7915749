"""API keys: a TOML file with the digest of each, read again when it changes.

[keys.billing-1]
sha256 = "..."
tenant = "acme"
scopes = ["run", "submit", "read"]
expires = 2027-01-31T00:00:00Z     # optional
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from agent_service.engine.access import CredentialError
from agent_service.engine.commands import Caller, Scope
from agent_service.files import FileError, Watched
from agent_service.toml_file import read_toml

PREFIX = "ak_"
"""Every key begins with this, so that searches for leaked secrets can find them."""
NAME = re.compile(r"[A-Za-z0-9._:-]{1,64}")
"""Names of keys and tenants."""
_RANDOM_BYTES = 32

Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]


class _Key(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    tenant: Name
    scopes: tuple[Scope, ...]
    expires: AwareDatetime | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: dict[Name, _Key] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Known:
    sha256: str
    caller: Caller
    expires: float


class ApiKeys:
    """The keys of a file. `clock` is Unix time in seconds. Raises FileError for a file that cannot be used at first."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._known = Watched((path,), lambda: _read(path))
        self._clock = clock

    async def identify(self, token: str) -> Caller:
        """See Authenticator."""
        digest = _digest(token)
        known = self._known.value.get(digest)
        # The time of the look-up tells of a digest at most, which does not lead to a key.
        if known is None or not hmac.compare_digest(known.sha256, digest):
            raise CredentialError("unknown API key")
        if known.expires <= self._clock():
            raise CredentialError(f"the API key '{known.caller.name}' has expired")
        return known.caller


def _read(path: Path) -> dict[str, _Known]:
    found: dict[str, _Known] = {}
    for name, key in read_toml(path, _File).keys.items():
        if key.sha256 in found:
            raise FileError(f"{path}: keys.{name}: has the sha256 of keys.{found[key.sha256].caller.name}")
        expires = key.expires.timestamp() if key.expires else float("inf")
        found[key.sha256] = _Known(key.sha256, Caller(key.tenant, name, frozenset(key.scopes)), expires)
    return found


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def new_key(name: str, tenant: str, scopes: tuple[Scope, ...], expires: datetime | None) -> tuple[str, str]:
    """A key, which is kept nowhere, and the text for the file."""
    key = PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    lines = [
        f"[keys.{json.dumps(name)}]",
        f'sha256 = "{_digest(key)}"',
        f"tenant = {json.dumps(tenant)}",
        f"scopes = {json.dumps([scope.value for scope in scopes])}",
    ]
    if expires is not None:
        lines.append(f"expires = {expires.isoformat()}")
    return key, "\n".join(lines) + "\n"
