"""The port to traces and metrics. Where they are off, nothing is made and next to nothing is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from typing import Protocol

from agent_service.domain.draft import Snapshot
from agent_service.domain.event import Event
from agent_service.domain.run import Claim, Pinned
from agent_service.engine.model import ModelClient
from agent_service.engine.store import Committed, RunStore
from agent_service.engine.tools import ServerTools

Headers = Callable[[], Mapping[str, str]]
"""HTTP headers that tell another service which trace its work belongs to; of what is being done now."""

Metadata = Callable[[], Iterable[tuple[str, str | bytes]] | None]
"""Gives what a caller sent beside the request."""


class Answered(Protocol):
    """Told once how a call of this service ended: the name of its gRPC code, and the reason of its error or ""."""

    def __call__(self, code: str, reason: str = "") -> None: ...


class Telemetry(Protocol):
    """Sees what this process does. Nothing of what people or models write is kept, nor any secret."""

    @property
    def committed(self) -> Committed | None:
        """For the store; None where nobody wants to know."""

    def call(self, method: str, metadata: Metadata) -> Answered:
        """A call of this service begins in the present task. Its caller's trace, if it names one, is gone on with."""

    def stretch(self, claim: Claim, snapshot: Snapshot, pinned: Pinned) -> AbstractContextManager[None]:
        """The work on a run from its start, or from a resume, to its next stop."""

    def observe(self, tenant: str, events: tuple[Event, ...]) -> None:
        """Told of what is committed."""

    def trace_id(self, tenant: str, run_id: str) -> str:
        """The trace of the work on this run in this process; empty if there is none."""

    def trace_context(self) -> str:
        """What is kept on a run so that its later work can refer to what is being done now: a W3C traceparent, or
        nothing."""

    def headers(self) -> Mapping[str, str]:
        """See Headers."""

    def model(self, client: ModelClient) -> ModelClient:
        """The same client, whose requests are seen."""

    def tools(self, tools: ServerTools) -> ServerTools:
        """The same tools, whose calls are seen."""

    def store(self, store: RunStore) -> RunStore:
        """The same store, whose writes are seen."""

    def gauge(self, name: str, value: Callable[[], float]) -> None:
        """A value that is looked at, in any thread, whenever metrics are read."""

    def going_on(self, store: RunStore) -> AbstractAsyncContextManager[None]:
        """Looks at what has to be looked at repeatedly, until the end of the block."""


def _ended(code: str, reason: str = "") -> None:
    """Nobody wants to know."""


class NoTelemetry:
    """Implements Telemetry: it is off."""

    committed: Committed | None = None

    def call(self, method: str, metadata: Metadata) -> Answered:
        """See Telemetry."""
        return _ended

    def stretch(self, claim: Claim, snapshot: Snapshot, pinned: Pinned) -> AbstractContextManager[None]:
        """See Telemetry."""
        return _NOTHING

    def observe(self, tenant: str, events: tuple[Event, ...]) -> None:
        """See Telemetry."""

    def trace_id(self, tenant: str, run_id: str) -> str:
        """See Telemetry."""
        return ""

    def trace_context(self) -> str:
        """See Telemetry."""
        return ""

    def headers(self) -> Mapping[str, str]:
        """See Telemetry."""
        return {}

    def model(self, client: ModelClient) -> ModelClient:
        """See Telemetry."""
        return client

    def tools(self, tools: ServerTools) -> ServerTools:
        """See Telemetry."""
        return tools

    def store(self, store: RunStore) -> RunStore:
        """See Telemetry."""
        return store

    def gauge(self, name: str, value: Callable[[], float]) -> None:
        """See Telemetry."""

    def going_on(self, store: RunStore) -> AbstractAsyncContextManager[None]:
        """See Telemetry."""
        return _NOTHING


_NOTHING: nullcontext[None] = nullcontext()
NO_TELEMETRY = NoTelemetry()
"""Where telemetry is off."""
