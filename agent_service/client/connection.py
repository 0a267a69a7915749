"""The way to the service: a channel, what goes with each call, and how long and how often a call is tried."""

from __future__ import annotations

import asyncio
import logging
import random
from asyncio import sleep
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from agentrpc.v1 import (
    agent_registry_service_pb2_grpc,
    agent_service_pb2_grpc,
    inbox_service_pb2_grpc,
    run_service_pb2_grpc,
    server_service_pb2_grpc,
)

from agent_service.client.errors import DeadlineError, RefusedError, UnavailableError, refused

log = logging.getLogger("agent_service.client")

_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.enable_http_proxy", 0),
    # A connection that is silent in the middle of a call is asked for a sign of life, and given up without one.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
_FEW = 3
_UNCLEAR = ("INTERNAL", "UNKNOWN", "CANCELLED", "DEADLINE_EXCEEDED")
"""Codes of a call that may have been done and may be repeated, but not often: waiting may not help."""


@dataclass(frozen=True, slots=True)
class Tls:
    """An encrypted connection. `ca` is a file of certificates in PEM that are trusted, None those of the system;
    `certificate` and `key` are the client's own, where the server asks for them. `server_name` is the name to expect in
    the server's certificate, if it is not that of the target."""

    ca: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None
    server_name: str = ""


@dataclass(frozen=True, slots=True)
class Retry:
    """How a call that may be repeated is: at most `attempts` times in a row without progress, with pauses of `first`
    seconds, doubled each time up to `most`, of which a random part of up to half is left out. A delay that the service
    asks for (RetryInfo) is kept in full."""

    attempts: int = 12
    first: float = 0.1
    most: float = 5.0

    def pause(self, failures: int, asked: float | None) -> float:
        """Seconds to wait after so many failures in a row."""
        doubled: float = min(self.most, self.first * 2.0 ** min(failures - 1, 32))
        return max(doubled * random.uniform(0.5, 1.0), asked or 0.0)


class Deadline:
    """When a whole call has to be done; `timeout` is in seconds from now, None for never."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._end = None if timeout is None else asyncio.get_running_loop().time() + timeout

    def remaining(self) -> float | None:
        """Seconds until then, at least 0."""
        return None if self._end is None else max(0.0, self._end - asyncio.get_running_loop().time())

    def check(self, run_id: str = "") -> None:
        """Raises DeadlineError when it is over."""
        if self.remaining() == 0.0:
            about = f"; run {run_id} may go on" if run_id else ""
            raise DeadlineError(f"not done within {self._timeout:g} s{about}", run_id)


class Attempts:
    """Counts failures in a row."""

    def __init__(self, retry: Retry, deadline: Deadline, run_id: str = "") -> None:
        self._retry = retry
        self._deadline = deadline
        self._run_id = run_id
        self._failures = 0

    def progress(self) -> None:
        """Something came; the next failure is the first one."""
        self._failures = 0

    async def failed(self, error: RefusedError) -> None:
        """Waits before the next attempt. Raises the error if there is none, or DeadlineError."""
        self._deadline.check(self._run_id)
        self._failures += 1
        most = min(self._retry.attempts, _FEW) if error.code in _UNCLEAR else self._retry.attempts
        # RESOURCE_EXHAUSTED without a delay will not pass by itself.
        passes = isinstance(error, UnavailableError) and error.code != "RESOURCE_EXHAUSTED"
        if self._failures >= most or not (passes or error.retry_after is not None):
            raise error
        pause = self._retry.pause(self._failures, error.retry_after)
        log.log(logging.WARNING if self._failures == 1 else logging.INFO, "%s; trying again in %.1f s", error, pause)
        left = self._deadline.remaining()
        await sleep(pause if left is None else min(pause, left))
        self._deadline.check(self._run_id)


class Connection:
    """The stubs of the service's services, and calls that are repeated."""

    def __init__(
        self,
        target: str,
        *,
        token: str | Callable[[], str] | None,
        tls: Tls | bool | None,
        retry: Retry,
        options: Sequence[tuple[str, Any]],
    ) -> None:
        self._token = token
        self.retry = retry
        self.channel = _channel(target, tls, [*_OPTIONS, *options])
        self.agent = agent_service_pb2_grpc.AgentServiceStub(self.channel)
        self.runs = run_service_pb2_grpc.RunServiceStub(self.channel)
        self.registry = agent_registry_service_pb2_grpc.AgentRegistryServiceStub(self.channel)
        self.inbox = inbox_service_pb2_grpc.InboxServiceStub(self.channel)
        self.server = server_service_pb2_grpc.ServerServiceStub(self.channel)

    def open(self, method: Any, request: Any, deadline: Deadline) -> Any:
        """Begins a call."""
        return method(request, timeout=deadline.remaining(), metadata=self._metadata())

    async def call(self, method: Any, request: Any, deadline: Deadline) -> Any:
        """A unary call that may be repeated. Raises RefusedError or DeadlineError."""
        attempts = Attempts(self.retry, deadline)
        while True:
            try:
                return await self.open(method, request, deadline)
            except grpc.aio.AioRpcError as error:
                await attempts.failed(refused(error))

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        token = self._token() if callable(self._token) else self._token
        return (("authorization", f"Bearer {token}"),) if token else ()


def _channel(target: str, tls: Tls | bool | None, options: list[tuple[str, Any]]) -> grpc.aio.Channel:
    if not tls:
        return grpc.aio.insecure_channel(target, options=options)
    chosen = Tls() if tls is True else tls
    credentials = grpc.ssl_channel_credentials(_bytes(chosen.ca), _bytes(chosen.key), _bytes(chosen.certificate))
    if chosen.server_name:
        options.append(("grpc.ssl_target_name_override", chosen.server_name))
    return grpc.aio.secure_channel(target, credentials, options=options)


def _bytes(file: Path | str | None) -> bytes | None:
    return None if file is None else Path(file).read_bytes()
