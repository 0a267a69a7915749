"""RunService: looks at runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc
import structlog
from agentrpc.v1 import run_service_pb2 as pb
from agentrpc.v1 import run_service_pb2_grpc as pb_grpc

from agent_service.engine.commands import Caller
from agent_service.engine.limits import Limits
from agent_service.engine.runs import Runs
from agent_service.engine.view import Viewer
from agent_service.transport import translate
from agent_service.transport.requests import Reader

Context = grpc.aio.ServicerContext[Any, Any]


class RunServicer(pb_grpc.RunServiceServicer):
    """Adapts RunService onto the use cases of runs."""

    def __init__(self, runs: Runs, limits: Limits, caller: Caller) -> None:
        self._runs = runs
        self._limits = limits
        self._caller = caller

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        self._read_id(Reader(self._limits), request.run_id)
        return pb.GetRunResponse(run=translate.run(await self._runs.get(self._caller.tenant, request.run_id)))

    async def WatchRun(self, request: pb.WatchRunRequest, context: Context) -> AsyncGenerator[pb.WatchRunResponse]:
        reader = Reader(self._limits)
        if request.after_sequence < 0:
            reader.problems.add("after_sequence", f"{request.after_sequence} is negative; send 0 for everything")
        if request.stop_at not in pb.StopAt.values():
            reader.problems.add("stop_at", f"{request.stop_at} is not a value of StopAt")
        view = reader.view(request)
        self._read_id(reader, request.run_id)
        tenant = self._caller.tenant
        viewer = Viewer(view, await self._runs.parts.store.get_pinned(tenant, request.run_id))
        events = self._runs.watch(
            tenant,
            request.run_id,
            after=request.after_sequence,
            tokens=request.stream_tokens,
            next_stop=request.stop_at == pb.STOP_AT_NEXT_STOP,
        )
        async with aclosing(events):
            async for event in events:
                shown = viewer.show(event)
                if shown is not None:
                    yield pb.WatchRunResponse(event=translate.event(shown))

    def _read_id(self, reader: Reader, run_id: str) -> None:
        structlog.contextvars.bind_contextvars(run_id=run_id)
        reader.id("run_id", run_id)
        if not run_id:
            reader.problems.add("run_id", "is empty; name a run")
        reader.done()
