"""Some methods of the contract's services, served without the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from agentrpc.v1 import agent_registry_service_pb2, agent_service_pb2, run_service_pb2
from google.protobuf.message_factory import GetMessageClass

_SERVICES = {
    name: module.DESCRIPTOR.services_by_name[name]
    for name, module in (
        ("AgentService", agent_service_pb2),
        ("AgentRegistryService", agent_registry_service_pb2),
        ("RunService", run_service_pb2),
    )
}


def add_methods(server: grpc.aio.Server, service: str, **methods: Callable[..., Any]) -> None:
    """Adds these methods of a service, as its generated code would."""
    handlers = {name: _handler(service, name, method) for name, method in methods.items()}
    full_name = _SERVICES[service].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(full_name, handlers),))


def _handler(service: str, name: str, method: Callable[..., Any]) -> grpc.RpcMethodHandler[Any, Any]:
    described = _SERVICES[service].methods_by_name[name]
    make = grpc.unary_stream_rpc_method_handler if described.server_streaming else grpc.unary_unary_rpc_method_handler
    return make(
        method,
        request_deserializer=GetMessageClass(described.input_type).FromString,
        response_serializer=GetMessageClass(described.output_type).SerializeToString,
    )
