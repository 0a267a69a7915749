"""The gRPC server: services, health, reflection, connection settings, and a clean stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import grpc
from agentrpc.v1 import (
    agent_registry_service_pb2,
    agent_registry_service_pb2_grpc,
    agent_service_pb2,
    agent_service_pb2_grpc,
    inbox_service_pb2,
    inbox_service_pb2_grpc,
    run_service_pb2,
    run_service_pb2_grpc,
    server_service_pb2,
    server_service_pb2_grpc,
)
from google.rpc import error_details_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from agent_service.engine.agents import Agents
from agent_service.engine.inbox import Inbox
from agent_service.engine.limits import MIB, Limits
from agent_service.engine.registry import Registry
from agent_service.engine.runs import Runs
from agent_service.transport.access import Access
from agent_service.transport.agent_servicer import AgentServicer
from agent_service.transport.binding import bind
from agent_service.transport.descriptors import ShippedDescriptors
from agent_service.transport.inbox_servicer import InboxServicer
from agent_service.transport.interceptors import Guard
from agent_service.transport.registry_servicer import AgentRegistryServicer
from agent_service.transport.run_servicer import RunServicer
from agent_service.transport.server_servicer import ServerServicer
from agent_service.transport.tls import TlsFiles

SERVICES: tuple[str, ...] = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (agent_service_pb2, "AgentService"),
        (run_service_pb2, "RunService"),
        (inbox_service_pb2, "InboxService"),
        (agent_registry_service_pb2, "AgentRegistryService"),
        (server_service_pb2, "ServerService"),
    )
)
"""Full names of the services of the contract."""

_LAST_WORDS_SECONDS = 0.2
_REFLECTION = ("grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection")


class Server:
    """A server that is not started yet. `port` is the real one, also when port 0 was asked for; see `bind`. With
    `share_port` other processes may listen on it, too. Without `access` everybody who can connect is let in. A
    connection older than `max_connection_age_seconds` takes no new calls; 0 means that none is too old."""

    def __init__(
        self,
        address: str,
        *,
        agents: Agents,
        registry: Registry,
        runs: Runs,
        inbox: Inbox,
        limits: Limits,
        access: Access | None = None,
        tls: TlsFiles | None = None,
        socket_mode: int = 0o600,
        reflect: bool = True,
        share_port: bool = False,
        stall_seconds: float = 60.0,
        max_connection_age_seconds: float = 0.0,
    ) -> None:
        self._guard = Guard(limits.max_request_bytes, stall_seconds, access, runs.parts.telemetry)
        self._server = grpc.aio.server(
            interceptors=[self._guard],
            options=[*_options(limits, share_port), *_connection_age(max_connection_age_seconds)],
        )
        self._health = health.aio.HealthServicer()
        self._add_services(agents, registry, runs, inbox, limits)
        if reflect:
            self._add_reflection()
        self.port = bind(self._server, address, tls, socket_mode)

    async def start(self) -> None:
        """Serves from now on; health says SERVING."""
        await self._server.start()
        for name in ("", *SERVICES):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, shut_down: Callable[[], Any], grace: float) -> None:
        """Health turns NOT_SERVING, runs are ended by `shut_down`, then calls get `grace` seconds to end."""
        await self._health.enter_graceful_shutdown()
        await shut_down()
        await self._guard.idle(grace)
        # What is left is open on purpose, such as watches of health; the last words of the others are on their way.
        await self._server.stop(_LAST_WORDS_SECONDS)

    def _add_services(self, agents: Agents, registry: Registry, runs: Runs, inbox: Inbox, limits: Limits) -> None:
        agent_service_pb2_grpc.add_AgentServiceServicer_to_server(AgentServicer(agents, runs, limits), self._server)
        run_service_pb2_grpc.add_RunServiceServicer_to_server(RunServicer(runs, limits), self._server)
        agent_registry_service_pb2_grpc.add_AgentRegistryServiceServicer_to_server(
            AgentRegistryServicer(agents, registry, runs, limits), self._server
        )
        server_service_pb2_grpc.add_ServerServiceServicer_to_server(
            ServerServicer(agents, limits, runs.parts.store.name), self._server
        )
        inbox_service_pb2_grpc.add_InboxServiceServicer_to_server(
            InboxServicer(inbox, runs.parts.store, limits), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def _add_reflection(self) -> None:
        """Reflection under both of its names (the messages are the same on the wire). The error details are in the
        default descriptor pool because they are imported, so that tools can show them."""
        assert error_details_pb2.DESCRIPTOR.pool is not None
        servicer = reflection.aio.ReflectionServicer(
            service_names=(*SERVICES, health.SERVICE_NAME, *_REFLECTION), pool=ShippedDescriptors()
        )
        for name in _REFLECTION:
            handler = grpc.stream_stream_rpc_method_handler(
                servicer.ServerReflectionInfo,
                request_deserializer=reflection._reflection_pb2.ServerReflectionRequest.FromString,
                response_serializer=reflection._reflection_pb2.ServerReflectionResponse.SerializeToString,
            )
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}),)
            )


def _options(limits: Limits, share_port: bool) -> list[tuple[str, Any]]:
    """Connection settings. Messages somewhat above the limit are let in, so that our own error can name it."""
    return [
        ("grpc.so_reuseport", int(share_port)),
        ("grpc.max_receive_message_length", limits.max_request_bytes + 4 * MIB),
        ("grpc.max_send_message_length", limits.max_response_bytes + 4 * MIB),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
        ("grpc.http2.max_ping_strikes", 0),
    ]


def _connection_age(seconds: float) -> list[tuple[str, Any]]:
    """None for 0. Without a grace of its own, which is not set here, gRPC waits for open streams without end."""
    return [("grpc.max_connection_age_ms", math.ceil(seconds * 1000))] if seconds else []
