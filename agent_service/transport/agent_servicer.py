"""AgentService: reads a request, asks the agent, writes what it says. No logic of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any

import grpc
import structlog
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import agent_service_pb2_grpc as pb_grpc
from agentrpc.v1 import events_pb2

from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.domain.event import RunStopped
from agent_service.engine.agent import Agent, StepResult
from agent_service.engine.agents import Agents
from agent_service.engine.commands import Built, Delivery, StartCommand, SubmitCommand, View
from agent_service.engine.limits import Limits
from agent_service.engine.runs import Runs
from agent_service.transport import translate
from agent_service.transport.access import current_caller
from agent_service.transport.requests import Reader

Context = grpc.aio.ServicerContext[Any, Any]

RUN_ID_METADATA = "agentrpc-run-id"
"""Initial metadata with the run's id, sent as soon as the run is stored."""

_MESSAGE_OVERHEAD = 1024
"""Room in an answer for what is neither the run nor its messages, in bytes."""


class _Until:
    """Whether the call has told the stop it waited for. A client may leave after that without reading the status."""

    stopped = False


class AgentServicer(pb_grpc.AgentServiceServicer):
    """Adapts AgentService onto agents."""

    def __init__(self, agents: Agents, runs: Runs, limits: Limits) -> None:
        self._agents = agents
        self._runs = runs
        self._limits = limits

    async def BuildRequest(self, request: pb.BuildRequestRequest, context: Context) -> pb.BuildRequestResponse:
        arm = request.WhichOneof("request")
        reader = Reader(self._limits, f"{arm}." if arm else "")
        match arm:
            case "step":
                command: StartCommand | SubmitCommand = self._read_start(reader, request.step)[0]
                agent = await self._agents.get(request.step.agent_id, current_caller())
            case "submit":
                command = self._read_submit(reader, request.submit)[0]
                agent = await self._agents.of_run(request.submit.run_id, current_caller())
            case _:
                reader.problems.add("request", "is not set; set step or submit")
                reader.done()
        built = await agent.build_request(command)
        self._check_shown(built)
        return translate.built(built)

    async def Step(self, request: pb.StepRequest, context: Context) -> pb.StepResponse:
        reader = Reader(self._limits)
        command, view, cancel = self._read_start(reader, request)
        agent = await self._agents.get(request.agent_id, current_caller())
        wait = 0.0 if request.background else reader.seconds("max_wait", request.max_wait, request.HasField("max_wait"))
        reader.done()
        result = await self._step(agent, command, wait, view, cancel, context)
        run = translate.run(await self._runs.get(current_caller().tenant, result.run_id))
        response = pb.StepResponse(run=run)
        self._add_messages(response, result)
        return response

    async def Stream(self, request: pb.StreamRequest, context: Context) -> AsyncGenerator[pb.StreamResponse]:
        reader = Reader(self._limits, "step.")
        reader.refuse_in_stream(request.step, "Step")
        command, view, cancel = self._read_start(reader, request.step)
        agent = await self._agents.get(request.step.agent_id, current_caller())
        async with aclosing(self._events(agent, command, request.stream_tokens, view, cancel, context)) as events:
            async for event in events:
                yield pb.StreamResponse(event=event)

    async def SubmitToolReturns(
        self, request: pb.SubmitToolReturnsRequest, context: Context
    ) -> pb.SubmitToolReturnsResponse:
        reader = Reader(self._limits)
        command, cancel = self._read_submit(reader, request)
        wait = 0.0 if request.background else reader.seconds("max_wait", request.max_wait, request.HasField("max_wait"))
        reader.done()
        agent = await self._agents.of_run(request.run_id, current_caller())
        result = await self._step(agent, command, wait, View(), cancel, context)
        assert result.receipt is not None
        response = pb.SubmitToolReturnsResponse(
            receipt=translate.receipt(result.receipt),
            run=translate.run(await self._runs.get(current_caller().tenant, request.run_id)),
        )
        self._add_messages(response, result)
        return response

    async def StreamToolReturns(
        self, request: pb.StreamToolReturnsRequest, context: Context
    ) -> AsyncGenerator[pb.StreamToolReturnsResponse]:
        reader = Reader(self._limits, "submit.")
        reader.refuse_in_stream(request.submit, "SubmitToolReturns")
        command, cancel = self._read_submit(reader, request.submit)
        agent = await self._agents.of_run(request.submit.run_id, current_caller())
        async with aclosing(self._events(agent, command, request.stream_tokens, View(), cancel, context)) as events:
            async for event in events:
                yield pb.StreamToolReturnsResponse(event=event)

    def _check_shown(self, built: Built) -> None:
        """A model request may be larger than an answer of ours."""
        most = self._limits.max_response_bytes - _MESSAGE_OVERHEAD
        if len(built.body) > most:
            raise AgentServiceError(
                Reason.TOO_LARGE, f"the model request has {len(built.body)} bytes; at most {most} can be shown"
            )

    def _read_start(self, reader: Reader, request: pb.StepRequest) -> tuple[StartCommand, View, bool]:
        command = reader.start(request)
        view = reader.view(request)
        cancel = reader.disconnect(request.on_disconnect)
        reader.done()
        run_id = command.run_id or self._runs.parts.new_id("run")
        return replace(command, run_id=run_id), view, cancel

    def _read_submit(self, reader: Reader, request: pb.SubmitToolReturnsRequest) -> tuple[SubmitCommand, bool]:
        command = reader.submit(request)
        cancel = reader.disconnect(request.on_disconnect)
        reader.done()
        return command, cancel

    async def _step(
        self,
        agent: Agent,
        command: StartCommand | SubmitCommand,
        wait: float | None,
        view: View,
        cancel: bool,
        context: Context,
    ) -> StepResult:
        delivery = Delivery(max_wait=wait, view=view, on_stored=_announce(context))
        with self._cancelling(command.run_id, cancel):
            return await agent.step(command, delivery)

    async def _events(
        self,
        agent: Agent,
        command: StartCommand | SubmitCommand,
        tokens: bool,
        view: View,
        cancel: bool,
        context: Context,
    ) -> AsyncGenerator[events_pb2.RunEvent]:
        delivery = Delivery(stream_tokens=tokens, view=view, on_stored=_announce(context))
        with self._cancelling(command.run_id, cancel) as until:
            async with aclosing(agent.stream(command, delivery)) as events:
                async for event in events:
                    until.stopped = until.stopped or isinstance(event.body, RunStopped)
                    yield translate.event(event)

    @contextmanager
    def _cancelling(self, run_id: str, cancel: bool) -> Iterator[_Until]:
        """Cancels the run if the call ends before the run stopped, where the caller asked for that."""
        until, tenant = _Until(), current_caller().tenant
        try:
            yield until
        except (asyncio.CancelledError, GeneratorExit):
            if cancel and not until.stopped:
                self._runs.cancel_soon(tenant, run_id)
            raise

    def _add_messages(self, response: pb.StepResponse | pb.SubmitToolReturnsResponse, result: StepResult) -> None:
        """The messages that fit beside the run; the newest come first to stay."""
        room = self._limits.max_response_bytes - response.ByteSize() - _MESSAGE_OVERHEAD
        messages, cursor = translate.bounded_messages(result.messages, room)
        response.messages.extend(messages)
        if cursor is not None:
            response.messages_truncated = True
            response.read_after_sequence = cursor


def _announce(context: Context) -> Callable[[str], Awaitable[None]]:
    async def announce(run_id: str) -> None:
        structlog.contextvars.bind_contextvars(run_id=run_id)
        await context.send_initial_metadata(((RUN_ID_METADATA, run_id),))

    return announce
