"""InboxService: finds the calls that wait for callers, and shares them out to workers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc
from agentrpc.v1 import inbox_service_pb2 as pb
from agentrpc.v1 import inbox_service_pb2_grpc as pb_grpc
from agentrpc.v1 import tools_pb2

from agent_service.domain.registry import CallFilter
from agent_service.domain.tool import PendingKind
from agent_service.engine.inbox import Inbox
from agent_service.engine.limits import Limits
from agent_service.engine.store import RunStore
from agent_service.transport import translate
from agent_service.transport.access import current_caller
from agent_service.transport.paging import bounded_page, read_page, write_token
from agent_service.transport.requests import Reader

Context = grpc.aio.ServicerContext[Any, Any]

_KINDS = {
    tools_pb2.PENDING_KIND_UNSPECIFIED: None,
    tools_pb2.PENDING_KIND_CLIENT_EXECUTION: PendingKind.CLIENT_EXECUTION,
    tools_pb2.PENDING_KIND_APPROVAL: PendingKind.APPROVAL,
}

_LEASE, _LONGEST_LEASE = 30 * 10**9, 24 * 3600 * 10**9
_MOST_CALLS = 100
_MOST_PROGRESS = 4096


class InboxServicer(pb_grpc.InboxServiceServicer):
    """Adapts InboxService onto the store and the inbox."""

    def __init__(self, inbox: Inbox, store: RunStore, limits: Limits) -> None:
        self._inbox = inbox
        self._store = store
        self._limits = limits

    async def ListPendingToolCalls(
        self, request: pb.ListPendingToolCallsRequest, context: Context
    ) -> pb.ListPendingToolCallsResponse:
        reader = Reader(self._limits)
        if request.kind not in _KINDS:
            reader.problems.add("kind", f"{request.kind} is not a value of PendingKind")
        which = CallFilter(
            agent_id=reader.id("agent_id", request.agent_id),
            conversation_id=reader.id("conversation_id", request.conversation_id),
            tool_name=request.tool_name,
            kind=_KINDS.get(request.kind),
        )
        descending = reader.order(request.order, descending=False)
        page = read_page(
            reader.problems, self._limits, "calls", request.page_size, request.page_token, descending=descending
        )
        reader.done()
        calls = await self._store.waiting_calls(current_caller().tenant, which, page)
        now = self._store.now()
        standing = [translate.waiting_call(call.at(now)) for call in calls]
        shown = bounded_page(standing, page.limit - 1, self._limits.max_response_bytes)
        last = calls[len(shown) - 1] if shown and len(shown) < len(calls) else None
        token = write_token("calls", last.pending_time, last.call.tool_call_id) if last else ""
        return pb.ListPendingToolCallsResponse(calls=shown, next_page_token=token)

    async def WatchPendingToolCalls(
        self, request: pb.WatchPendingToolCallsRequest, context: Context
    ) -> AsyncGenerator[pb.WatchPendingToolCallsResponse]:
        reader = Reader(self._limits, "filter.")
        which = self._filter(reader, request.filter)
        reader.done()
        async with aclosing(self._inbox.watch(current_caller().tenant, which)) as changes:
            async for change in changes:
                yield translate.inbox_change(change)

    async def ClaimToolCalls(self, request: pb.ClaimToolCallsRequest, context: Context) -> pb.ClaimToolCallsResponse:
        within = Reader(self._limits, "filter.")
        which = self._filter(within, request.filter)
        reader = Reader(self._limits)
        reader.problems = within.problems
        worker_id = reader.required_id("worker_id", request.worker_id, "the worker")
        lease = _lease(reader, request)
        if not 0 <= request.max_calls <= _MOST_CALLS:
            reader.problems.add("max_calls", f"{request.max_calls} is not from 1 to {_MOST_CALLS}, or 0 for 1")
        reader.done()
        claimed = await self._inbox.claim(current_caller().tenant, which, worker_id, lease, request.max_calls or 1)
        calls = [pb.ClaimedToolCall(call=translate.waiting_call(call), claim_token=token) for call, token in claimed]
        return pb.ClaimToolCallsResponse(calls=calls)

    async def ExtendToolCall(self, request: pb.ExtendToolCallRequest, context: Context) -> pb.ExtendToolCallResponse:
        reader = Reader(self._limits)
        run_id = reader.required_id("run_id", request.run_id, "the call's run")
        reader.required_id("tool_call_id", request.tool_call_id, "the call")
        reader.required_id("claim_token", request.claim_token, "the claim")
        reader.bounded("progress", request.progress, _MOST_PROGRESS)
        lease = _lease(reader, request)
        reader.done()
        extended = await self._inbox.extend(
            current_caller().tenant, run_id, request.tool_call_id, request.claim_token, lease, request.progress
        )
        return pb.ExtendToolCallResponse(
            claim_expire_time=translate.timestamp(extended.claim_expire_time),
            cancel_requested=extended.cancel_requested,
        )

    def _filter(self, reader: Reader, request: pb.PendingToolCallFilter) -> CallFilter:
        if request.kind not in _KINDS:
            reader.problems.add("filter.kind", f"{request.kind} is not a value of PendingKind")
        age = reader.span("min_age", request.min_age, request.HasField("min_age"))
        return CallFilter(
            agent_id=reader.id("agent_id", request.agent_id),
            conversation_id=reader.id("conversation_id", request.conversation_id),
            tool_name=request.tool_name,
            kind=_KINDS.get(request.kind),
            labels=tuple(sorted(reader.labels(request.labels).items())),
            pending_before=self._store.now() - age if age else 0,
        )


def _lease(reader: Reader, request: pb.ClaimToolCallsRequest | pb.ExtendToolCallRequest) -> int:
    """Nanoseconds."""
    lease = reader.span("lease", request.lease, request.HasField("lease")) or _LEASE
    if not 10**9 <= lease <= _LONGEST_LEASE:
        reader.problems.add("lease", f"{lease / 1e9:g} s is not from one second to one day")
    return lease
