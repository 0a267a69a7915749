"""One campaign: servers, load, kills; then the evidence, and what the checker says to it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from agentrpc.v1 import agents_pb2, runs_pb2

from tests.chaos import tools
from tests.chaos.checker import check
from tests.chaos.evidence import Evidence, gather
from tests.chaos.fleet import Fleet, Setup, fleet
from tests.chaos.journal import Journal
from tests.chaos.killer import Killer
from tests.chaos.line import Line, RefusedError, lines
from tests.chaos.memory import cancel_some, prepare
from tests.chaos.model import SUMMARY_PROMPT, asks_for_summary, endpoint
from tests.chaos.outages import Outages
from tests.chaos.plans import COMPACTING, turns
from tests.chaos.talker import Talker
from tests.service import connected

_KILLS_PER_CANCEL = 8
NARROW = agents_pb2.ContextPolicy(window_tokens=4000, threshold=0.09, keep=0.02, summary_prompt=SUMMARY_PROMPT)
"""Compacts after every few answers. What is summed up fits into one request."""


@dataclass(frozen=True)
class Size:
    """How much: at least so many conversations, at most so many at once; kills; patience with one conversation."""

    conversations: int
    kills: int
    at_once: int = 16
    patience_seconds: float = 90.0
    answer: str = ""
    ending: str = ""
    """How all calls are answered and all turns end; empty for as they are drawn."""


@dataclass
class Result:
    """What came of it."""

    findings: list[str]
    kills: int
    seconds: float
    counts: Counter[str] = field(default_factory=Counter)


@dataclass
class Attack:
    """What is left to judge after the servers are gone."""

    journal: Journal
    evidence: Evidence
    crashes: list[str]
    kills: int


async def campaign(setup: Setup, seed: int, size: Size) -> Result:
    """Attacks and judges."""
    begun = time.monotonic()
    left = await attack(setup, seed, size)
    findings = [*left.journal.findings, *check(left.journal, left.evidence), *left.crashes]
    counts = left.journal.counts + _counts(left.evidence)
    return Result(findings, left.kills, time.monotonic() - begun, counts)


async def attack(setup: Setup, seed: int, size: Size) -> Attack:
    """Runs servers, load and kills in the setup's folder, which must be empty."""
    journal = Journal()
    async with endpoint() as upstream:
        servers = fleet(setup, upstream)
        outages = Outages(setup.database, Random(f"{seed}/outages")) if setup.database is not None else None
        killer = Killer(servers, journal, Random(f"{seed}/kills"), size.kills, outages)
        try:
            await servers.start()
            async with connected(servers.targets[0]) as client:
                await prepare(client)
                await client.create_agent(COMPACTING, server_tools=tools.__all__, context=NARROW)
            async with lines(servers.targets, journal) as line_for:
                await _load(line_for, killer, journal, seed, size)
            async with connected(servers.targets[-1]) as client:
                started = sorted(journal.starts)
                evidence = await gather(client, started, upstream, setup.ledger, size.patience_seconds)
        finally:
            await servers.stop()
    return Attack(journal, evidence, _crashes(servers), killer.done)


async def _load(line_for: Callable[[Random], Line], killer: Killer, journal: Journal, seed: int, size: Size) -> None:
    """Conversations, until there were enough of them and the kills are done; then all are brought to their end."""
    killing = asyncio.ensure_future(_disturb(line_for, killer, seed, size))
    numbers = iter(range(1_000_000))

    async def talk_on() -> None:
        for number in numbers:
            if number >= size.conversations and killing.done():
                return
            await _converse(line_for, number, journal, seed, size)

    try:
        await asyncio.gather(killing, *(talk_on() for _ in range(size.at_once)))
    finally:
        killing.cancel()


async def _disturb(line_for: Callable[[Random], Line], killer: Killer, seed: int, size: Size) -> None:
    """All kills; and a memory run is cancelled every now and then."""
    rng = Random(f"{seed}/memory")
    await asyncio.gather(killer.run(), cancel_some(line_for(rng), rng, size.kills // _KILLS_PER_CANCEL))


async def _converse(line_for: Callable[[Random], Line], number: int, journal: Journal, seed: int, size: Size) -> None:
    rng = Random(f"{seed}/{number}")
    planned = turns(number, rng, size.answer, size.ending)
    try:
        async with asyncio.timeout(size.patience_seconds):
            await Talker(line_for(rng), rng).talk(planned)
    except TimeoutError:
        journal.find("conversations_end", f"{number} did not come to its end in {size.patience_seconds:g} s")
    except RefusedError as error:
        journal.find("clients_are_not_refused", f"conversation {number}: {error}")
    journal.counts["conversations"] += 1


def _crashes(servers: Fleet) -> list[str]:
    """Lines of the logs that tell of something unforeseen, which the death of a worker that starts is not."""
    paths = [path for server in servers.servers for path in server.log_paths]
    lines = [line for path in paths for line in path.read_text().splitlines()]
    bad = [line for line in lines if '"level": "error"' in line and '"worker.failed"' not in line]
    return [f"logs_tell_no_crash: {line}" for line in bad]


def _counts(evidence: Evidence) -> Counter[str]:
    names = [runs_pb2.RunStatus.Name(run.status).removeprefix("RUN_STATUS_") for run in evidence.runs.values()]
    counts = Counter(f"runs {name.lower()}" for name in names)
    counts["memory runs"] = len(evidence.parts)
    counts["model requests"] = len(evidence.requests)
    counts["requests for summaries"] = sum(map(asks_for_summary, evidence.requests))
    counts["compactions"] = sum(m.HasField("summary") for found in evidence.messages.values() for m in found)
    counts["server tools executed"] = sum(map(len, evidence.executions.values()))
    return counts
