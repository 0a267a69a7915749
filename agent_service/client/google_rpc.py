"""The messages of google.rpc that tell more of an error, as far as the service sends them.

Declared here, so that the client needs no package for four small messages. They are in a pool of their own, where those
of googleapis-common-protos do not collide with them.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_Type = FieldDescriptorProto
_STRING, _BYTES, _INT32, _INT64 = _Type.TYPE_STRING, _Type.TYPE_BYTES, _Type.TYPE_INT32, _Type.TYPE_INT64


def _message(name: str, *fields: tuple[int, str, Any]) -> DescriptorProto:
    """A message; a type is a scalar or the name of a message, in a list if the field is repeated."""
    made = DescriptorProto(name=name)
    for number, field, kind in fields:
        repeated = isinstance(kind, list)
        of = kind[0] if repeated else kind
        label = _Type.LABEL_REPEATED if repeated else _Type.LABEL_OPTIONAL
        if isinstance(of, str):
            made.field.add(
                number=number, name=field, type=_Type.TYPE_MESSAGE, type_name=f".google.rpc.{of}", label=label
            )
        else:
            made.field.add(number=number, name=field, type=of, label=label)
    return made


_FILE = FileDescriptorProto(name="agent_service/google_rpc.proto", package="google.rpc", syntax="proto3")
_FILE.message_type.extend(
    [
        # As google.protobuf.Any, Duration and the entry of a map are written.
        _message("Packed", (1, "type_url", _STRING), (2, "value", _BYTES)),
        _message("Delay", (1, "seconds", _INT64), (2, "nanos", _INT32)),
        _message("Entry", (1, "key", _STRING), (2, "value", _STRING)),
        _message("Status", (1, "code", _INT32), (2, "message", _STRING), (3, "details", ["Packed"])),
        _message("ErrorInfo", (1, "reason", _STRING), (2, "domain", _STRING), (3, "metadata", ["Entry"])),
        _message("RetryInfo", (1, "retry_delay", "Delay")),
        _message("FieldViolation", (1, "field", _STRING), (2, "description", _STRING)),
        _message("BadRequest", (1, "field_violations", ["FieldViolation"])),
    ]
)
_POOL = DescriptorPool()
_POOL.Add(_FILE)


def parsed(name: str, data: bytes) -> Any:
    """A message of this package."""
    return GetMessageClass(_POOL.FindMessageTypeByName(f"google.rpc.{name}")).FromString(data)


def details(status: bytes) -> dict[str, Any]:
    """The details of a google.rpc.Status by the name of their message; those that are not known are left out."""
    known = {f"google.rpc.{name}": name for name in ("ErrorInfo", "RetryInfo", "BadRequest")}
    packed = (
        (known.get(detail.type_url.rpartition("/")[2]), detail.value) for detail in parsed("Status", status).details
    )
    return {name: parsed(name, value) for name, value in packed if name is not None}
