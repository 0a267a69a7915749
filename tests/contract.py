"""The methods of the contract, from its descriptors: tests that are for each of them fail for one without a case."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor

from agent_service.transport.server import SERVICES


@dataclass(frozen=True)
class Method:
    """One method of a service."""

    service: str
    name: str
    input: Descriptor
    output: Descriptor
    streams: bool

    @property
    def path(self) -> str:
        """As it is called."""
        return f"/{self.service}/{self.name}"

    def __str__(self) -> str:
        """Its name."""
        return self.name


METHODS = tuple(
    Method(service, each.name, each.input_type, each.output_type, each.server_streaming)
    for service in SERVICES
    for each in descriptor_pool.Default().FindServiceByName(service).methods
)
