"""Secrets that are planted everywhere come out nowhere: not in logs, errors, events, lists or what commands print."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from agentrpc.v1 import agent_registry_service_pb2, run_service_pb2, server_service_pb2
from google.rpc import status_pb2
from grpc_status import rpc_status

from tests.credentials import Authority, Issuer, KeyFile, replaced
from tests.postgres import Postgres
from tests.process import API_KEY, environment, launch, running
from tests.scripted_openai import ScriptedOpenAI, calls, fails, says
from tests.service import SECRET, Client, connected, returned

pytestmark = pytest.mark.anyio

PASSWORD = "pg-planted-4711"
ASKED = calls(("get_secret_code", {"name": "Alice"}))


@asynccontextmanager
async def issuer_and_files(folder: Path) -> AsyncIterator[tuple[Issuer, KeyFile, Authority]]:
    """What a server is set up with."""
    ours = Authority()
    for name, data in zip(("key.pem", "cert.pem"), ours.issue("server"), strict=True):
        replaced(folder / name, data)
    async with Issuer().publishing() as issuer:
        yield issuer, KeyFile(folder / "keys.toml"), ours


def settings_of(issuer: Issuer, level: str = "debug") -> dict[str, str]:
    """As variables."""
    jwt = {f"AGENT_SERVICE_{name.upper()}": value for name, value in issuer.settings.items()}
    files = {"API_KEYS": "keys.toml", "TLS_CERT": "cert.pem", "TLS_KEY": "key.pem", "LOG_LEVEL": level}
    return jwt | {f"AGENT_SERVICE_{name}": value for name, value in files.items()}


async def told(call: Any) -> str:
    """All that a call brings, or the error it ends with, with its trailers."""
    try:
        if hasattr(call, "__aiter__"):
            return "".join([str(response) async for response in call])
        return str(await call)
    except grpc.aio.AioRpcError as error:
        status = rpc_status.from_call(error) or status_pb2.Status()
        return f"{error!r} {error.details()} {status} {error.trailing_metadata()}"


async def used(client: Client) -> list[str]:
    """What a client learns that uses much of the service."""
    run = (await client.ask("Go.", SECRET)).run
    said = [await told(client.answer(run.run_id, returned(run.pending_tool_calls[0], "AZURE")))]
    said.append(await told(client.ask("This one fails.")))
    said.append(await told(client.watching(run.run_id)))
    said.append(await told(client.watching("run_nowhere")))
    said.append(await told(client.server.GetServerInfo(server_service_pb2.GetServerInfoRequest())))
    said.append(await told(client.runs.ListRuns(run_service_pb2.ListRunsRequest())))
    request = agent_registry_service_pb2.ListMessagesRequest(conversation_id=run.conversation_id)
    said.append(await told(client.registry.ListMessages(request)))
    return said


async def test_no_secret_comes_out(tmp_path: Path, postgres_server: Postgres) -> None:
    """Keys of callers and of the model endpoint, tokens, the private key and the password of the database: good ones
    and bad ones, while all goes well and while much fails."""
    async with (
        issuer_and_files(tmp_path) as (issuer, keys, ours),
        ScriptedOpenAI([ASKED, says("Done."), fails(401)] * 2, api_key=API_KEY) as upstream,
    ):
        key, token = keys.add("program", "acme"), issuer.token()
        reader = issuer.token(scope="read")
        expired = issuer.token(exp=1)
        env = environment(upstream, AGENT_SERVICE_MODEL="scripted-model", **settings_of(issuer))
        captured: list[str] = []
        async with running(tmp_path, env, "--store", "memory") as (server, _):
            for credential in (key, token):
                async with connected(server.target, credentials=ours.trusted(), token=credential) as client:
                    captured += await used(client)
            for bad in (reader, expired, key + "x", "ak_planted", "planted.jwt.planted"):
                async with connected(server.target, credentials=ours.trusted(), token=bad) as client:
                    captured.append(await told(client.cancel("run_1")))
            keys.path.write_text(f"[keys.a]\nsha256 = '{key}'\n")
            async with connected(server.target, credentials=ours.trusted(), token=key) as client:
                captured.append(await told(client.list_runs()))
            await server.logged("file.not_reloaded")
            captured.append(server.log_path.read_text())
        captured.append(await _failed_start(tmp_path, postgres_server, env))
        everything = "\n".join(captured)
        assert "auth.refused" in everything
        assert "Done." in everything
        private = (tmp_path / "key.pem").read_text().splitlines()[1]
        for secret in (key, token, reader, expired, "ak_planted", "planted.jwt.planted", API_KEY, PASSWORD, private):
            assert secret not in everything
            # Nor a part of it that would do.
            assert secret[-20:] not in everything


async def _failed_start(folder: Path, postgres: Postgres, env: dict[str, str]) -> str:
    """What a server says that cannot use its database."""
    host = postgres.url.rpartition("@")[2]
    flags = ("--store", f"postgresql://nobody:{PASSWORD}@{host.partition('/')[0]}/nothing")
    process, log_path = await launch(folder, env, *flags)
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    return output.decode() + log_path.read_text()
