"""What reflection tells of the contract: the descriptors that ship with the generated code, with comments.

The descriptor pool of the generated code has lost comments and JSON names. Without the names, tools that ask by
reflection print field names in another form than tools that read the contract.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet


class ShippedDescriptors:
    """Stands in for a descriptor pool where reflection looks things up. What is not shipped comes from the pool."""

    def __init__(self) -> None:
        shipped = FileDescriptorSet.FromString((files("agentrpc.v1") / "agentrpc.binpb").read_bytes())
        self._shipped = {file.name: file for file in shipped.file}
        self._pool: Any = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileByName(self, name: str) -> _File:  # noqa: N802 - called by this name
        """Raises KeyError for what is not known."""
        return _File(self._pool.FindFileByName(name), self._shipped)

    def FindFileContainingSymbol(self, symbol: str) -> _File:  # noqa: N802 - called by this name
        """Also for the name of a method, which tools ask for and the pool does not find. Raises KeyError."""
        try:
            file = self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            file = self._pool.FindMethodByName(symbol).containing_service.file
        return _File(file, self._shipped)


@dataclass(frozen=True, slots=True)
class _File:
    """As much of a FileDescriptor as reflection reads."""

    _file: FileDescriptor
    _shipped: dict[str, FileDescriptorProto]

    @property
    def name(self) -> str:
        return self._file.name

    @property
    def dependencies(self) -> list[_File]:
        return [_File(file, self._shipped) for file in self._file.dependencies]

    def CopyToProto(self, proto: FileDescriptorProto) -> None:  # noqa: N802 - called by this name
        if self.name in self._shipped:
            proto.CopyFrom(self._shipped[self.name])
        else:
            self._file.CopyToProto(proto)
