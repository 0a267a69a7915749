"""How the commands for a running service connect to it: plain text or TLS, and with which credential."""

from __future__ import annotations

import os
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from agent_service.client import AgentClient
from agent_service.client.connection import Tls

_OPTIONS = [("grpc.enable_http_proxy", 0)]


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the service is, and what it asks for. An empty `token` means that of AGENT_SERVICE_TOKEN, if there is one.
    TLS is used if `tls` or one of the files is given; without `tls_ca` the server's certificate is checked with the CAs
    that gRPC comes with."""

    target: str
    token: str = ""
    tls: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def open(self) -> grpc.Channel:
        """A channel to it."""
        channel = self._channel()
        return grpc.intercept_channel(channel, _Bearer(self._token)) if self._token else channel

    def check(self) -> None:
        """Raises OSError for a file that cannot be read."""
        for path in filter(None, (self.tls_ca, self.tls_cert, self.tls_key)):
            path.read_bytes()

    def client(self) -> AgentClient:
        """A client of it, which is not connected yet."""
        files = (self.tls_ca, self.tls_cert, self.tls_key)
        return AgentClient(self.target, token=self._token or None, tls=Tls(*files) if any(files) else self.tls)

    @property
    def _token(self) -> str:
        # Not a setting of the server, whose packages a client does not need to have.
        return self.token or os.environ.get("AGENT_SERVICE_TOKEN", "")

    def _channel(self) -> grpc.Channel:
        files = (self.tls_ca, self.tls_key, self.tls_cert)
        if not self.tls and not any(files):
            return grpc.insecure_channel(self.target, _OPTIONS)
        credentials = grpc.ssl_channel_credentials(*(path.read_bytes() if path else None for path in files))
        return grpc.secure_channel(self.target, credentials, _OPTIONS)


class _Details(
    namedtuple("_Details", ("method", "timeout", "metadata", "credentials", "wait_for_ready", "compression")),
    grpc.ClientCallDetails,
):
    """gRPC has the interface only."""


class _Bearer(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Adds the credential to each call. Not as gRPC's own call credentials, which it sends with TLS only."""

    def __init__(self, token: str) -> None:
        self._pair = ("authorization", f"Bearer {token}")

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._with(client_call_details), request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._with(client_call_details), request)

    def _with(self, details: Any) -> _Details:
        metadata = (*(details.metadata or ()), self._pair)
        return _Details(
            details.method,
            details.timeout,
            metadata,
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )
