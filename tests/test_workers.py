"""`serve --workers`: several processes on one port and one file, kept going by one that serves nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from agentrpc.v1 import agent_service_pb2_grpc, runs_pb2

from agent_service.workers import Worker
from tests.process import API_KEY, ServerProcess, environment, launch, refused, running
from tests.scripted_openai import Request, ScriptedOpenAI, calls, says
from tests.service import Client, step
from tests.tool_desk import Desk

pytestmark = pytest.mark.anyio

TWO = ("--workers", "2")
FILE = ("--store", "my runs.sqlite3")
ALONE = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
"""A connection of its own for each channel."""
COMPLETED = runs_pb2.RUN_STATUS_COMPLETED
TRIES = 100


def answer(request: Request) -> Any:
    """One call of `look_up` for each question, then an answer."""
    return says("Done.") if request.new_returns else calls(("look_up", {"name": "Alice"}))


@asynccontextmanager
async def workers(folder: Path, store: str) -> AsyncIterator[tuple[ServerProcess, Client, Desk, dict[str, str]]]:
    """Two workers whose server tool asks at the desk, and which take over lost runs after a second."""
    async with ScriptedOpenAI(answer, api_key=API_KEY) as upstream, Desk() as desk:
        env = environment(upstream, **desk.environment, AGENT_SERVICE_LEASE_SECONDS="1")
        async with running(folder, env, *TWO, "--store", store) as (server, client):
            yield server, client, desk, env


async def ready(server: ServerProcess) -> set[int]:
    """The process ids of the workers, once all serve."""
    return {line["pid"] for line in await server.logged("serving")}


async def worker_of_a_run(target: str, desk: Desk) -> int:
    """Which process took a run that came over a new connection."""
    async with grpc.aio.insecure_channel(target, options=ALONE) as channel:
        stub = agent_service_pb2_grpc.AgentServiceStub(channel)
        asked = asyncio.ensure_future(stub.Step(step("Hi"), wait_for_ready=True))
        execution = await desk.execution()
        execution.answer("here")
        assert (await asked).run.status == COMPLETED
        return execution.pid


async def until_seen(target: str, desk: Desk, wanted: set[int]) -> set[int]:
    """Which processes take runs that come over new connections; stops when all of these did."""
    seen: set[int] = set()
    for _ in range(TRIES):
        seen.add(await worker_of_a_run(target, desk))
        if wanted <= seen:
            return seen
    raise AssertionError(f"only {seen} served, not {wanted}")


def exists(pid: int) -> bool:
    """Whether a process is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def gone(*pids: int) -> None:
    """Returns once these processes are no longer there."""
    for _ in range(500):
        if not any(exists(pid) for pid in pids):
            return
        await asyncio.sleep(0.02)
    left = [pid for pid in pids if exists(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    raise AssertionError(f"still there: {left}")


async def test_workers_share_the_connections_and_the_runs_of_a_killed_one(tmp_path: Path, shared_store: str) -> None:
    """Both take connections of the one address that is told. When one is killed its run goes on in the other, a new one
    takes its place, and SIGTERM ends all of them with 0. The process that keeps them never loads gRPC.
    """
    async with workers(tmp_path, shared_store) as (server, client, desk, _):
        pids = await ready(server)
        assert len(pids) == 2
        assert server.process.pid not in pids
        assert await until_seen(server.target, desk, pids) == pids
        assert _uses_grpc(min(pids))
        assert not _uses_grpc(server.process.pid)

        await client.ask("Hi", run_id="run-1", background=True)
        execution = await desk.execution()
        os.kill(execution.pid, signal.SIGKILL)
        again = await desk.execution()
        assert (again.tool_call_id, again.attempt) == (execution.tool_call_id, 2)
        again.answer("here")
        for line in await server.logged("worker.started"):
            await until_seen(server.target, desk, {line["pid"]})
            pids.add(line["pid"])
        async with grpc.aio.insecure_channel(server.target, options=ALONE) as channel:
            stub = agent_service_pb2_grpc.AgentServiceStub(channel)
            joined = await stub.Step(step("Hi", run_id="run-1"))
            assert (joined.run.status, joined.run.run_id) == (COMPLETED, "run-1")

        server.terminate()
        assert await server.ended() == 0
        assert len(pids) == 3
        assert not any(exists(pid) for pid in pids)
        assert await _rest_of(server) == b""
        assert [line for line in server.log if line["level"] == "error"] == []
        assert [line["event"] for line in server.log].count("stopped") == 2


def _uses_grpc(pid: int) -> bool:
    return "cygrpc" in Path(f"/proc/{pid}/maps").read_text()


async def _rest_of(server: ServerProcess) -> bytes:
    assert server.process.stdout is not None
    return await server.process.stdout.read()


async def test_workers_end_with_the_process_that_keeps_them(tmp_path: Path, shared_store: str) -> None:
    """Killed with -9 it takes them with it, and a new start on the same port and store goes on with what they did."""
    async with workers(tmp_path, shared_store) as (server, client, desk, env):
        pids = await ready(server)
        await client.ask("Hi", run_id="run-1", background=True)
        execution = await desk.execution()
        await server.kill()
        await gone(*pids)
        port = server.target.rpartition(":")[2]
        async with running(tmp_path, env, *TWO, "--store", shared_store, "--port", port) as (second, client):
            assert second.target == server.target
            again = await desk.execution()
            assert (again.tool_call_id, again.attempt) == (execution.tool_call_id, 2)
            again.answer("here")
            assert (await client.ask("Hi", run_id="run-1")).run.status == COMPLETED
            second.terminate()
            assert await second.ended() == 0


async def test_flags_reach_the_workers(tmp_path: Path) -> None:
    """Also those without a value, and values with spaces. What a tool prints goes where the service prints, and as much
    as it likes of it.
    """
    (tmp_path / "my agents.toml").write_text('[agents.helper]\ninstructions = "Help."\nserver_tools = ["shout"]\n')
    (tmp_path / "loud.py").write_text(
        "print('imported', flush=True)\n"
        "def shout() -> str:\n"
        "    print('loud ' * 200_000, flush=True)\n"
        "    return 'said'\n"
    )
    flags = ("--host", "0.0.0.0", "--insecure-any-address", "--agents-file", "my agents.toml", "--tools", "loud")
    script = [calls(("shout", {})), says("Done.")]
    async with ScriptedOpenAI(script, api_key=API_KEY) as upstream:
        process, log_path = await launch(tmp_path, environment(upstream), *TWO, *FILE, *flags, "--log-level", "warning")
        assert process.stdout is not None
        try:
            said = [(await asyncio.wait_for(process.stdout.readline(), 30)).decode() for _ in range(3)]
            assert said[:2] == ["imported\n"] * 2, log_path.read_text()
            assert said[2].startswith("listening on 0.0.0.0:")
            target = said[2].removeprefix("listening on ").strip()
            printed = asyncio.ensure_future(process.stdout.read())
            async with grpc.aio.insecure_channel(target, options=ALONE) as channel:
                asked = agent_service_pb2_grpc.AgentServiceStub(channel).Step(step("Hi", agent_id="helper"))
                assert (await asyncio.wait_for(asked, 20)).run.status == COMPLETED
            assert (tmp_path / "my runs.sqlite3").exists()
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 30) == 0
            assert (await printed).decode() == "loud " * 200_000 + "\n"
            assert log_path.read_text() == ""
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_workers_that_cannot_start_are_told_in_one_line(tmp_path: Path) -> None:
    """A store in memory, a port that is taken, a tool that is not there: each is named, and nothing is left running."""
    async with ScriptedOpenAI([], api_key=API_KEY) as upstream:
        env = environment(upstream)
        line = await refused(tmp_path, env, "--workers", "2", "--store", "memory")
        assert all(word in line for word in ("workers", "memory", "SQLite"))
        line = await refused(tmp_path, env, *TWO, *FILE, "--tools", "no_such_module")
        assert "no_such_module" in line
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            line = await refused(tmp_path, env, *TWO, *FILE, "--port", port)
            assert f"127.0.0.1:{port}" in line
            assert "another server" in line


async def test_a_worker_that_does_not_end_is_killed() -> None:
    """One that hangs, or that somebody stopped, does not keep the others' parent from its end."""
    stubborn = (
        "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.write(0, b'here\\n'); signal.pause()"
    )
    worker = Worker([sys.executable, "-c", stubborn], dict(os.environ), stop_seconds=0.1)
    await worker.start()
    await asyncio.wait_for(worker.stop(), 10)
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


async def test_workers_that_are_still_starting_can_be_stopped(tmp_path: Path) -> None:
    """They wait for a model endpoint that does not answer: nobody has to wait with them for the end of that."""
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.close()

    endpoint = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = endpoint.sockets[0].getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent_service", "serve", "--port", "0", *TWO, *FILE),
        cwd=tmp_path,
        env=os.environ | {"OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1", "OPENAI_API_KEY": API_KEY},
    )
    try:
        await asyncio.wait_for(asked.wait(), 30)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 10) == 0
    finally:
        endpoint.close()
        if process.returncode is None:
            process.kill()
            await process.wait()
