"""TLS and Unix sockets, as server processes serve them and real clients use them."""

from __future__ import annotations

import asyncio
import shutil
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from agentrpc.v1 import inbox_service_pb2, server_service_pb2

from tests.credentials import Authority, KeyFile, replaced
from tests.process import API_KEY, PROGRAM, ServerProcess, environment, refused, running
from tests.scripted_openai import Reply, ScriptedOpenAI, calls, says
from tests.service import SECRET, Client, connected, returned

pytestmark = pytest.mark.anyio

ASKED = calls(("get_secret_code", {"name": "Alice"}))
GRPCURL = shutil.which("grpcurl") or shutil.which("grpcurl", path=Path.home() / "go/bin")
INFO = server_service_pb2.GetServerInfoRequest()


@dataclass(frozen=True)
class Files:
    """The files that a server reads."""

    folder: Path

    def write(self, pair: tuple[bytes, bytes], client_ca: bytes = b"") -> None:
        """Puts these in their place."""
        for name, data in zip(("key.pem", "cert.pem", "client-ca.pem"), (*pair, client_ca), strict=True):
            replaced(self.folder / name, data)

    @property
    def flags(self) -> tuple[str, ...]:
        """For a server that uses them."""
        return ("--tls-cert", "cert.pem", "--tls-key", "key.pem")


@asynccontextmanager
async def secured(folder: Path, *flags: str, script: tuple[Reply, ...] = ()) -> AsyncIterator[ServerProcess]:
    """A server process with these flags."""
    async with (
        ScriptedOpenAI(script, api_key=API_KEY) as upstream,
        running(folder, environment(upstream), "--store", "memory", *Files(folder).flags, *flags) as (server, _),
    ):
        yield server


async def served(target: str, credentials: grpc.ChannelCredentials | None, token: str = "") -> str:
    """OK, or the code that a call ends with."""
    async with connected(target, credentials=credentials, token=token) as client:
        return await answered(client)


async def answered(client: Client) -> str:
    """OK, or the code that a call ends with."""
    try:
        await client.server.GetServerInfo(INFO, timeout=10)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def test_whole_runs_go_over_tls(tmp_path: Path) -> None:
    """Streams, pauses and returns as in plain text, which is not answered."""
    ours = Authority()
    Files(tmp_path).write(ours.issue("server"))
    async with secured(tmp_path, script=(ASKED, says("Done."))) as server:
        async with connected(server.target, credentials=ours.trusted()) as client:
            run = (await client.ask("Go.", SECRET)).run
            watch = client.watching(run.run_id)
            response = await client.answer(run.run_id, returned(run.pending_tool_calls[0], "AZURE"))
            assert response.messages[-1].assistant.text == "Done."
            assert [event.event.run_id async for event in watch]
        assert await served(server.target, None) == "UNAVAILABLE"
        assert await served(server.target, Authority().trusted()) == "UNAVAILABLE"


async def test_a_certificate_is_replaced_while_connections_are_open(tmp_path: Path) -> None:
    """New connections get the new one, without a restart; open ones go on, with their streams."""
    old, new = Authority("old"), Authority("new")
    files = Files(tmp_path)
    files.write(old.issue("server"))
    async with (
        secured(tmp_path) as server,
        connected(server.target, credentials=old.trusted()) as early,
    ):
        watch: Any = early.inbox.WatchPendingToolCalls(inbox_service_pb2.WatchPendingToolCallsRequest())
        assert (await watch.read()).HasField("synced")
        files.write(new.issue("server"))
        assert await served(server.target, new.trusted()) == "OK"
        assert await served(server.target, old.trusted()) == "UNAVAILABLE"
        assert await answered(early) == "OK"
        assert not watch.done()
        watch.cancel()
        # Half of a pair, or none: the last good one stays.
        replaced(tmp_path / "key.pem", old.issue("server")[0])
        assert await served(server.target, new.trusted()) == "OK"
        replaced(tmp_path / "cert.pem", b"no certificate")
        assert await served(server.target, new.trusted()) == "OK"
        lines = [line for line in server.log if line["event"] == "file.not_reloaded"]
        assert [("cert.pem" in line["error"]) for line in lines] == [True, True]
        assert any(line["event"] == "file.reloaded" for line in server.log)


async def test_with_client_cas_only_their_clients_connect(tmp_path: Path) -> None:
    """None, one of another CA, one of the CA; and other CAs count without a restart, too."""
    ours, clients, others = Authority(), Authority("clients"), Authority("others")
    files = Files(tmp_path)
    pair = ours.issue("server")
    files.write(pair, clients.pem)
    async with secured(tmp_path, "--tls-client-ca", "client-ca.pem") as server:
        good, strange = ours.trusted(clients.issue("worker")), ours.trusted(others.issue("worker"))
        assert await served(server.target, good) == "OK"
        assert await served(server.target, strange) == "UNAVAILABLE"
        assert await served(server.target, ours.trusted()) == "UNAVAILABLE"
        files.write(pair, others.pem)
        assert await served(server.target, strange) == "OK"
        assert await served(server.target, good) == "UNAVAILABLE"


@pytest.mark.skipif(GRPCURL is None, reason="grpcurl is not installed")
async def test_grpcurl_calls_over_tls_with_a_key(tmp_path: Path) -> None:
    """As people try it: with the key it is answered, without it the reason is shown; reflection needs none."""
    ours, keys = Authority(), KeyFile(tmp_path / "keys.toml")
    token = keys.add("me", "acme")
    Files(tmp_path).write(ours.issue("server"))
    (tmp_path / "ca.pem").write_bytes(ours.pem)

    async def grpcurl(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(str(GRPCURL), "-cacert", "ca.pem", *arguments),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        return (await process.communicate())[0].decode()

    async with secured(tmp_path, "--api-keys", "keys.toml", "--host", "0.0.0.0") as server:
        target = f"localhost:{server.target.rpartition(':')[2]}"
        method = "agentrpc.v1.ServerService/GetServerInfo"
        assert "capabilities" in await grpcurl("-H", f"authorization: Bearer {token}", target, method)
        assert "ERROR_REASON_UNAUTHENTICATED" in await grpcurl(target, method)
        assert "agentrpc.v1.RunService" in await grpcurl(target, "list")


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (("key.pem", None), ["cannot read", "key.pem"]),
        (("cert.pem", b"x"), ["cert.pem", "PEM"]),
        (("key.pem", b"x"), ["key.pem", "PEM"]),
        (("client-ca.pem", b"x"), ["client-ca.pem", "CA certificates"]),
        (("keys.toml", b"x"), ["keys.toml"]),
    ],
)
async def test_files_that_cannot_be_used_are_refused_at_the_start(
    tmp_path: Path, damage: tuple[str, bytes | None], names: list[str]
) -> None:
    """One line names the file."""
    ours = Authority()
    Files(tmp_path).write(ours.issue("server"), ours.pem)
    KeyFile(tmp_path / "keys.toml")
    name, data = damage
    if data is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(data)
    flags = (*Files(tmp_path).flags, "--tls-client-ca", "client-ca.pem", "--api-keys", "keys.toml")
    async with ScriptedOpenAI([], api_key=API_KEY) as upstream:
        line = await refused(tmp_path, environment(upstream), "--store", "memory", *flags)
    assert all(text in line for text in names), line


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_commands_connect_with_tls_and_a_key(tmp_path: Path, workers: str) -> None:
    """The key comes from a flag or from the environment; without it, or without the CA, one line tells."""
    ours, clients, keys = Authority(), Authority("clients"), KeyFile(tmp_path / "keys.toml")
    token = keys.add("me", "acme")
    Files(tmp_path).write(ours.issue("server"), clients.pem)
    (tmp_path / "ca.pem").write_bytes(ours.pem)
    for name, data in zip(("me-key.pem", "me.pem"), clients.issue("me"), strict=True):
        (tmp_path / name).write_bytes(data)

    async def runs_list(*flags: str, **env: str) -> tuple[int | None, str]:
        return await command("runs", "list", *flags, **env)

    async def command(*arguments: str, **env: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            *(*PROGRAM, *arguments, "--target", server.target),
            cwd=tmp_path,
            env=environment(None, **env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output = (await process.communicate())[0].decode()
        return process.returncode, output

    store = ("--store", "runs.sqlite3", "--workers", workers)
    flags = ("--tls-client-ca", "client-ca.pem", "--api-keys", "keys.toml", *store)
    async with secured(tmp_path, *flags) as server:
        tls = ("--tls-ca", "ca.pem", "--tls-cert", "me.pem", "--tls-key", "me-key.pem")
        assert await runs_list(*tls, "--token", token) == (0, "")
        assert await runs_list(*tls, AGENT_SERVICE_TOKEN=token) == (0, "")
        code, said = await runs_list(*tls)
        assert (code, said.startswith("error: UNAUTHENTICATED: ")) == (1, True)
        assert (await runs_list("--tls", "--token", token))[0] == 1
        code, said = await command("chat", *tls, "--token", token)
        assert (code, said.startswith("you> ")) == (0, True)
        code, said = await runs_list("--tls-ca", "nowhere.pem")
        assert (code, "nowhere.pem" in said) == (1, True)


@asynccontextmanager
async def on_socket(folder: Path, *flags: str, **env: str) -> AsyncIterator[ServerProcess]:
    """A server process on a Unix socket."""
    async with (
        ScriptedOpenAI([], api_key=API_KEY) as upstream,
        running(folder, environment(upstream, **env), "--store", "memory", "--address", "unix:a.sock", *flags) as (
            server,
            _,
        ),
    ):
        yield server


async def test_a_unix_socket_is_for_its_owner(tmp_path: Path) -> None:
    """It can be reached by path, has the permissions that were asked for from its beginning, and goes at the end."""
    path = tmp_path / "a.sock"
    target = f"unix:{path}"
    async with on_socket(tmp_path) as server:
        assert server.target == "unix:a.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await served(target, None) == "OK"
        server.terminate()
        assert await server.ended() == 0
        assert not path.exists()
    async with on_socket(tmp_path, AGENT_SERVICE_SOCKET_MODE="660"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660


async def test_a_socket_that_a_killed_server_left_is_replaced(tmp_path: Path) -> None:
    """And one that a server listens on is not; nor is a file that is no socket."""
    path = tmp_path / "a.sock"
    async with on_socket(tmp_path) as killed:
        await killed.kill()
    assert path.is_socket()
    async with on_socket(tmp_path) as server:
        assert await served(f"unix:{path}", None) == "OK"
        async with ScriptedOpenAI([], api_key=API_KEY) as upstream:
            flags = ("--store", "memory", "--address", "unix:a.sock")
            assert "another server" in await refused(tmp_path, environment(upstream), *flags)
            assert await served(f"unix:{path}", None) == "OK"
            server.terminate()
            await server.ended()
            path.write_text("precious")
            assert "a.sock" in await refused(tmp_path, environment(upstream), *flags)
            assert path.read_text() == "precious"
            assert "folder" in await refused(tmp_path, environment(upstream), *flags[:3], "unix:no/such/a.sock")


async def test_credentials_are_asked_for_on_a_unix_socket_too(tmp_path: Path) -> None:
    """If they are set up."""
    keys = KeyFile(tmp_path / "keys.toml")
    token = keys.add("me", "acme")
    async with on_socket(tmp_path, "--api-keys", "keys.toml"):
        assert await served(f"unix:{tmp_path / 'a.sock'}", None) == "UNAUTHENTICATED"
        assert await served(f"unix:{tmp_path / 'a.sock'}", None, token) == "OK"
