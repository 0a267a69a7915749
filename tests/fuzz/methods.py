"""Every RPC of the contract, from its descriptors: a new one is covered by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message

from agent_service.transport.server import SERVICES


@dataclass(frozen=True)
class Method:
    """One RPC. `path` is as gRPC names it."""

    path: str
    request: type[Message]
    response: type[Message]
    streams: bool

    @property
    def name(self) -> str:
        """Without its service."""
        return self.path.rpartition("/")[2]

    @property
    def full_name(self) -> str:
        """As grpcurl takes it."""
        return self.path.removeprefix("/")


def methods() -> tuple[Method, ...]:
    """All of them, in the order of the contract."""
    found = []
    for service in SERVICES:
        described: Any = descriptor_pool.Default().FindServiceByName(service)
        found += [
            Method(
                f"/{service}/{method.name}",
                message_factory.GetMessageClass(method.input_type),
                message_factory.GetMessageClass(method.output_type),
                method.server_streaming,
            )
            for method in described.methods
        ]
    return tuple(found)
