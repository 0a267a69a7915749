"""TLS of the server: certificate, key and client CAs from files, read again for new connections when they change."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from agent_service.files import FileError, Watched, read_bytes


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. With `client_ca`, only clients with a certificate of one of its CAs are let in."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that follow the files. Open connections stay as they are. Raises FileError if they cannot be used."""
    paths = (files.certificate, files.key, *((files.client_ca,) if files.client_ca else ()))
    watched = Watched(paths, lambda: _read(files))
    used = watched.value

    def changed() -> grpc.ServerCertificateConfiguration | None:
        """gRPC asks before each handshake, in a thread of its own, and makes all anew unless it is told None."""
        nonlocal used
        known, used = used, watched.value
        return None if known is used else used

    return grpc.dynamic_ssl_server_credentials(
        used,
        changed,  # type: ignore[arg-type]  # the stubs do not know of None
        require_client_authentication=files.client_ca is not None,
    )


def _read(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    """gRPC itself takes anything and says nothing, so the files are tried first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key, certificate = read_bytes(files.key), read_bytes(files.certificate)
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except (OSError, _EncryptedError) as error:  # SSLError is an OSError
        raise FileError(f"{files.certificate} and {files.key} are no certificate and its key in PEM: {error}") from None
    roots = read_bytes(files.client_ca) if files.client_ca else None
    if roots is not None:
        try:
            context.load_verify_locations(cadata=roots.decode())
        except (ssl.SSLError, ValueError) as error:
            raise FileError(f"{files.client_ca} holds no CA certificates in PEM: {error}") from None
    return grpc.ssl_server_certificate_configuration([(key, certificate)], roots)


class _EncryptedError(Exception):
    """The key has a password."""


def _no_password() -> str:
    raise _EncryptedError("the key is encrypted")
