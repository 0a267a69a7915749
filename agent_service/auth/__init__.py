"""What credentials are checked with: API keys of a file, and tokens of an issuer."""

from __future__ import annotations

from agent_service.auth.keys import PREFIX
from agent_service.engine.access import Authenticator, CredentialError
from agent_service.engine.commands import Caller


class Credentials:
    """Tells by its beginning what a credential is. None stands for a kind that is not taken."""

    def __init__(self, keys: Authenticator | None, tokens: Authenticator | None) -> None:
        self._keys = keys
        self._tokens = tokens

    async def identify(self, token: str) -> Caller:
        """See Authenticator."""
        of_keys = token.startswith(PREFIX)
        authenticator = self._keys if of_keys else self._tokens
        if authenticator is None:
            raise CredentialError("API keys are not taken" if of_keys else "only API keys are taken")
        return await authenticator.identify(token)
