"""One campaign: a server process, a hostile endpoint, so many cases, and what the server was like meanwhile."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import grpc
from agentrpc.v1 import server_service_pb2

from tests.chaos import run_rules
from tests.chaos.evidence import gather
from tests.chaos.journal import Journal as ChaosJournal
from tests.fuzz import garbage
from tests.fuzz.caller import Journal, calling
from tests.fuzz.cases import Cases
from tests.fuzz.endpoint import HostileEndpoint, hostile_endpoint
from tests.fuzz.server import HELD
from tests.fuzz.world import World
from tests.process import API_KEY, ServerProcess, environment, running
from tests.scripted_openai import ScriptedOpenAI
from tests.service import Client, connected

_AT_ONCE = 12
_PROBE_SECONDS = 0.05
_IDLE_CONNECTIONS = 200
_GROWTH_BYTES = 96 * 1024 * 1024
_CHECKED_RUNS = 200
_PROGRAM = (sys.executable, "-m", "tests.fuzz.server")
_LIMITS = {"context_cache_bytes": 8 * 1024 * 1024}
"""So that a full cache is no growth."""
_RULES = (
    run_rules.numbers_have_no_gap,
    run_rules.runs_begin_and_end_once,
    run_rules.the_last_stop_is_the_run,
    run_rules.owners_follow_each_other,
    run_rules.each_full_answer_resumes_once,
    run_rules.events_tell_the_messages,
)


@dataclass
class Result:
    """What came of it. `memory` are the server's bytes after a tenth of the cases and after all."""

    findings: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    memory: tuple[int, int] = (0, 0)
    slowest_seconds: float = 0.0
    seconds: float = 0.0


async def campaign(folder: Path, store: str, seed: int, numbers: Iterable[int]) -> Result:
    """Plays these cases against a server of its own on this store."""
    begun = time.monotonic()
    async with hostile_endpoint() as endpoint:
        env = environment() | {
            "OPENAI_BASE_URL": endpoint.base_url,
            "OPENAI_API_KEY": API_KEY,
            "AGENT_SERVICE_MODEL": "fuzz-model",
            "AGENT_SERVICE_MODEL_SILENCE_SECONDS": "2",
            "AGENT_SERVICE_MODEL_MAX_RETRIES": "1",
            "AGENT_SERVICE_LIMITS": json.dumps(_LIMITS),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        flags = ("--store", store, "--tools", "tests.fuzz.tools")
        async with running(folder, env, *flags, program=_PROGRAM) as (server, client):
            attack = _Attack(server, client, endpoint, seed)
            await attack.run(list(numbers))
    return attack.result(time.monotonic() - begun)


class _Attack:
    def __init__(self, server: ServerProcess, client: Client, endpoint: HostileEndpoint, seed: int) -> None:
        self._server = server
        self._client = client
        self._endpoint = endpoint
        self._seed = seed
        self._journal = Journal()
        self._memory: list[int] = []
        self._slowest = 0.0

    async def run(self, numbers: list[int]) -> None:
        """All cases, then what can be said when they are over."""
        over = asyncio.Event()
        host, _, port = self._server.target.rpartition(":")
        others = [
            asyncio.ensure_future(self._probe()),
            asyncio.ensure_future(garbage.idle(host, int(port), _IDLE_CONNECTIONS, over)),
            asyncio.ensure_future(self._throw(host, int(port))),
        ]
        try:
            await self._play(numbers)
        finally:
            over.set()
            for other in others:
                other.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        if self._server.process.returncode is not None:
            self._journal.find(f"the server died with {self._server.process.returncode}")
            return
        try:
            await self._converse()
            await self._check_store()
        except grpc.aio.AioRpcError as error:
            self._journal.find(f"a good request is refused: {error.code().name} {error.details()}")

    def result(self, seconds: float) -> Result:
        """With what the log and the endpoint tell."""
        findings = [*self._journal.findings, *self._logged(), *self._held(), *self._refused(), *self._grown()]
        memory = (self._memory[0], self._memory[-1]) if self._memory else (0, 0)
        return Result(findings, dict(self._journal.counts), memory, self._slowest, seconds)

    async def _play(self, numbers: list[int]) -> None:
        left = iter(numbers)
        done = 0
        async with calling(self._server.target, self._journal) as caller:
            cases = Cases(self._seed, caller, World())

            async def play_on() -> None:
                nonlocal done
                for number in left:
                    if self._server.process.returncode is not None:
                        return
                    await cases.play(number)
                    done += 1
                    if done == max(len(numbers) // 10, 1):
                        self._memory.append(self._server.memory)

            await asyncio.gather(*(play_on() for _ in range(_AT_ONCE)))
        if self._server.process.returncode is None:
            self._memory.append(self._server.memory)

    async def _throw(self, host: str, port: int) -> None:
        rng = Random(f"{self._seed}/garbage")
        while True:
            await garbage.throw(host, port, rng)

    async def _probe(self) -> None:
        """Asks all the time for what takes no time."""
        async with connected(self._server.target, [("grpc.use_local_subchannel_pool", 1)]) as client:
            while True:
                self._slowest = max(self._slowest, await _asked(client))
                await asyncio.sleep(_PROBE_SECONDS)

    async def _converse(self) -> None:
        answer = await self._client.ask("do: says", run_timeout={"seconds": 20})
        if [message.assistant.text for message in answer.messages if message.HasField("assistant")] != ["Well."]:
            self._journal.find(f"a conversation that is not as before: {answer}")

    async def _check_store(self) -> None:
        """The runs that are left, by the rules of the attack with kills."""
        listed = (await self._client.list_runs(page_size=_CHECKED_RUNS)).runs
        runs = [run.run_id for run in listed if run.status >= 3]
        evidence = await gather(self._client, runs, ScriptedOpenAI([]), self._server.log_path.parent / "none", 30.0)
        self._journal.findings += [f"lost: {missing}" for missing in evidence.missing]
        for rule in _RULES:
            self._journal.findings += [f"{rule.__name__}: {found}" for found in rule(ChaosJournal(), evidence)]
        self._journal.counts["runs checked"] = len(runs)

    def _logged(self) -> list[str]:
        lines = self._server.log_path.read_text().split("\n")
        bad = [line for line in lines if '"level": "error"' in line or "Traceback" in line]
        return [f"logged: {line[:300]} ... {line[-1_500:]}" for line in bad[:40]]

    def _held(self) -> list[str]:
        path = self._server.log_path.parent / HELD
        lines = path.read_text().splitlines() if path.exists() else []
        return [f"the event loop was held for {line}" for line in lines[:40]]

    def _refused(self) -> list[str]:
        return [f"the service asked the model what the API refuses: {each}" for each in self._endpoint.refused[:20]]

    def _grown(self) -> list[str]:
        if len(self._memory) < 2:
            return []
        first, last = self._memory[0], self._memory[-1]
        if last - first <= _GROWTH_BYTES:
            return []
        return [f"memory grew from {first >> 20} MiB after a tenth of the cases to {last >> 20} MiB"]


async def _asked(client: Client) -> float:
    """How long the simplest request takes, in seconds."""
    begun = time.monotonic()
    try:
        await client.server.GetServerInfo(server_service_pb2.GetServerInfoRequest(), timeout=60.0)
    except grpc.aio.AioRpcError:
        return 0.0
    return time.monotonic() - begun
