"""Who may call what: one table from methods to scopes, and the caller of the call that is being served."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar

import structlog

from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.engine.access import Authenticator, CheckError, CredentialError
from agent_service.engine.commands import Caller, Scope

log = structlog.get_logger()

_PACKAGE = "/agentrpc.v1."
_METHODS: dict[str, dict[str, Scope | None]] = {
    "AgentService": {
        "BuildRequest": Scope.READ,
        "Step": Scope.RUN,
        "Stream": Scope.RUN,
        "SubmitToolReturns": Scope.SUBMIT,
        "StreamToolReturns": Scope.SUBMIT,
    },
    "RunService": {
        "GetRun": Scope.READ,
        "WatchRun": Scope.READ,
        "ListRuns": Scope.READ,
        "CancelRun": Scope.RUN,
        "RetryRun": Scope.RUN,
        "DeleteRun": Scope.ADMIN,
    },
    "InboxService": {
        "ListPendingToolCalls": Scope.SUBMIT,
        "WatchPendingToolCalls": Scope.SUBMIT,
        "ClaimToolCalls": Scope.SUBMIT,
        "ExtendToolCall": Scope.SUBMIT,
    },
    "AgentRegistryService": {
        "CreateAgent": Scope.ADMIN,
        "GetAgent": Scope.READ,
        "ListAgents": Scope.READ,
        "UpdateAgent": Scope.ADMIN,
        "DeleteAgent": Scope.ADMIN,
        "CreateConversation": Scope.RUN,
        "GetConversation": Scope.READ,
        "ListConversations": Scope.READ,
        "DeleteConversation": Scope.ADMIN,
        "ListMessages": Scope.READ,
        "CreateMemoryBlock": Scope.ADMIN,
        "GetMemoryBlock": Scope.READ,
        "ListMemoryBlocks": Scope.READ,
        "UpdateMemoryBlock": Scope.ADMIN,
        "DeleteMemoryBlock": Scope.ADMIN,
    },
    "ServerService": {"GetServerInfo": None},
}
SCOPES: dict[str, Scope | None] = {
    f"{_PACKAGE}{service}/{method}": scope for service, of in _METHODS.items() for method, scope in of.items()
}
"""What a caller needs for each method, by its full name; None where any valid credential will do."""

RECHECK_SECONDS = 10.0
"""A stream sends nothing on a credential that was found valid longer ago than this."""

_CALLER: ContextVar[Caller] = ContextVar("caller")
_ANYBODY = Caller()

Metadata = Iterable[tuple[str, str | bytes]]


def current_caller() -> Caller:
    """Who makes the call that this task serves."""
    return _CALLER.get(_ANYBODY)


class Access:
    """Admits calls whose credential is valid and has the scope. `clock` is in seconds and never goes back."""

    def __init__(self, authenticator: Authenticator, clock: Callable[[], float] = time.monotonic) -> None:
        self._authenticator = authenticator
        self._clock = clock

    async def admit(self, method: str, metadata: Metadata) -> Admission:
        """From now on this task serves the caller. Raises UNAUTHENTICATED, PERMISSION_DENIED or AUTH_UNAVAILABLE."""
        admission = Admission(self, method, tuple(v for k, v in metadata if k == "authorization"))
        await admission.renew()
        return admission

    async def check(self, method: str, credentials: tuple[str | bytes, ...]) -> Caller:
        """The caller with these values of `authorization`, if they may call this. Raises as above."""
        try:
            caller = await self._authenticator.identify(_bearer(credentials))
        except CredentialError as error:
            log.info("auth.refused", method=method, why=str(error))
            raise AgentServiceError(
                Reason.UNAUTHENTICATED,
                "no valid credential came with the call; send 'authorization: Bearer ' and an API key or a token of "
                "this service's issuer that has not expired",
            ) from None
        except CheckError as error:
            log.error("auth.unavailable", method=method, why=str(error))
            raise AgentServiceError(
                Reason.AUTH_UNAVAILABLE,
                "the credential cannot be checked now, since the issuer's keys cannot be fetched; try again",
                retry_after=10.0,
            ) from None
        # One that was forgotten in the table is for admins.
        scope = SCOPES.get(method, Scope.ADMIN)
        if scope is not None and scope not in caller.scopes:
            name = method.rpartition("/")[2]
            log.info("auth.denied", method=method, scope=scope, tenant=caller.tenant, caller=caller.name)
            raise AgentServiceError(
                Reason.PERMISSION_DENIED,
                f"the credential has no scope '{scope}', which {name} needs; use another one",
                metadata={"scope": scope},
            )
        return caller

    def now(self) -> float:
        """The clock's time."""
        return self._clock()


class Admission:
    """A call that is served, with the values of `authorization` that came with it."""

    def __init__(self, access: Access, method: str, credentials: tuple[str | bytes, ...]) -> None:
        self._access = access
        self._method = method
        self._credentials = credentials
        self._checked = 0.0

    async def renew(self) -> None:
        """Checks the credential. Raises as `Access.admit` does."""
        _CALLER.set(await self._access.check(self._method, self._credentials))
        self._checked = self._access.now()

    async def keep(self) -> None:
        """For long streams: checks again what was checked too long ago."""
        if self._access.now() - self._checked >= RECHECK_SECONDS:
            await self.renew()


def _bearer(credentials: tuple[str | bytes, ...]) -> str:
    if len(credentials) != 1:
        raise CredentialError(f"{len(credentials)} values of 'authorization'")
    scheme, _, token = str(credentials[0]).partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise CredentialError("'authorization' is not 'Bearer' and a credential")
    return token.strip()
