"""RunService: looks at runs and ends them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc
import structlog
from agentrpc.v1 import run_service_pb2 as pb
from agentrpc.v1 import run_service_pb2_grpc as pb_grpc
from agentrpc.v1 import runs_pb2

from agent_service.domain.registry import RunFilter
from agent_service.domain.run import RunStatus
from agent_service.engine.limits import Limits
from agent_service.engine.runs import Runs
from agent_service.engine.view import Viewer
from agent_service.transport import translate
from agent_service.transport.access import current_caller
from agent_service.transport.paging import bounded_page, read_page, write_token
from agent_service.transport.requests import Reader

Context = grpc.aio.ServicerContext[Any, Any]


class RunServicer(pb_grpc.RunServiceServicer):
    """Adapts RunService onto the use cases of runs."""

    def __init__(self, runs: Runs, limits: Limits) -> None:
        self._runs = runs
        self._limits = limits

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        self._read_id(Reader(self._limits), request.run_id)
        return pb.GetRunResponse(run=translate.run(await self._runs.get(current_caller().tenant, request.run_id)))

    async def WatchRun(self, request: pb.WatchRunRequest, context: Context) -> AsyncGenerator[pb.WatchRunResponse]:
        reader = Reader(self._limits)
        if request.after_sequence < 0:
            reader.problems.add("after_sequence", f"{request.after_sequence} is negative; send 0 for everything")
        if request.stop_at not in pb.StopAt.values():
            reader.problems.add("stop_at", f"{request.stop_at} is not a value of StopAt")
        view = reader.view(request)
        self._read_id(reader, request.run_id)
        tenant = current_caller().tenant
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

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        reader = Reader(self._limits)
        statuses = () if reader.too_many("statuses", len(request.statuses)) else request.statuses
        which = RunFilter(
            statuses=frozenset(_status(reader, i, number) for i, number in enumerate(statuses)),
            agent_id=reader.id("agent_id", request.agent_id),
            conversation_id=reader.id("conversation_id", request.conversation_id),
            labels=tuple(sorted(reader.labels(request.labels).items())),
            parent_run_id=reader.id("parent_run_id", request.parent_run_id),
            create_from=reader.time("create_time_from", request.create_time_from, request.HasField("create_time_from")),
            create_before=reader.time(
                "create_time_before", request.create_time_before, request.HasField("create_time_before")
            ),
        )
        descending = reader.order(request.order, descending=True)
        page = read_page(
            reader.problems, self._limits, "runs", request.page_size, request.page_token, descending=descending
        )
        reader.done()
        runs = await self._runs.parts.store.list_runs(current_caller().tenant, which, page)
        shown = bounded_page(map(translate.run, runs), page.limit - 1, self._limits.max_response_bytes)
        last = runs[len(shown) - 1].run if shown and len(shown) < len(runs) else None
        token = write_token("runs", last.create_time, last.run_id) if last else ""
        return pb.ListRunsResponse(runs=shown, next_page_token=token)

    async def RetryRun(self, request: pb.RetryRunRequest, context: Context) -> pb.RetryRunResponse:
        reader = Reader(self._limits)
        request_id = reader.id("request_id", request.request_id)
        self._read_id(reader, request.run_id)
        snapshot = await self._runs.retry(current_caller().tenant, request.run_id, request_id)
        return pb.RetryRunResponse(run=translate.run(snapshot))

    async def CancelRun(self, request: pb.CancelRunRequest, context: Context) -> pb.CancelRunResponse:
        self._read_id(Reader(self._limits), request.run_id)
        return pb.CancelRunResponse(run=translate.run(await self._runs.cancel(current_caller().tenant, request.run_id)))

    async def DeleteRun(self, request: pb.DeleteRunRequest, context: Context) -> pb.DeleteRunResponse:
        self._read_id(Reader(self._limits), request.run_id)
        await self._runs.parts.store.delete_run(current_caller().tenant, request.run_id)
        return pb.DeleteRunResponse()

    def _read_id(self, reader: Reader, run_id: str) -> None:
        structlog.contextvars.bind_contextvars(run_id=run_id)
        reader.required_id("run_id", run_id, "a run")
        reader.done()


def _status(reader: Reader, index: int, number: int) -> RunStatus:
    if number == runs_pb2.RUN_STATUS_UNSPECIFIED or number not in runs_pb2.RunStatus.values():
        reader.problems.add(f"statuses[{index}]", f"{number} is not a status of a run")
        return RunStatus.QUEUED
    name = runs_pb2.RunStatus.Name(number)  # type: ignore[arg-type]  # checked just above
    return RunStatus(name.removeprefix("RUN_STATUS_").lower())
