"""Tokens (JWT) of an issuer, whose keys come over real HTTP or from a file: which are taken, and what keys cost."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from agentrpc.v1 import run_service_pb2
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from structlog.testing import capture_logs

from agent_service import wiring
from agent_service.auth.key_sets import FRESH_SECONDS, RETRY_SECONDS, UrlKeys
from agent_service.engine.access import CheckError, CredentialError
from agent_service.files import FileError
from agent_service.settings import load_settings
from scripts.errors_page import documented
from tests.credentials import ISSUER, Issuer, KeyFile, replaced
from tests.scripted_openai import says
from tests.service import Client, Refusal, connected, refusal, scripted

pytestmark = pytest.mark.anyio


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    """An issuer whose keys are served."""
    async with Issuer().publishing() as issuer:
        yield issuer


@asynccontextmanager
async def trusting(issuer: Issuer, *script: Any, **settings: Any) -> AsyncIterator[Client]:
    """A service that takes tokens of the issuer, and a client without one."""
    async with scripted(script, "memory", **issuer.settings, **settings) as (client, _):
        yield client


async def refused(client: Client, token: str) -> Refusal:
    """What a call with this token ends with."""
    async with connected(client.target, token=token) as known:
        return await refusal(known.runs.ListRuns(run_service_pb2.ListRunsRequest()))


async def accepted(client: Client, token: str) -> None:
    """A call with this token is answered."""
    async with connected(client.target, token=token) as known:
        await known.list_runs()


async def test_a_token_brings_its_tenant_and_scopes(issuer: Issuer) -> None:
    """Claims say whose runs they are and what may be done; scopes of other services mean nothing."""
    async with trusting(issuer, says("Hello.")) as client:
        async with connected(client.target, token=issuer.token(scope="run read payments")) as acme:
            run = (await acme.ask("Hi")).run
            assert (await acme.run(run.run_id)).run_id == run.run_id
            deleted = acme.runs.DeleteRun(run_service_pb2.DeleteRunRequest(run_id=run.run_id))
            assert (await refusal(deleted)).metadata == {"scope": "admin"}
        async with connected(client.target, token=issuer.token(tenant="rival", scope=["read"])) as rival:
            assert not (await rival.list_runs()).runs


async def test_claims_have_the_names_that_settings_give_them(issuer: Issuer) -> None:
    """As issuers differ in them."""
    async with trusting(issuer, jwt_tenant_claim="https://acme.example/org", jwt_scope_claim="scp") as client:
        named: dict[str, Any] = {"https://acme.example/org": "acme", "scp": "read"}
        token = issuer.token(tenant=None, scope=None, **named)
        await accepted(client, token)
        assert (await refused(client, issuer.token())).reason == "UNAUTHENTICATED"


async def test_each_defect_of_a_token_is_told_to_the_log_only(issuer: Issuer) -> None:
    """Expired, not valid yet, for somebody else, of somebody else, unsigned, changed, incomplete: the same answer."""
    other = Issuer()
    header, payload, signature = issuer.token().split(".")
    changed = _encoded(issuer.claims(tenant="rival"))
    bad = {
        "Signature has expired": issuer.token(exp=time.time() - 60),
        "not yet valid (nbf)": issuer.token(nbf=time.time() + 60),
        "Audience doesn't match": issuer.token(aud="payments"),
        "Invalid issuer": issuer.token(iss="https://evil.example"),
        'missing the "exp" claim': issuer.token(exp=None),
        'missing the "aud" claim': issuer.token(aud=None),
        'missing the "iss" claim': issuer.token(iss=None),
        "Signature verification failed": other.token(),
        "InvalidSignatureError": f"{header}.{changed}.{signature}",
        "DecodeError": f"{header}.{payload}",
        "the claim 'tenant'": issuer.token(tenant=None),
        "1 to 64 of": issuer.token(tenant="a b"),
        "maximum recursion depth": f"{_text(b'[' * 4000)}.{payload}.{signature}",
        "unknown key 'second'": issuer.token(header={"kid": "second"}),
    }
    async with trusting(issuer) as client:
        await accepted(client, issuer.token())
        answers = []
        for why, token in bad.items():
            with capture_logs() as log:
                answers.append(await refused(client, token))
            (line,) = [line for line in log if line["event"] == "auth.refused"]
            assert why in line["why"]
            assert token not in str(log)
        assert answers[0].reason == "UNAUTHENTICATED"
        assert answers == answers[:1] * len(bad)


async def test_a_token_cannot_choose_how_it_is_checked(issuer: Issuer) -> None:
    """Neither no signature at all, nor a shared secret that is the public key, which everybody knows."""
    public = json.dumps(issuer.public())
    secrets = [jwt.PyJWK.from_dict(issuer.public()).key.public_bytes(*_pem()), public.encode()]
    headers = [{"alg": "HS256", "kid": "first", "typ": "JWT"}] * len(secrets)
    tokens = [_signed(header, issuer.claims(), secret) for header, secret in zip(headers, secrets, strict=True)]
    unsigned = [_encoded({"alg": name, "kid": "first"}) for name in ("none", "None", "nOnE")]
    tokens += [f"{header}.{_encoded(issuer.claims())}." for header in unsigned]
    async with trusting(issuer) as client:
        await accepted(client, issuer.token())
        for token in tokens:
            assert (await refused(client, token)).reason == "UNAUTHENTICATED"


async def test_only_the_algorithms_of_the_settings_are_taken(issuer: Issuer) -> None:
    """A key for another one is not used, although the issuer publishes it."""
    async with trusting(issuer, jwt_algorithms="RS256,EdDSA") as client:
        with capture_logs() as log:
            assert (await refused(client, issuer.token())).reason == "UNAUTHENTICATED"
        assert "ES256, which is not allowed" in str(log)


async def test_a_clock_that_is_a_little_off_is_forgiven(issuer: Issuer) -> None:
    """By as many seconds as the setting says, for the end and for the beginning."""
    async with trusting(issuer, jwt_leeway_seconds=120.0) as client:
        now = time.time()
        await accepted(client, issuer.token(exp=now - 60))
        await accepted(client, issuer.token(nbf=now + 60, iat=now + 60))
        assert (await refused(client, issuer.token(exp=now - 180))).reason == "UNAUTHENTICATED"
        assert (await refused(client, issuer.token(nbf=now + 180))).reason == "UNAUTHENTICATED"


async def test_a_new_key_of_the_issuer_is_fetched_when_a_token_names_it(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a restart; the key that it does not publish any more is not taken any more."""
    monkeypatch.setattr("agent_service.auth.key_sets.RETRY_SECONDS", 0.0)
    async with trusting(issuer) as client:
        await accepted(client, issuer.token())
        issuer.rotate("second")
        await accepted(client, issuer.token())
        assert issuer.fetches == 2
        assert (await refused(client, issuer.token(key_id="first"))).reason == "UNAUTHENTICATED"


async def test_keys_are_fetched_rarely_whatever_tokens_name(issuer: Issuer) -> None:
    """Once for many calls at once, and not again for made-up ids before the pause is over; then once more."""
    now = 0.0
    keys = UrlKeys(issuer.url, lambda: now)
    try:
        assert {key.key_id for key in await asyncio.gather(*(keys.find("first") for _ in range(20)))} == {"first"}
        assert issuer.fetches == 1
        for number in range(20):
            with pytest.raises(CredentialError):
                await keys.find(f"made-up-{number}")
        assert issuer.fetches == 1
        now += RETRY_SECONDS
        with pytest.raises(CredentialError):
            await keys.find("made-up")
        assert issuer.fetches == 2
    finally:
        await keys.close()


async def test_known_keys_stay_while_the_issuer_is_away(issuer: Issuer) -> None:
    """Old keys are fetched again beside the call, which does not wait; a failure changes nothing."""
    now = 0.0
    keys = UrlKeys(issuer.url, lambda: now)
    try:
        await keys.find("first")
        issuer.fails = True
        now += FRESH_SECONDS
        issuer.fetched.clear()
        await keys.find("first")
        assert issuer.fetches == 1
        await issuer.fetched.wait()
        with pytest.raises(CheckError):
            await keys.find("second")
        assert issuer.fetches == 2
        assert await keys.find("first") is await keys.find("")
        issuer.fails = False
        issuer.rotate("second")
        now += RETRY_SECONDS
        assert (await keys.find("second")).key_id == "second"
    finally:
        await keys.close()


async def test_a_token_that_cannot_be_checked_may_be_sent_again(issuer: Issuer) -> None:
    """UNAVAILABLE and not UNAUTHENTICATED: a client that threw a good token away would be wrong."""
    issuer.fails = True
    async with trusting(issuer) as client:
        answer = await refused(client, issuer.token())
        promised = documented()["AUTH_UNAVAILABLE"]
        assert promised.code == "UNAVAILABLE"
        assert answer == Refusal(promised.code, promised.message, "AUTH_UNAVAILABLE", {}, (), 10.0)


async def test_keys_from_a_file_are_read_again_when_it_changes(issuer: Issuer, tmp_path: Path) -> None:
    """An issuer needs no server."""
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [issuer.public()]}))
    issuer.url = str(path)
    async with trusting(issuer) as client:
        await accepted(client, issuer.token())
        issuer.rotate("second")
        assert (await refused(client, issuer.token())).reason == "UNAUTHENTICATED"
        replaced(path, json.dumps({"keys": [issuer.public()]}).encode())
        await accepted(client, issuer.token())
        await accepted(client, issuer.token(header={"kid": ""}))


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"keys": 7}', '{"keys": []}', '{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "first"}]}'],
)
async def test_a_file_without_public_keys_is_refused_at_the_start(issuer: Issuer, tmp_path: Path, text: str) -> None:
    """Also one with a shared secret, which would let everybody who checks tokens sign them."""
    path = tmp_path / "keys.json"
    path.write_text(text)
    settings = load_settings(store="memory", jwt_issuer=ISSUER, jwt_audience="agents", jwt_keys=str(path))
    with pytest.raises(FileError) as said:
        async with wiring.access(settings):
            pass
    assert str(path) in str(said.value)


async def test_without_the_package_the_way_out_is_told(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those need it who have an issuer."""
    monkeypatch.setitem(sys.modules, "jwt", None)
    for name in ("key_sets", "tokens"):
        monkeypatch.delitem(sys.modules, f"agent_service.auth.{name}")
    with pytest.raises(wiring.StartError, match=r"agent-service\[jwt\]"):
        async with wiring.access(load_settings(store="memory", **issuer.settings)):
            pass
    async with wiring.access(load_settings(store="memory")) as access:
        assert access is None


async def test_keys_and_tokens_may_be_taken_together(issuer: Issuer, tmp_path: Path) -> None:
    """By programs and by people, say."""
    keys = KeyFile(tmp_path / "keys.toml")
    key = keys.add("program", "acme")
    async with trusting(issuer, api_keys=keys.path) as client:
        await accepted(client, key)
        await accepted(client, issuer.token())


def _encoded(value: object) -> str:
    return _text(json.dumps(value).encode())


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _signed(header: dict[str, str], claims: dict[str, Any], secret: bytes) -> str:
    text = f"{_encoded(header)}.{_encoded(claims)}"
    signature = hmac.new(secret, text.encode(), hashlib.sha256).digest()
    return f"{text}.{_text(signature)}"


def _pem() -> tuple[Any, Any]:
    return Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
