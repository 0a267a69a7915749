"""Where a server listens: a TCP port or a Unix socket, in plain text or with TLS."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from agent_service.transport.tls import TlsFiles, server_credentials

UNIX = "unix:"


class BindError(Exception):
    """The address cannot be listened on; the text says why."""


def bind(server: grpc.aio.Server, address: str, tls: TlsFiles | None, socket_mode: int) -> int:
    """Makes the server listen; the real port, also when port 0 was asked for.

    `address` is HOST:PORT or unix:PATH, whose socket gets these permissions. Raises BindError or FileError.
    """
    credentials = server_credentials(tls) if tls else None
    if address.startswith(UNIX):
        _check_free(address.removeprefix(UNIX))
    try:
        with _permissions(socket_mode) if address.startswith(UNIX) else _nothing():
            if credentials is not None:
                return server.add_secure_port(address, credentials)
            return server.add_insecure_port(address)
    except RuntimeError as error:
        way = "is its folder there and writable?" if address.startswith(UNIX) else "is another server running there?"
        raise BindError(f"cannot listen on {address}: {way}") from error


def _check_free(path: str) -> None:
    """gRPC replaces any socket at the path, also one that a server listens on. Raises BindError for that."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return  # no server: what one that was killed left there is replaced
    raise BindError(f"cannot listen on {UNIX}{path}: another server is running there")


@contextmanager
def _permissions(mode: int) -> Iterator[None]:
    """A socket that is made meanwhile has these permissions from its first moment on."""
    before = os.umask(0o777 & ~mode)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def _nothing() -> Iterator[None]:
    yield
