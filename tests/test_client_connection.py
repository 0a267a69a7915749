"""How the Python client reaches a service: encryption, credentials, sockets, and when it tries again."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from agentrpc.v1 import run_service_pb2, runs_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from agent_service.client import (
    AccessError,
    AgentClient,
    ConflictError,
    RefusedError,
    Retry,
    Tls,
    UnavailableError,
)

pytestmark = pytest.mark.anyio

QUICK = Retry(attempts=4, first=0.001, most=0.002)


def error(code: grpc.StatusCode, *details: Any) -> status_pb2.Status:
    """An error with details."""
    status = status_pb2.Status(code=code.value[0], message="no luck")
    for detail in details:
        status.details.add().Pack(detail)
    return status


UNAVAILABLE = error(grpc.StatusCode.UNAVAILABLE)


@dataclass
class Played:
    """A GetRun that fails with these errors, one a call, and then answers; it keeps the metadata of each call."""

    errors: list[status_pb2.Status] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)

    async def get_run(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Plays it."""
        self.seen.append(dict(context.invocation_metadata() or ()))
        if self.errors:
            await context.abort_with_status(rpc_status.to_status(self.errors.pop(0)))
        return run_service_pb2.GetRunResponse(run=runs_pb2.Run(run_id=request.run_id))


@asynccontextmanager
async def playing(
    played: Played, address: str = "127.0.0.1:0", credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[str]:
    """A server with that one method; yields its address."""
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        played.get_run,
        request_deserializer=run_service_pb2.GetRunRequest.FromString,
        response_serializer=run_service_pb2.GetRunResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("agentrpc.v1.RunService", {"GetRun": handler}),)
    )
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    await server.start()
    try:
        yield address if address.startswith("unix:") else f"localhost:{port}"
    finally:
        await server.stop(None)


async def test_a_token_goes_with_each_call() -> None:
    """As Bearer; without one there is no such header. A function is asked each time."""
    played, tokens = Played([UNAVAILABLE]), iter(["one", "two", "three"])
    async with playing(played) as target:
        for token in ("secret", None, lambda: next(tokens)):
            async with AgentClient(target, token=token, retry=QUICK) as client:
                await client.get_run("run_1")
                await client.get_run("run_1")
    given = [metadata.get("authorization") for metadata in played.seen]
    assert given == ["Bearer secret"] * 3 + [None, None, "Bearer one", "Bearer two"]


async def test_a_socket_can_be_the_target(tmp_path: Path) -> None:
    """By `unix:` and its path."""
    async with playing(Played(), f"unix:{tmp_path}/s") as target, AgentClient(target) as client:
        assert (await client.get_run("run_1")).run_id == "run_1"


def openssl(folder: Path, *arguments: str) -> None:
    """Runs it in this folder."""
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, Path]:
    """A CA, and certificates of it for the server `agents.test` and a client, by the names of their files."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE")
    openssl(tmp_path, *new, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    for name in ("agents.test", "me"):
        names = ("-addext", f"subjectAltName=DNS:{name}", "-subj", f"/CN={name}")
        openssl(tmp_path, *new, *signed, *names, "-keyout", f"{name}.key", "-out", f"{name}.pem")
    return {file.name: file for file in tmp_path.iterdir()}


async def test_a_connection_can_be_encrypted(certificates: dict[str, Path]) -> None:
    """With a CA of one's own, a certificate of the client, and the name that the server's must have."""
    pem = {name: file.read_bytes() for name, file in certificates.items()}
    pair = (pem["agents.test.key"], pem["agents.test.pem"])
    credentials = grpc.ssl_server_credentials([pair], pem["ca.pem"], require_client_auth=True)
    good = Tls(certificates["ca.pem"], certificates["me.pem"], str(certificates["me.key"]), "agents.test")
    bad = (replace(good, ca=None), replace(good, server_name=""), replace(good, certificate=None, key=None), True, None)
    async with playing(Played(), "127.0.0.1:0", credentials) as target:
        async with AgentClient(target, tls=good) as client:
            assert (await client.get_run("run_1")).run_id == "run_1"
        for tls in bad:
            async with AgentClient(target, tls=tls, retry=QUICK) as client:
                with pytest.raises(UnavailableError):
                    await client.get_run("run_1")


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that the client makes, which take no time."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("agent_service.client.connection.sleep", sleep)
    return pauses


async def test_a_delay_that_the_service_asks_for_is_kept(slept: list[float]) -> None:
    """Whatever the pauses of its own are; also of an error that is not repeated otherwise."""
    after = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=7, nanos=500_000_000))
    played = Played([error(code, after) for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)])
    async with playing(played) as target, AgentClient(target, retry=QUICK) as client:
        assert (await client.get_run("run_1")).run_id == "run_1"
    assert slept == [7.5, 7.5]


def test_pauses_grow_up_to_a_bound_and_vary() -> None:
    """Doubled each time; a random part of up to half is left out, so that clients do not come back together."""
    retry = Retry(attempts=99, first=0.1, most=5.0)
    for failures, longest in ((1, 0.1), (2, 0.2), (5, 1.6), (7, 5.0), (5000, 5.0)):
        pauses = {retry.pause(failures, None) for _ in range(200)}
        assert all(longest / 2 <= pause <= longest for pause in pauses)
        assert len(pauses) > 100
    assert retry.pause(1, 3.0) == 3.0


@pytest.mark.parametrize(
    ("code", "attempts", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, 4, UnavailableError),
        (grpc.StatusCode.INTERNAL, 3, UnavailableError),
        (grpc.StatusCode.UNKNOWN, 3, UnavailableError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 1, UnavailableError),
        (grpc.StatusCode.UNAUTHENTICATED, 1, AccessError),
        (grpc.StatusCode.ABORTED, 1, ConflictError),
        (grpc.StatusCode.UNIMPLEMENTED, 1, RefusedError),
    ],
)
async def test_what_may_pass_is_tried_again(
    code: grpc.StatusCode, attempts: int, kind: type[RefusedError], slept: list[float]
) -> None:
    """Often if the service cannot be reached, a few times if it is unclear, never what would be refused again."""
    played = Played([error(code) for _ in range(9)])
    async with playing(played) as target, AgentClient(target, retry=QUICK) as client:
        with pytest.raises(kind) as caught:
            await client.get_run("run_1")
    assert (len(played.seen), len(slept)) == (attempts, attempts - 1)
    assert (caught.value.code, caught.value.reason, caught.value.message) == (code.name, "", "no luck")


async def test_details_that_are_not_known_are_left_out() -> None:
    """As of a newer service."""
    info = error_details_pb2.ErrorInfo(reason="ERROR_REASON_NEW", domain="agentrpc.v1", metadata={"a": "b"})
    played = Played([error(grpc.StatusCode.ABORTED, error_details_pb2.Help(), info)])
    async with playing(played) as target, AgentClient(target) as client:
        with pytest.raises(ConflictError, match="NEW: no luck") as caught:
            await client.get_run("run_1")
    assert (caught.value.reason, caught.value.metadata, caught.value.retry_after) == ("NEW", {"a": "b"}, None)
