"""The commands and the program of docs/scaling.md, run as they stand against real replicas on other ports."""

from __future__ import annotations

import asyncio
import re
import runpy
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from agentrpc.v1 import runs_pb2

from tests.envoy import fleet
from tests.pages import Block, blocks, check, run, section
from tests.process import API_KEY, ServerProcess, environment, running
from tests.scripted_openai import Gate, Request, ScriptedOpenAI, gated, says
from tests.service import connected

pytestmark = pytest.mark.anyio

PAGE = section("scaling.md", "Balancing load")
LISTED = ("127.0.0.1:50051", "127.0.0.1:50052")


@pytest.mark.skipif(not (shutil.which("grpcurl") and shutil.which("curl")), reason="grpcurl or curl is not installed")
async def test_each_block_shows_what_the_page_says(tmp_path: Path) -> None:
    """The configuration is valid, a run goes through Envoy, and Envoy takes both replicas to be healthy."""
    async with fleet(tmp_path, str(tmp_path / "runs.sqlite3"), [says("Hello.")]) as here:
        real = {"localhost:50050": here.proxy.target, "localhost:9901": here.proxy.admin}
        real |= zip(LISTED, here.replicas, strict=True)
        for block in blocks(PAGE):
            await check(_with(block, real))


def _with(block: Block, real: dict[str, str]) -> Block:
    """The block with other addresses."""
    commands, text = block
    for listed, address in real.items():
        commands, text = commands.replace(listed, address), text.replace(listed, address)
    return commands, text


@asynccontextmanager
async def replicas(folder: Path, upstream: ScriptedOpenAI, **settings: str) -> AsyncIterator[list[ServerProcess]]:
    """Two of them on one SQLite file."""
    env, flags = environment(upstream, **settings), ("--store", str(folder / "runs.sqlite3"))
    async with running(folder, env, *flags) as (one, _), running(folder, env, *flags) as (other, _):
        yield [one, other]


def program(folder: Path, servers: list[ServerProcess]) -> Path:
    """The page's program, for these replicas."""
    (code,) = re.findall(r"```python\n(.*?)```\n", PAGE, re.DOTALL)
    for listed, server in zip(LISTED, servers, strict=True):
        assert code.count(listed) == 1
        code = code.replace(listed, server.target)
    path = folder / "client.py"
    path.write_text(code)
    return path


def _hello_after(gate: Gate) -> Callable[[Request], Any]:
    """A model that waits where it is asked to."""
    hello = says("Hello.")
    return lambda request: gated(hello, gate) if "Wait" in str(request.messages) else hello


async def _reach(servers: list[ServerProcess], client: dict[str, Any], channel: Any) -> int:
    """Asks until each of them has answered, and says how often."""
    for number in range(50):
        if all(any(line.get("rpc") == "Step" for line in server.log) for server in servers):
            return number
        await client["ask"](channel, "Hi")
    raise AssertionError("all went to one replica")


async def test_the_program_notices_nothing_when_a_replica_stops(tmp_path: Path) -> None:
    """Its service config alone, without its loop, sends all calls to the other one, while a run has time to end."""
    gate = Gate()
    async with (
        ScriptedOpenAI(_hello_after(gate), api_key=API_KEY) as upstream,
        replicas(tmp_path, upstream, AGENT_SERVICE_GRACE_SECONDS="60") as (stopping, other),
        connected(stopping.target) as direct,
    ):
        client = runpy.run_path(str(program(tmp_path, [stopping, other])))
        client["ask"].__globals__["UNKNOWN"] = ()
        async with client["connect"]() as channel:
            await _reach([stopping, other], client, channel)
            await direct.ask("Wait", background=True)
            stopping.terminate()
            await stopping.logged("stopping")
            for _ in range(10):
                await client["ask"](channel, "Hi")
            gate.open()
            assert await stopping.ended() == 0
            await client["ask"](channel, "Hi")


async def test_the_program_balances_its_calls_and_loses_none_with_a_replica(tmp_path: Path) -> None:
    """It prints the answer. Its calls go to both replicas; one dies while calls wait there for the model, and all are
    answered, the ones that were cut after the other replica took their runs over."""
    gate = Gate()
    async with (
        ScriptedOpenAI(_hello_after(gate), api_key=API_KEY) as upstream,
        replicas(tmp_path, upstream, AGENT_SERVICE_LEASE_SECONDS="1") as servers,
    ):
        path = program(tmp_path, servers)
        assert await run(f"python {path}") == "Hello.\n"
        client = runpy.run_path(str(path))
        async with client["connect"]() as channel:
            first = 1 + await _reach(servers, client, channel)
            waiting = [asyncio.ensure_future(client["ask"](channel, "Wait")) for _ in range(6)]
            await upstream.wait_for_requests(first + len(waiting))
            await servers[0].kill()
            await upstream.disconnected.reach(len(waiting) // 2)
            gate.open()
            more = [await client["ask"](channel, "Hi") for _ in range(5)]
            answers = [*more, *await asyncio.gather(*waiting)]
        assert {answer.run.status for answer in answers} == {runs_pb2.RUN_STATUS_COMPLETED}
        attempts = sorted(answer.run.model_attempts for answer in answers)
        assert attempts == [1] * (len(answers) - 3) + [2] * 3
