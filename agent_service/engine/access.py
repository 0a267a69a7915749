"""Who a credential stands for: the port between calls and what credentials are checked with."""

from __future__ import annotations

from typing import Protocol

from agent_service.engine.commands import Caller


class CredentialError(Exception):
    """The credential is not valid. The text says why, for the log only: callers learn no more than that."""


class CheckError(Exception):
    """The credential cannot be checked now, as what it is checked with cannot be had; the text is for the log."""


class Authenticator(Protocol):
    """Checks credentials. Must not block the event loop."""

    async def identify(self, token: str) -> Caller:
        """Who that is. Raises CredentialError or CheckError."""
        ...
