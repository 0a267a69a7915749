"""The ways in which a client answers pending calls, and what it makes sure of."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any

from agentrpc.v1 import agent_service_pb2, tools_pb2
from agentrpc.v1.agent_service_pb2 import SubmitToolReturnsRequest
from agentrpc.v1.tools_pb2 import ApprovalDecision, PendingToolCall, ToolReturn

from tests.chaos.journal import Journal
from tests.chaos.line import Line, RefusedError
from tests.chaos.plans import Turn
from tests.service import Client

Calls = Sequence[PendingToolCall]

CLOSED = "CALL_CANCELLED"
SETTLED = "CALL_ALREADY_SETTLED"


async def answer_calls(line: Line, rng: Random, turn: Turn, calls: Calls) -> None:
    """Answers these calls in the turn's way; in the end each has an outcome."""
    submitter = _Submitter(line, rng, turn)
    match turn.answer:
        case "split":
            for call in calls:
                await submitter.submit([call])
        case "race":
            await asyncio.gather(*(submitter.submit([call]) for call in calls))
        case "twice":
            await asyncio.gather(submitter.submit(calls), submitter.submit(calls))
        case "conflict":
            took = await asyncio.gather(*(submitter.submit(calls, version=v, may_lose=True) for v in ("this", "that")))
            if not any(took) and not submitter.cancelled:
                line.journal.find("one_of_two_submits_wins", f"{turn.run_id}: both were refused")
        case "late":
            await submitter.submit(calls)
            await submitter.submit(calls, version="late", must_lose=True)
        case "bare":
            await submitter.submit(calls, named=False)
        case _:
            await submitter.submit(calls)


class _Submitter:
    def __init__(self, line: Line, rng: Random, turn: Turn) -> None:
        self._line = line
        self._rng = rng
        self._turn = turn
        self.cancelled = turn.ending.startswith("cancel")

    @property
    def _journal(self) -> Journal:
        return self._line.journal

    async def submit(
        self, calls: Calls, *, version: str = "", named: bool = True, may_lose: bool = False, must_lose: bool = False
    ) -> bool:
        """Whether it was taken. Being refused is right where another answer may be, or was, faster."""
        request = _request(self._turn, calls, version, named)
        try:
            await self._send(request, calls, version)
        except RefusedError as error:
            allowed = [SETTLED] if may_lose or must_lose else []
            allowed += [CLOSED] if self.cancelled else []
            if error.refusal.reason not in allowed:
                raise
            self._journal.counts["refused answers"] += 1
            return False
        if must_lose:
            self._journal.find("late_answers_are_refused", f"{self._turn.run_id}: one was accepted")
        return True

    async def _send(self, request: SubmitToolReturnsRequest, calls: Calls, version: str) -> None:
        how = self._rng.choice(("blocking", "background", "stream", "tokens"))
        if how in ("stream", "tokens"):
            await self._send_stream(request, calls, version, tokens=how == "tokens")
        else:
            request.background = how == "background"
            await self._send_blocking(request, calls, version)

    async def _send_blocking(self, request: SubmitToolReturnsRequest, calls: Calls, version: str) -> None:
        def rpc(client: Client) -> Any:
            return client.agent.SubmitToolReturns(request, wait_for_ready=True)

        answer = await self._line.ask(rpc, lambda: self._stored(calls))
        self._journal.run(answer.run)
        self._journal.receipt(request.run_id, answer.receipt)
        self._accepted(calls, version, answer.receipt.accepted_tool_call_ids)
        if not request.background and answer.receipt.accepted_tool_call_ids:
            self._journal.window(request.run_id, answer.receipt.request_id, answer.messages)

    async def _send_stream(
        self, request: SubmitToolReturnsRequest, calls: Calls, version: str, *, tokens: bool
    ) -> None:
        asked = agent_service_pb2.StreamToolReturnsRequest(submit=request, stream_tokens=tokens)

        def rpc(client: Client) -> Any:
            return client.agent.StreamToolReturns(asked, wait_for_ready=True)

        while True:
            leave = self._rng.choice((0, 0, 1, 2, 3))
            heard = await self._line.listen(rpc, leave_after=leave, stored=lambda: self._stored(calls))
            if heard.events:
                break
        first = heard.events[0]
        if not first.HasField("tool_returns_accepted"):
            self._journal.find(
                "receipts_come_first", f"{request.run_id}: a stream began with {first.WhichOneof('payload')}"
            )
        self._accepted(calls, version, first.tool_returns_accepted.accepted_tool_call_ids)

    def _stored(self, calls: Calls) -> None:
        self._journal.submit_stored(self._turn.run_id, (call.tool_call_id for call in calls))

    def _accepted(self, calls: Calls, version: str, accepted: Sequence[str]) -> None:
        for call in calls:
            if call.tool_call_id in accepted:
                self._journal.outcome(call.tool_call_id, content_of(call, version))


def content_of(call: PendingToolCall, version: str) -> str:
    """What the client answers: the text of a return, "approve" or "deny ...".

    Decided from the call's id, so that a repeat says the same.
    """
    if call.kind == tools_pb2.PENDING_KIND_APPROVAL:
        return "approve" if int(call.tool_call_id[-1], 16) % 3 else f"deny {version}"
    return f"{call.tool_call_id} is {version or 'done'}"


def _request(turn: Turn, calls: Calls, version: str, named: bool) -> SubmitToolReturnsRequest:
    request_id = f"{calls[0].tool_call_id[-20:]}-{len(calls)}-{version}" if named else ""
    request = SubmitToolReturnsRequest(run_id=turn.run_id, request_id=request_id)
    for call in calls:
        content = content_of(call, version)
        if call.kind == tools_pb2.PENDING_KIND_CLIENT_EXECUTION:
            request.tool_returns.append(ToolReturn(tool_call_id=call.tool_call_id, text=content))
            continue
        decision = ApprovalDecision(tool_call_id=call.tool_call_id)
        if content == "approve":
            decision.approve.note = version
        else:
            decision.deny.reason = content
        request.approvals.append(decision)
    return request
