"""API keys over gRPC: who is let in, to what, and what those who are not learn."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from agentrpc.v1 import inbox_service_pb2, run_service_pb2, server_service_pb2
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from agent_service.auth.keys import ApiKeys
from agent_service.engine.commands import Scope
from agent_service.files import FileError
from agent_service.transport import access
from agent_service.transport.access import SCOPES
from agent_service.transport.server import SERVICES
from scripts.errors_page import documented
from tests.contract import METHODS, Method
from tests.credentials import KeyFile
from tests.scripted_openai import calls, says
from tests.service import SECRET, Client, Refusal, connected, refusal, scripted

pytestmark = pytest.mark.anyio

DOCUMENTED = documented()
ASKED = calls(("get_secret_code", {"name": "Alice"}))


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    """A file of API keys, empty at first."""
    return KeyFile(tmp_path / "keys.toml")


@asynccontextmanager
async def guarded(keys: KeyFile, *script: Any, **settings: Any) -> AsyncIterator[Client]:
    """A service that asks for keys, and a client without one."""
    async with scripted(script, "memory", api_keys=keys.path, **settings) as (client, _):
        yield client


def called(client: Client, method: Method) -> Any:
    """A call of a method by its descriptor, with an empty request."""
    made: Any = client.channel.unary_stream if method.streams else client.channel.unary_unary
    asked, answer = GetMessageClass(method.input), GetMessageClass(method.output)
    call = made(method.path, request_serializer=asked.SerializeToString, response_deserializer=answer.FromString)
    return call(asked())


def test_every_method_has_a_line_in_the_table() -> None:
    """And there is no line without a method."""
    assert set(SCOPES) == {method.path for method in METHODS}
    assert {method.service for method in METHODS} == set(SERVICES)


@pytest.mark.parametrize("method", METHODS, ids=str)
async def test_no_method_works_without_a_credential(keys: KeyFile, method: Method) -> None:
    """UNAUTHENTICATED, before anything is known of the request: an empty one would be INVALID_ARGUMENT for many."""
    async with guarded(keys) as client:
        refused = await refusal(called(client, method))
        assert (refused.code, refused.reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED")


@pytest.mark.parametrize("method", METHODS, ids=str)
async def test_each_method_needs_its_scope(keys: KeyFile, method: Method) -> None:
    """All scopes but the one are not enough, and the answer names it; the one alone is enough to be heard."""
    needed = SCOPES[method.path]
    if needed is None:
        token = keys.add("none", "acme", Scope.READ)
    else:
        others = keys.add("others", "acme", *(scope for scope in Scope if scope is not needed))
        token = keys.add("one", "acme", needed)
    async with guarded(keys) as client:
        if needed is not None:
            async with connected(client.target, token=others) as stranger:
                refused = await refusal(called(stranger, method))
                assert (refused.code, refused.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
                assert refused.metadata == {"scope": needed}
                assert f"'{needed}'" in refused.message
        async with connected(client.target, token=token) as known:
            call = called(known, method)
            try:
                if method.streams:
                    async for _ in call:
                        call.cancel()
                        break
                else:
                    await call
            except grpc.aio.AioRpcError as error:
                assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


async def test_a_refusal_for_want_of_a_scope_is_as_documented(keys: KeyFile) -> None:
    """Code, metadata and message; and the log tells who wanted it."""
    token, promised = keys.add("reader", "acme", Scope.READ), DOCUMENTED["PERMISSION_DENIED"]
    async with guarded(keys) as client, connected(client.target, token=token) as reader:
        with capture_logs() as log:
            refused = await refusal(reader.runs.DeleteRun(run_service_pb2.DeleteRunRequest(run_id="run_8f")))
        assert [(line["tenant"], line["caller"]) for line in log if line["event"] == "auth.denied"] == [
            ("acme", "reader")
        ]
        told = {"scope": "admin"}
        assert refused == Refusal(promised.code, promised.message, "PERMISSION_DENIED", told, (), None)
        assert tuple(promised.metadata_keys) == ("scope",)


async def test_health_and_reflection_are_open(keys: KeyFile) -> None:
    """Balancers have no credential, and reflection shows what is public; a setting turns it off."""
    async with guarded(keys) as client:
        health = health_pb2_grpc.HealthStub(client.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
        stream = stub.ServerReflectionInfo()
        await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        assert (await stream.read()).list_services_response.service
        stream.cancel()


async def test_what_is_wrong_with_a_key_is_told_to_the_log_only(keys: KeyFile) -> None:
    """None, an unknown one, one that has expired, and what is no credential at all: the same answer."""
    expired = keys.add("old", "acme", expires=datetime.now(UTC) - timedelta(seconds=1))
    good = keys.add("good", "acme")
    values: list[list[tuple[str, str]]] = [
        [],
        [("authorization", "Bearer ak_unknown")],
        [("authorization", f"Bearer {good}x")],
        [("authorization", f"Bearer {expired}")],
        [("authorization", "Bearer a.b.c")],
        [("authorization", "Bearer ")],
        [("authorization", good)],
        [("authorization", f"Basic {good}")],
        [("authorization", f"Bearer {good}")] * 2,
    ]
    async with guarded(keys) as client:
        with capture_logs() as log:
            request = server_service_pb2.GetServerInfoRequest()
            answers = [await refusal(client.server.GetServerInfo(request, metadata=tuple(each))) for each in values]
        promised = DOCUMENTED["UNAUTHENTICATED"]
        assert answers[0] == Refusal(promised.code, promised.message, "UNAUTHENTICATED", {}, (), None)
        assert answers == answers[:1] * len(values)
        reasons = [line["why"] for line in log if line["event"] == "auth.refused"]
        assert reasons[1] == reasons[2] == "unknown API key"
        assert reasons[3] == "the API key 'old' has expired"
        assert len(reasons) == len(values)
        assert all(secret not in str(log) for secret in (good, expired, "ak_unknown"))


async def test_keys_are_added_and_withdrawn_without_a_restart(keys: KeyFile) -> None:
    """The next call knows."""
    first = keys.add("first", "acme")
    async with guarded(keys) as client, connected(client.target, token=first) as known:
        await known.list_runs()
        second = keys.add("second", "acme")
        keys.remove("first")
        assert (await refusal(known.runs.ListRuns(run_service_pb2.ListRunsRequest()))).code == "UNAUTHENTICATED"
        async with connected(client.target, token=second) as other:
            await other.list_runs()


async def test_a_file_that_cannot_be_read_changes_nothing(keys: KeyFile) -> None:
    """The keys that were there stay, and the log says once what is wrong; the next good file counts."""
    token = keys.add("first", "acme")
    async with guarded(keys) as client, connected(client.target, token=token) as known:
        good = keys.path.read_text()
        with capture_logs() as log:
            keys.path.write_text(good + "[keys.second]\n")
            await known.list_runs()
            await known.list_runs()
            keys.path.unlink()
            await known.list_runs()
        told = [line["error"] for line in log if line["event"] == "file.not_reloaded"]
        assert [("keys.second" in text, str(keys.path) in text) for text in told] == [(True, True), (False, True)]
        keys.path.write_text("")
        assert (await refusal(known.runs.ListRuns(run_service_pb2.ListRunsRequest()))).code == "UNAUTHENTICATED"


async def test_a_stream_ends_when_its_key_is_withdrawn(keys: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens afterwards is not told any more; the run goes on without it."""
    monkeypatch.setattr(access, "RECHECK_SECONDS", 0.0)
    owner, watcher = keys.add("owner", "acme"), keys.add("watcher", "acme")
    async with (
        guarded(keys, ASKED, says("Done.")) as client,
        connected(client.target, token=owner) as mine,
        connected(client.target, token=watcher) as other,
    ):
        watch: Any = other.inbox.WatchPendingToolCalls(inbox_service_pb2.WatchPendingToolCallsRequest())
        assert (await watch.read()).HasField("synced")
        keys.remove("watcher")
        await mine.ask("Go.", SECRET)
        refused = await refusal(watch)
        assert (refused.code, refused.reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED")


async def test_a_stream_is_checked_again_only_now_and_then(keys: KeyFile) -> None:
    """A stream that was begun a moment ago goes on to its end."""
    token = keys.add("watcher", "acme")
    async with guarded(keys, ASKED) as client, connected(client.target, token=token) as mine:
        run = (await mine.ask("Go.", SECRET)).run
        watch: Any = mine.runs.WatchRun(run_service_pb2.WatchRunRequest(run_id=run.run_id))
        await watch.read()
        keys.remove("watcher")
        assert (await watch.read()).event.run_id == run.run_id
        watch.cancel()


async def test_a_request_is_not_received_before_its_credential_is_known(keys: KeyFile) -> None:
    """Bytes that are no message, or too many: what is refused is the caller."""
    async with guarded(keys) as client:
        for data in (b"\xff\xff", b"x" * 8_000_000):
            get_run: Any = client.channel.unary_unary("/agentrpc.v1.RunService/GetRun")
            assert (await refusal(get_run(data))).code == "UNAUTHENTICATED"


async def test_log_lines_name_the_caller_and_never_the_key(keys: KeyFile) -> None:
    """By tenant and the key's name."""
    token = keys.add("billing", "acme")
    async with guarded(keys) as client, connected(client.target, token=token) as mine:
        await mine.list_runs()
        with capture_logs(processors=[merge_contextvars]) as log:
            await mine.list_runs()
        (line,) = [line for line in log if line["event"] == "rpc"]
        assert (line["tenant"], line["caller"], line["code"]) == ("acme", "billing", "OK")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[keys.a]\n", ["keys.a.sha256"]),
        ("[keys.a]\nsha256 = 'ak_x'\ntenant = 't'\nscopes = []\n", ["keys.a.sha256"]),
        ("[keys.a]\nsha256 = '" + "0" * 64 + "'\ntenant = 't'\nscopes = ['rule']\n", ["keys.a.scopes.0", "'admin'"]),
        ("[keys.a]\nsha256 = '" + "0" * 64 + "'\ntenant = 'a/b'\nscopes = []\n", ["keys.a.tenant"]),
        (
            "[keys.a]\nsha256 = '" + "0" * 64 + "'\ntenant = 't'\nscopes = []\nexpires = 2027-01-01T00:00:00\n",
            ["keys.a.expires", "timezone"],
        ),
        (
            "".join(f"[keys.{k}]\nsha256 = '{'0' * 64}'\ntenant = 't'\nscopes = []\n" for k in "ab"),
            ["keys.b", "keys.a"],
        ),
        ("keys = ", ["keys.toml"]),
    ],
)
async def test_a_file_of_keys_is_checked_at_the_start(tmp_path: Path, text: str, names: list[str]) -> None:
    """The line names the file, the key and the field."""
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(FileError) as refused:
        ApiKeys(path)
    assert all(name in str(refused.value) for name in names), refused.value
