"""Tokens (JWT) of one issuer, for this service, checked with the issuer's public keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jwt

from agent_service.auth.keys import NAME
from agent_service.engine.access import CredentialError
from agent_service.engine.commands import Caller, Scope

MAX_NAME = 128
"""Characters of a subject in the log."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a token must say. `leeway`, in seconds, is for clocks that differ. `algorithms` are of public keys only."""

    issuer: str
    audience: str
    algorithms: tuple[str, ...]
    leeway: float
    tenant_claim: str
    scope_claim: str


class KeySet(Protocol):
    """Public keys by their id."""

    async def find(self, key_id: str) -> jwt.PyJWK:
        """The key; the only one for an empty id. Raises CredentialError or CheckError."""
        ...


class Tokens:
    """Checks tokens."""

    def __init__(self, rules: Rules, keys: KeySet) -> None:
        self._rules = rules
        self._keys = keys

    async def identify(self, token: str) -> Caller:
        """See Authenticator."""
        rules = self._rules
        try:
            key_id = jwt.get_unverified_header(token).get("kid", "")
            key = await self._keys.find(key_id)
            if key.algorithm_name not in rules.algorithms:
                raise CredentialError(f"the key '{key.key_id}' is for {key.algorithm_name}, which is not allowed")
            claims = jwt.decode(
                token,
                key,
                # Not what the token says: with a public key taken for a shared secret, anybody could sign.
                algorithms=[key.algorithm_name],
                issuer=rules.issuer,
                audience=rules.audience,
                leeway=rules.leeway,
                options={"require": ["exp", "iss", "aud"]},
            )
        except (jwt.PyJWTError, ValueError) as error:
            raise CredentialError(f"not a valid token: {type(error).__name__}: {error}") from None
        return self._caller(claims)

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        tenant = claims.get(self._rules.tenant_claim)
        if not isinstance(tenant, str) or not NAME.fullmatch(tenant):
            raise CredentialError(f"the claim '{self._rules.tenant_claim}' is not 1 to 64 of A-Z a-z 0-9 . _ : -")
        said = claims.get(self._rules.scope_claim, "")
        names = said.split() if isinstance(said, str) else said if isinstance(said, list) else ()
        # Other names are for other services of the issuer.
        scopes = frozenset(scope for scope in Scope if scope.value in names)
        return Caller(tenant, str(claims.get("sub") or "?")[:MAX_NAME], scopes)
