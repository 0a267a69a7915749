"""What the service itself says after the campaign, through its RPCs, and what the endpoint and the tools wrote."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from agentrpc.v1 import agent_registry_service_pb2, events_pb2, messages_pb2, run_service_pb2, runs_pb2

from tests.blocks import value
from tests.chaos.journal import PASSING
from tests.chaos.memory import AGENT, NOTES, Parts, reading
from tests.scripted_openai import Rejection, Request, ScriptedOpenAI
from tests.service import Client

_SECONDS = 30.0
_AT_ONCE = 16


@dataclass
class Evidence:
    """Runs, their events, and messages by conversation; the requests of the endpoint; what tools did, by call."""

    runs: dict[str, runs_pb2.Run] = field(default_factory=dict)
    events: dict[str, list[events_pb2.RunEvent]] = field(default_factory=dict)
    messages: dict[str, list[messages_pb2.Message]] = field(default_factory=dict)
    listed: set[str] = field(default_factory=set)
    requests: Sequence[Request] = ()
    rejections: Sequence[Rejection] = ()
    problems: Sequence[str] = ()
    executions: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    parts: Parts = field(default_factory=dict)
    """What memory runs were given."""
    notes: str = ""
    """What the memory block of the memory agent holds."""
    due: dict[str, int] = field(default_factory=dict)
    """By conversation that memory agents read: the last message of its last run that is COMPLETED."""
    missing: list[str] = field(default_factory=list)
    """What could not be read, though it was acknowledged."""

    def messages_of(self, run_id: str) -> list[messages_pb2.Message]:
        """The messages of a run, in order."""
        return [m for m in self.messages.get(self.runs[run_id].conversation_id, ()) if m.run_id == run_id]


async def gather(
    client: Client, started: Sequence[str], upstream: ScriptedOpenAI, ledger: Path, patience_seconds: float
) -> Evidence:
    """Everything there is about these runs, once memory agents have read what they have to, or the patience is over."""
    evidence = Evidence()
    gate = asyncio.Semaphore(_AT_ONCE)
    await _read_all(client, evidence, started, gate)
    _note_due(evidence)
    found = await reading(client, evidence.due, patience_seconds)
    evidence.parts = found.parts
    evidence.notes = await value(client, NOTES) if found.runs else ""
    await _read_all(client, evidence, [run.run_id for run in found.runs], gate)
    # The endpoint may have been asked meanwhile.
    evidence.requests, evidence.rejections, evidence.problems = upstream.requests, upstream.rejected, upstream.problems
    await _read_list(client, evidence)
    _read_ledger(evidence, ledger)
    return evidence


async def _read_all(client: Client, evidence: Evidence, run_ids: Sequence[str], gate: asyncio.Semaphore) -> None:
    """These runs with their events, and the messages of their conversations."""
    await asyncio.gather(*(_read_run(client, evidence, run_id, gate) for run_id in run_ids))
    conversations = sorted({run.conversation_id for run in evidence.runs.values()} - evidence.messages.keys())
    await asyncio.gather(*(_read_messages(client, evidence, conversation, gate) for conversation in conversations))


def _note_due(evidence: Evidence) -> None:
    for run in evidence.runs.values():
        if (run.agent_id, run.status) == (AGENT, runs_pb2.RUN_STATUS_COMPLETED):
            last = evidence.messages_of(run.run_id)[-1].position
            evidence.due[run.conversation_id] = max(last, evidence.due.get(run.conversation_id, 0))


def _read_ledger(evidence: Evidence, ledger: Path) -> None:
    for line in ledger.read_text().splitlines() if ledger.exists() else ():
        call_id, proof = line.split(" ", 1)
        evidence.executions[call_id].append(proof)


async def _read_run(client: Client, evidence: Evidence, run_id: str, gate: asyncio.Semaphore) -> None:
    async with gate:
        try:
            evidence.runs[run_id] = await client.run(run_id)
            evidence.events[run_id] = await _read_events(client, run_id)
        except grpc.aio.AioRpcError as error:
            evidence.missing.append(f"{run_id} was acknowledged, and is answered with {error.code().name}")


async def _read_events(client: Client, run_id: str) -> list[events_pb2.RunEvent]:
    """The stored events: up to `live`, or to the end of a run that is over."""
    events = []
    call = client.runs.WatchRun(run_service_pb2.WatchRunRequest(run_id=run_id), timeout=_SECONDS)
    async for response in call:
        if response.event.HasField("live"):
            break
        if response.event.WhichOneof("payload") not in PASSING:
            events.append(response.event)
    call.cancel()
    return events


async def _read_messages(client: Client, evidence: Evidence, conversation_id: str, gate: asyncio.Semaphore) -> None:
    request = agent_registry_service_pb2.ListMessagesRequest(conversation_id=conversation_id)
    found: list[messages_pb2.Message] = []
    async with gate:
        while True:
            page = await client.registry.ListMessages(request)
            found += page.messages
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
    evidence.messages[conversation_id] = found


async def _read_list(client: Client, evidence: Evidence) -> None:
    token = ""
    while True:
        page = await client.list_runs(page_size=1000, page_token=token)
        evidence.listed.update(run.run_id for run in page.runs)
        token = page.next_page_token
        if not token:
            return
