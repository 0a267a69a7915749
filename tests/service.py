"""A real service in the test's event loop: a real gRPC port, a real store, a scripted model endpoint over real HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from agentrpc.v1 import (
    agent_registry_service_pb2,
    agent_registry_service_pb2_grpc,
    agent_service_pb2,
    agent_service_pb2_grpc,
    agents_pb2,
    inbox_service_pb2,
    inbox_service_pb2_grpc,
    messages_pb2,
    run_service_pb2,
    run_service_pb2_grpc,
    runs_pb2,
    server_service_pb2_grpc,
    tools_pb2,
)
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from agent_service import wiring
from agent_service.engine.model import ToolMode
from agent_service.engine.telemetry import NO_TELEMETRY
from agent_service.settings import load_settings
from tests.scripted_openai import Rules, ScriptedOpenAI

if TYPE_CHECKING:
    from agentrpc.v1.agent_registry_service_pb2_grpc import AgentRegistryServiceAsyncStub
    from agentrpc.v1.agent_service_pb2_grpc import AgentServiceAsyncStub
    from agentrpc.v1.inbox_service_pb2_grpc import InboxServiceAsyncStub
    from agentrpc.v1.run_service_pb2_grpc import RunServiceAsyncStub
    from agentrpc.v1.server_service_pb2_grpc import ServerServiceAsyncStub

SECRET = tools_pb2.ClientToolSchema(
    name="get_secret_code",
    description="Returns the secret code of a person.",
    parameters_json='{"type":"object","properties":{"name":{"type":"string"}},"required":["name"]}',
)
"""The client tool of most tests."""

_LOOPBACK = [("grpc.enable_http_proxy", 0)]


@dataclass(frozen=True)
class Client:
    """The stubs of a running service at `target`."""

    target: str
    channel: grpc.aio.Channel
    agent: AgentServiceAsyncStub
    runs: RunServiceAsyncStub
    registry: AgentRegistryServiceAsyncStub
    server: ServerServiceAsyncStub
    inbox: InboxServiceAsyncStub

    async def ask(self, text: str, *tools: tools_pb2.ClientToolSchema, **fields: Any) -> agent_service_pb2.StepResponse:
        """A Step with one user message."""
        return await self.agent.Step(step(text, *tools, **fields))

    async def answer(self, run_id: str, *returns: tools_pb2.ToolReturn, **fields: Any) -> Any:
        """A SubmitToolReturns."""
        return await self.agent.SubmitToolReturns(submit(run_id, *returns, **fields))

    async def run(self, run_id: str) -> runs_pb2.Run:
        """GetRun."""
        return (await self.runs.GetRun(run_service_pb2.GetRunRequest(run_id=run_id))).run

    async def messages(self, conversation_id: str) -> list[messages_pb2.Message]:
        """ListMessages, all of them."""
        request = agent_registry_service_pb2.ListMessagesRequest(conversation_id=conversation_id, page_size=1000)
        return list((await self.registry.ListMessages(request)).messages)

    async def cancel(self, run_id: str) -> runs_pb2.Run:
        """CancelRun."""
        return (await self.runs.CancelRun(run_service_pb2.CancelRunRequest(run_id=run_id))).run

    async def retry(self, run_id: str, request_id: str = "") -> runs_pb2.Run:
        """RetryRun."""
        request = run_service_pb2.RetryRunRequest(run_id=run_id, request_id=request_id)
        return (await self.runs.RetryRun(request)).run

    async def delete(self, run_id: str) -> None:
        """DeleteRun."""
        await self.runs.DeleteRun(run_service_pb2.DeleteRunRequest(run_id=run_id))

    async def list_runs(self, **fields: Any) -> run_service_pb2.ListRunsResponse:
        """One page of ListRuns."""
        return await self.runs.ListRuns(run_service_pb2.ListRunsRequest(**fields))

    async def waiting(self, **fields: Any) -> inbox_service_pb2.ListPendingToolCallsResponse:
        """One page of ListPendingToolCalls."""
        return await self.inbox.ListPendingToolCalls(inbox_service_pb2.ListPendingToolCallsRequest(**fields))

    async def create_agent(self, agent_id: str, **fields: Any) -> agents_pb2.Agent:
        """CreateAgent."""
        agent = agents_pb2.Agent(agent_id=agent_id, **fields)
        return (await self.registry.CreateAgent(agent_registry_service_pb2.CreateAgentRequest(agent=agent))).agent

    async def get_agent(self, agent_id: str) -> agents_pb2.Agent:
        """GetAgent."""
        return (await self.registry.GetAgent(agent_registry_service_pb2.GetAgentRequest(agent_id=agent_id))).agent

    async def get_conversation(self, conversation_id: str) -> agents_pb2.Conversation:
        """GetConversation."""
        request = agent_registry_service_pb2.GetConversationRequest(conversation_id=conversation_id)
        return (await self.registry.GetConversation(request)).conversation

    def watching(self, run_id: str, after: int = 0, **fields: Any) -> Any:
        """A WatchRun to read from."""
        return self.runs.WatchRun(run_service_pb2.WatchRunRequest(run_id=run_id, after_sequence=after, **fields))

    async def watch(self, run_id: str, after: int = 0, **fields: Any) -> list[Any]:
        """The events of a WatchRun that ends by itself."""
        request = run_service_pb2.WatchRunRequest(run_id=run_id, after_sequence=after, **fields)
        return [response.event async for response in self.runs.WatchRun(request)]


def step(text: str, *tools: tools_pb2.ClientToolSchema, **fields: Any) -> agent_service_pb2.StepRequest:
    """A StepRequest with one user message."""
    return agent_service_pb2.StepRequest(
        input_messages=[messages_pb2.InputMessage(text=text)], client_tools=tools, **fields
    )


def submit(run_id: str, *returns: tools_pb2.ToolReturn, **fields: Any) -> agent_service_pb2.SubmitToolReturnsRequest:
    """A SubmitToolReturnsRequest."""
    return agent_service_pb2.SubmitToolReturnsRequest(run_id=run_id, tool_returns=returns, **fields)


def returned(call: Any, text: str, **fields: Any) -> tools_pb2.ToolReturn:
    """A return for a pending call (or its id)."""
    return tools_pb2.ToolReturn(tool_call_id=getattr(call, "tool_call_id", call), text=text, **fields)


def kinds(messages: Iterable[messages_pb2.Message]) -> list[str]:
    """The kinds of messages, in order."""
    return [str(message.WhichOneof("content")) for message in messages]


def event_kinds(events: Iterable[Any]) -> list[str]:
    """The kinds of events, in order."""
    return [str(event.WhichOneof("payload")) for event in events]


def durable(events: Iterable[Any]) -> list[bytes]:
    """The durable events among these, as bytes."""
    passing = ("text_delta", "reasoning_delta", "tool_call_arguments_delta", "tool_call_progress", "heartbeat", "live")
    return [e.SerializeToString(deterministic=True) for e in events if e.WhichOneof("payload") not in passing]


@dataclass(frozen=True)
class Refusal:
    """What a client sees of an error."""

    code: str
    message: str
    reason: str
    metadata: dict[str, str]
    fields: tuple[str, ...]
    retry_seconds: float | None


async def refusal(call: Any) -> Refusal:
    """The error that a call ends with; fails if it does not."""
    try:
        if hasattr(call, "__aiter__"):
            received = [response async for response in call]
        else:
            received = await call
    except grpc.aio.AioRpcError as error:
        return refusal_of(error)
    raise AssertionError(f"not refused, but answered with {received}")


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    """What the error tells a client."""
    info, request, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), None
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        detail.Unpack(info)
        detail.Unpack(request)
        wait = error_details_pb2.RetryInfo()
        if detail.Unpack(wait):
            retry = wait.retry_delay.ToNanoseconds() / 1e9
    return Refusal(
        code=error.code().name,
        message=error.details() or "",
        reason=info.reason.removeprefix("ERROR_REASON_"),
        metadata=dict(info.metadata),
        fields=tuple(violation.field for violation in request.field_violations),
        retry_seconds=retry,
    )


def bearing(token: str) -> list[grpc.aio.ClientInterceptor]:
    """What adds a credential to each call."""

    async def add(_: Any, continuation: Any, details: Any, request: Any) -> Any:
        metadata = grpc.aio.Metadata(*(details.metadata or ()), ("authorization", f"Bearer {token}"))
        return await continuation(details._replace(metadata=metadata), request)

    # gRPC takes an object for one kind of calls only.
    unary = type("Unary", (grpc.aio.UnaryUnaryClientInterceptor,), {"intercept_unary_unary": add})
    stream = type("Stream", (grpc.aio.UnaryStreamClientInterceptor,), {"intercept_unary_stream": add})
    return [unary(), stream()]


@asynccontextmanager
async def connected(
    target: str,
    options: Sequence[tuple[str, int]] = (),
    *,
    token: str = "",
    credentials: grpc.ChannelCredentials | None = None,
) -> AsyncIterator[Client]:
    """A client of a service that runs anywhere on this host; with `credentials` over TLS."""
    more: dict[str, Any] = {"options": [*_LOOPBACK, *options], "interceptors": bearing(token) if token else None}
    async with (
        grpc.aio.secure_channel(target, credentials, **more)
        if credentials
        else grpc.aio.insecure_channel(target, **more)
    ) as channel:
        yield Client(
            target,
            channel,
            agent_service_pb2_grpc.AgentServiceStub(channel),
            run_service_pb2_grpc.RunServiceStub(channel),
            agent_registry_service_pb2_grpc.AgentRegistryServiceStub(channel),
            server_service_pb2_grpc.ServerServiceStub(channel),
            inbox_service_pb2_grpc.InboxServiceStub(channel),
        )


@asynccontextmanager
async def serving(upstream: ScriptedOpenAI, store: str, **settings: Any) -> AsyncIterator[Client]:
    """A service on this store and model endpoint, and its client. It does not retry model requests unless told so.
    `telemetry`, which is no setting, is told what it does.
    """
    telemetry = settings.pop("telemetry", NO_TELEMETRY)
    chosen = {"model_max_retries": 0, "grace_seconds": 0.0, "port": 0, **settings}
    configured = load_settings(store=store, openai_base_url=upstream.base_url, model="scripted-model", **chosen)
    async with (
        wiring.model_endpoint(configured, telemetry) as endpoint,
        wiring.service(configured, endpoint, telemetry=telemetry) as server,
        connected(f"127.0.0.1:{server.port}") as client,
    ):
        yield client


@asynccontextmanager
async def scripted(script: Any, store: str, **settings: Any) -> AsyncIterator[tuple[Client, ScriptedOpenAI]]:
    """A scripted model endpoint, and a service on it. On leaving, no request may have been refused as malformed."""
    rules = Rules(any_schema=settings.get("tool_mode") == ToolMode.JSON_SCHEMA)
    async with ScriptedOpenAI(script, rules=rules) as upstream, serving(upstream, store, **settings) as client:
        yield client, upstream


def canonical(text: str | bytes) -> str:
    """JSON text in one form."""
    return json.dumps(json.loads(text), sort_keys=True)
