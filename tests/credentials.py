"""Credentials of tests: a file of API keys that changes, certificates, and an issuer of tokens over real HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import jwt
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from agent_service.auth.keys import new_key
from agent_service.engine.commands import Scope


def replaced(path: Path, data: bytes) -> None:
    """The file gets a new content, from one moment to the next."""
    written = path.with_name(f"{path.name}.new")
    written.write_bytes(data)
    written.replace(path)


class KeyFile:
    """A file of API keys, which a server may be reading."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._texts: dict[str, str] = {}
        self._write()

    def add(self, name: str, tenant: str, *scopes: Scope, expires: datetime | None = None) -> str:
        """A new key of this name, with all scopes if none is named."""
        key, self._texts[name] = new_key(name, tenant, scopes or tuple(Scope), expires)
        self._write()
        return key

    def remove(self, name: str) -> None:
        """That key is withdrawn."""
        del self._texts[name]
        self._write()

    def _write(self) -> None:
        replaced(self.path, "\n".join(self._texts.values()).encode())


class Authority:
    """A certificate authority."""

    def __init__(self, name: str = "authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = _certificate(name, self._key, None, self._key, is_authority=True)
        self.pem = self._certificate.public_bytes(Encoding.PEM)

    def issue(self, name: str) -> tuple[bytes, bytes]:
        """A private key and its certificate for this host, in PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(name, key, self._certificate, self._key, is_authority=False)
        return (
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            certificate.public_bytes(Encoding.PEM),
        )

    def trusted(self, client: tuple[bytes, bytes] = (b"", b"")) -> grpc.ChannelCredentials:
        """For clients that trust this authority, perhaps with a certificate of their own."""
        key, certificate = client
        return grpc.ssl_channel_credentials(self.pem, key or None, certificate or None)


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    is_authority: bool,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )
    if not is_authority:
        names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


ISSUER, AUDIENCE = "https://issuer.example", "agents"


class Issuer:
    """Signs tokens, and publishes its keys at `url`."""

    def __init__(self) -> None:
        self.url = ""
        self.fetches = 0
        self.fetched = asyncio.Event()
        self.fails = False
        self._keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self.rotate("first")

    def rotate(self, key_id: str) -> None:
        """From now on tokens are signed with a new key, which is the only one that is published."""
        self._keys[key_id] = ec.generate_private_key(ec.SECP256R1())
        self._current = key_id

    def public(self, key_id: str = "") -> dict[str, Any]:
        """A key as it is published."""
        name = key_id or self._current
        jwk = jwt.algorithms.ECAlgorithm.to_jwk(self._keys[name].public_key(), as_dict=True)
        return {**jwk, "kid": name, "alg": "ES256", "use": "sig"}

    def claims(self, **changed: Any) -> dict[str, Any]:
        """What a good token says; None leaves a claim out."""
        good = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "exp": time.time() + 600,
            "sub": "somebody",
            "tenant": "acme",
            "scope": "run submit read admin openid",
        }
        return {name: value for name, value in (good | changed).items() if value is not None}

    def token(self, *, key_id: str = "", header: dict[str, Any] | None = None, **changed: Any) -> str:
        """A token, signed with the present key or that one."""
        name = key_id or self._current
        return jwt.encode(self.claims(**changed), self._keys[name], "ES256", headers={"kid": name, **(header or {})})

    @property
    def settings(self) -> dict[str, Any]:
        """For a service that takes its tokens."""
        return {"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_keys": self.url}

    async def _serve(self, request: web.Request) -> web.Response:
        self.fetches += 1
        self.fetched.set()
        if self.fails:
            return web.Response(status=503)
        return web.Response(text=json.dumps({"keys": [self.public()]}))

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[Issuer]:
        """Its keys are served over HTTP."""
        app = web.Application()
        app.router.add_get("/keys", self._serve)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/keys"
        try:
            yield self
        finally:
            await runner.cleanup()
