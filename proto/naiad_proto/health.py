"""Messages of gRPC's health service, kept apart from every other package that has them.

Owns the descriptors of health.proto in a pool of its own: packages such as grpcio-health-checking
put the same names into protobuf's default pool, where a second definition fails at import.
Knows nothing of servers; register CHECK_METHOD and WATCH_METHOD as generic method handlers.
"""

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    MethodDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

_PACKAGE: Final = "grpc.health.v1"

SERVICE_NAME: Final = f"{_PACKAGE}.Health"
"""Full name of the service, as generic handlers are registered under it."""

CHECK_METHOD: Final = f"/{SERVICE_NAME}/Check"
"""Path of the call that answers once: HealthCheckRequest -> HealthCheckResponse."""

WATCH_METHOD: Final = f"/{SERVICE_NAME}/Watch"
"""Path of the call that answers at once and at each change: a stream of HealthCheckResponse."""


class ServingStatus(IntEnum):
    """Values of ``HealthCheckResponse.status``; SERVICE_UNKNOWN is sent by Watch only."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


def _add_field(
    message: DescriptorProto, name: str, kind: FieldDescriptorProto.Type.ValueType, of: str = ""
) -> None:
    """Appends the one field of ``message``; ``of`` is the full name of an enum's type."""
    field = message.field.add(
        name=name,
        number=1,
        label=FieldDescriptorProto.LABEL_OPTIONAL,
        type=kind,
        json_name=name,
    )
    if of:
        field.type_name = of


def _method(name: str) -> MethodDescriptorProto:
    method = MethodDescriptorProto(
        name=name,
        input_type=f".{_PACKAGE}.HealthCheckRequest",
        output_type=f".{_PACKAGE}.HealthCheckResponse",
    )
    method.options.SetInParent()  # what the compiler makes of a method written with braces
    return method


def _file() -> FileDescriptorProto:
    """health.proto as the compiler describes it."""
    file = FileDescriptorProto(name="health.proto", package=_PACKAGE, syntax="proto3")

    request = file.message_type.add(name="HealthCheckRequest")
    _add_field(request, "service", FieldDescriptorProto.TYPE_STRING)

    response = file.message_type.add(name="HealthCheckResponse")
    statuses = response.enum_type.add(name="ServingStatus")
    for status in ServingStatus:
        statuses.value.add(name=status.name, number=status.value)
    _add_field(
        response,
        "status",
        FieldDescriptorProto.TYPE_ENUM,
        of=f".{_PACKAGE}.HealthCheckResponse.ServingStatus",
    )

    watch = _method("Watch")
    watch.server_streaming = True
    file.service.add(name="Health", method=[_method("Check"), watch])
    return file


_POOL: Final = DescriptorPool()

DESCRIPTOR: Final = _POOL.AddSerializedFile(_file().SerializeToString())
"""Descriptor of health.proto in the private pool, named as in generated modules."""

if TYPE_CHECKING:

    class HealthCheckRequest(Message):
        """Asks about ``service``; empty means the whole server."""

        service: str

        def __init__(self, *, service: str = "") -> None: ...

    class HealthCheckResponse(Message):
        """Carries ``status``, one of ServingStatus."""

        status: int

        def __init__(self, *, status: int = 0) -> None: ...

else:
    HealthCheckRequest = GetMessageClass(DESCRIPTOR.message_types_by_name["HealthCheckRequest"])
    HealthCheckResponse = GetMessageClass(DESCRIPTOR.message_types_by_name["HealthCheckResponse"])
