"""The service against its contract: every RPC is served as declared, every value of an enum is known on both sides, and
a stranger with reflection alone finds everything."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from agentrpc.v1 import (
    agent_registry_service_pb2,
    agent_registry_service_pb2_grpc,
    agent_service_pb2,
    agent_service_pb2_grpc,
    agents_pb2,
    content_pb2,
    errors_pb2,
    events_pb2,
    inbox_service_pb2,
    inbox_service_pb2_grpc,
    messages_pb2,
    run_service_pb2,
    run_service_pb2_grpc,
    runs_pb2,
    server_service_pb2,
    server_service_pb2_grpc,
    sort_order_pb2,
    tools_pb2,
)
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import EnumDescriptor, MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from agent_service.domain.content import ImageDetail
from agent_service.domain.errors import Reason
from agent_service.domain.event import DURABLE_TYPES, RunCause
from agent_service.domain.message import MessageType
from agent_service.domain.policy import Strategy
from agent_service.domain.run import AgentKind, RunStatus, StopReason
from agent_service.domain.start import OnBusy
from agent_service.domain.tool import OnTimeout, Outcome, PendingKind, ToolChoiceMode
from agent_service.engine.limits import Limits
from agent_service.transport import server
from agent_service.transport.agent_servicer import AgentServicer
from agent_service.transport.inbox_servicer import InboxServicer
from agent_service.transport.registry_servicer import AgentRegistryServicer
from agent_service.transport.run_servicer import RunServicer
from agent_service.transport.server_servicer import ServerServicer
from agent_service.transport.status import CODES
from tests.service import Client, scripted

pytestmark = pytest.mark.anyio

PACKAGE = "agentrpc.v1"
MODULES: tuple[Any, ...] = (
    agent_registry_service_pb2,
    agent_service_pb2,
    agents_pb2,
    content_pb2,
    errors_pb2,
    events_pb2,
    inbox_service_pb2,
    sort_order_pb2,
    messages_pb2,
    run_service_pb2,
    runs_pb2,
    server_service_pb2,
    tools_pb2,
)
SERVICERS: dict[str, tuple[type, type]] = {
    "AgentService": (AgentServicer, agent_service_pb2_grpc.AgentServiceServicer),
    "RunService": (RunServicer, run_service_pb2_grpc.RunServiceServicer),
    "AgentRegistryService": (AgentRegistryServicer, agent_registry_service_pb2_grpc.AgentRegistryServiceServicer),
    "InboxService": (InboxServicer, inbox_service_pb2_grpc.InboxServiceServicer),
    "ServerService": (ServerServicer, server_service_pb2_grpc.ServerServiceServicer),
}
SERVICES = [service for module in MODULES for service in module.DESCRIPTOR.services_by_name.values()]
METHODS = [method for service in SERVICES for method in service.methods]
ENUMS = {enum.name: enum for module in MODULES for enum in module.DESCRIPTOR.enum_types_by_name.values()}


def values(enum: EnumDescriptor) -> set[str]:
    """The names of an enum's values without prefix, in lower case, but for UNSPECIFIED."""
    names = [value.name for value in enum.values if value.number != 0]
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    assert all(name.startswith(prefix) for name in names)
    return {name.removeprefix(prefix).lower() for name in names}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_every_rpc_has_a_handler_of_its_kind(method: MethodDescriptor) -> None:
    """A coroutine for one answer, an async generator for a stream; not that of its generated base."""
    servicer, base = SERVICERS[method.containing_service.name]
    handler = getattr(servicer, method.name)
    assert handler is not getattr(base, method.name)
    assert not method.client_streaming
    is_right = inspect.isasyncgenfunction if method.server_streaming else inspect.iscoroutinefunction
    assert is_right(handler)
    assert list(inspect.signature(handler).parameters) == ["self", "request", "context"]


def test_every_service_has_a_servicer_that_is_registered() -> None:
    """The services of the contract, the servicers and what the server says it serves are the same."""
    assert {service.name for service in SERVICES} == set(SERVICERS)
    assert {service.full_name for service in SERVICES} == set(server.SERVICES)
    assert all(issubclass(servicer, base) for servicer, base in SERVICERS.values())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_every_rpc_has_messages_of_its_own(method: MethodDescriptor) -> None:
    """XxxRequest and XxxResponse, so that each can grow alone."""
    assert method.input_type.name == f"{method.name}Request"
    assert method.output_type.name == f"{method.name}Response"


TWINS: dict[str, Any] = {
    "AgentKind": AgentKind,
    "RunStatus": RunStatus,
    "StopReason": StopReason,
    "RunCause": RunCause,
    "MessageType": MessageType,
    "ErrorReason": Reason,
    "ToolCallOutcome": Outcome,
    "PendingKind": PendingKind,
    "ToolChoiceMode": ToolChoiceMode,
    "OnTimeout": OnTimeout,
    "OnBusy": OnBusy,
    "ImageDetail": ImageDetail,
    "CompactionStrategy": Strategy,
}
ONLY_IN_REQUESTS = {
    "OnDisconnect": {"continue", "cancel"},
    "StopAt": {"final", "next_stop"},
    "Role": {"user", "system"},
    "ToolReturnStatus": {"success", "error"},
    "SortOrder": {"ascending", "descending"},
}


@pytest.mark.parametrize("name", TWINS)
def test_every_value_of_an_enum_has_its_twin(name: str) -> None:
    """What the domain can say the contract can carry, and the other way round."""
    assert values(ENUMS[name]) == {member.value.lower() for member in TWINS[name]}


def test_every_enum_is_looked_at() -> None:
    """A new enum joins the twins, or the few that need none, and those are known value by value."""
    assert set(ENUMS) == set(TWINS) | set(ONLY_IN_REQUESTS)
    assert {name: values(ENUMS[name]) for name in ONLY_IN_REQUESTS} == ONLY_IN_REQUESTS


def test_every_kind_of_message_and_event_has_its_arm() -> None:
    """The oneofs of Message and RunEvent hold what the domain has, durable or not."""
    message = messages_pb2.Message.DESCRIPTOR.oneofs_by_name["content"]
    assert {arm.name for arm in message.fields} == {kind.value for kind in MessageType}
    event = events_pb2.RunEvent.DESCRIPTOR.oneofs_by_name["payload"]
    passing = {"text_delta", "reasoning_delta", "tool_call_arguments_delta", "tool_call_progress", "heartbeat", "live"}
    assert {arm.name for arm in event.fields} == set(DURABLE_TYPES) | passing
    assert min(arm.number for arm in event.fields) == 10


def test_every_reason_for_a_refusal_has_a_code() -> None:
    """A reason is either for refused calls, and then has one gRPC code, or for failed runs."""
    numbers = {reason: errors_pb2.ErrorReason.Value(f"ERROR_REASON_{reason.value}") for reason in Reason}
    runs = {reason for reason, number in numbers.items() if 40 <= number < 60}
    assert set(CODES) == set(Reason) - runs
    assert not {grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN} & set(CODES.values())


def test_every_shown_limit_is_one() -> None:
    """GetServerInfo's limits are fields of the limits in force."""
    assert {f.name for f in server_service_pb2.Limits.DESCRIPTOR.fields} <= set(Limits.__dataclass_fields__)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """A running service."""
    async with scripted([], "memory") as (client, _):
        yield client


@pytest.mark.parametrize("name", ["", *server.SERVICES])
async def test_health_is_told_of_the_whole_and_of_each_service(client: Client, name: str) -> None:
    """Check and Watch say SERVING."""
    stub = health_pb2_grpc.HealthStub(client.channel)
    request = health_pb2.HealthCheckRequest(service=name)
    assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
    watch = stub.Watch(request)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


async def test_the_health_of_a_stranger_is_unknown(client: Client) -> None:
    """NOT_FOUND, as the health protocol asks for."""
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await health_pb2_grpc.HealthStub(client.channel).Check(health_pb2.HealthCheckRequest(service="no.Such"))
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
class TestReflection:
    """Under either name of the reflection service."""

    async def ask(self, client: Client, version: str, **question: Any) -> Any:
        """The answer to one question."""
        method: Any = client.channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        (answer,) = [answer async for answer in method(iter([reflection_pb2.ServerReflectionRequest(**question)]))]
        return answer

    async def test_all_services_are_listed(self, client: Client, version: str) -> None:
        """Ours, health and reflection itself."""
        answer = await self.ask(client, version, list_services="")
        listed = {service.name for service in answer.list_services_response.service}
        others = {f"grpc.reflection.{name}.ServerReflection" for name in ("v1", "v1alpha")}
        assert listed == {*server.SERVICES, "grpc.health.v1.Health", *others}

    @pytest.mark.parametrize(
        "symbol",
        [
            *server.SERVICES,
            f"{PACKAGE}.RunEvent",
            "grpc.health.v1.Health",
            "google.rpc.ErrorInfo",
            "google.rpc.BadRequest",
            "google.rpc.PreconditionFailure",
            "google.rpc.RetryInfo",
        ],
    )
    async def test_what_is_needed_can_be_found_by_name(self, client: Client, version: str, symbol: str) -> None:
        """Services, and the messages that only travel in Any: the error details."""
        answer = await self.ask(client, version, file_containing_symbol=symbol)
        assert answer.WhichOneof("message_response") == "file_descriptor_response", answer
        found = answer.file_descriptor_response.file_descriptor_proto
        files = [descriptor_pb2.FileDescriptorProto.FromString(data) for data in found]
        names = {f"{f.package}.{message.name}" for f in files for message in f.message_type}
        names |= {f"{f.package}.{service.name}" for f in files for service in f.service}
        assert symbol in names


async def test_reflection_can_be_turned_off() -> None:
    """With the setting off there is no such service."""
    async with scripted([], "memory", reflection=False) as (client, _):
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await TestReflection().ask(client, "v1", list_services="")
        assert missing.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_clients_may_ping_every_half_minute() -> None:
    """Keepalive pings of 30 s are not punished with GOAWAY, with calls or without; the server pings by itself, too, and
    lets no other process share its port."""
    options = dict(server._options(Limits(), False))
    assert options["grpc.http2.min_ping_interval_without_data_ms"] <= 30_000
    assert options["grpc.http2.max_ping_strikes"] == 0
    assert options["grpc.keepalive_permit_without_calls"] == 1
    assert 10_000 <= options["grpc.keepalive_time_ms"] <= 120_000
    assert options["grpc.so_reuseport"] == 0
    assert options["grpc.max_receive_message_length"] > Limits().max_request_bytes


async def test_an_unknown_method_is_unimplemented(client: Client) -> None:
    """A client of a newer contract is told so, not disconnected."""
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        method: Any = client.channel.unary_unary(f"/{PACKAGE}.AgentService/NoSuchMethod")
        await method(b"")
    assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED
