"""InboxService: finds the calls that wait for callers."""

from __future__ import annotations

from typing import Any

import grpc
from agentrpc.v1 import inbox_service_pb2 as pb
from agentrpc.v1 import inbox_service_pb2_grpc as pb_grpc
from agentrpc.v1 import tools_pb2

from agent_service.domain.registry import CallFilter
from agent_service.domain.tool import PendingKind
from agent_service.engine.commands import Caller
from agent_service.engine.limits import Limits
from agent_service.engine.store import RunStore
from agent_service.transport import translate
from agent_service.transport.paging import bounded_page, read_page, write_token
from agent_service.transport.requests import Reader

Context = grpc.aio.ServicerContext[Any, Any]

_KINDS = {
    tools_pb2.PENDING_KIND_UNSPECIFIED: None,
    tools_pb2.PENDING_KIND_CLIENT_EXECUTION: PendingKind.CLIENT_EXECUTION,
    tools_pb2.PENDING_KIND_APPROVAL: PendingKind.APPROVAL,
}


class InboxServicer(pb_grpc.InboxServiceServicer):
    """Adapts InboxService onto the store."""

    def __init__(self, store: RunStore, limits: Limits, caller: Caller) -> None:
        self._store = store
        self._limits = limits
        self._caller = caller

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
        page = read_page(reader.problems, self._limits, request.page_size, request.page_token, descending=descending)
        reader.done()
        calls = await self._store.waiting_calls(self._caller.tenant, which, page)
        shown = bounded_page(map(translate.waiting_call, calls), page.limit - 1, self._limits.max_response_bytes)
        last = calls[len(shown) - 1] if shown and len(shown) < len(calls) else None
        token = write_token(last.pending_time, last.call.tool_call_id) if last else ""
        return pb.ListPendingToolCallsResponse(calls=shown, next_page_token=token)
