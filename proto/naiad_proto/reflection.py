"""Messages of gRPC's reflection service, versions v1 and v1alpha, which differ in their name only.

Owns the descriptors of both in pools of their own, as naiad_proto.health does, so that a package
such as grpcio-reflection can live beside them. Knows nothing of servers. Source: gRPC's
reflection.proto.
"""

from typing import TYPE_CHECKING, Any, Final

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

_Field = FieldDescriptorProto
_STRING: Final = _Field.TYPE_STRING
_INT32: Final = _Field.TYPE_INT32
_BYTES: Final = _Field.TYPE_BYTES

_ONE_OF: Final = {
    "ServerReflectionRequest": "message_request",
    "ServerReflectionResponse": "message_response",
}

# Message -> its fields: name, number, type (a message's name for a message), and marks: `o` for a
# member of the message's oneof, `*` for a repeated field.
_MESSAGES: Final[dict[str, list[tuple[str, int, Any, str]]]] = {
    "ServerReflectionRequest": [
        ("host", 1, _STRING, ""),
        ("file_by_filename", 3, _STRING, "o"),
        ("file_containing_symbol", 4, _STRING, "o"),
        ("file_containing_extension", 5, "ExtensionRequest", "o"),
        ("all_extension_numbers_of_type", 6, _STRING, "o"),
        ("list_services", 7, _STRING, "o"),
    ],
    "ExtensionRequest": [
        ("containing_type", 1, _STRING, ""),
        ("extension_number", 2, _INT32, ""),
    ],
    "ServerReflectionResponse": [
        ("valid_host", 1, _STRING, ""),
        ("original_request", 2, "ServerReflectionRequest", ""),
        ("file_descriptor_response", 4, "FileDescriptorResponse", "o"),
        ("all_extension_numbers_response", 5, "ExtensionNumberResponse", "o"),
        ("list_services_response", 6, "ListServiceResponse", "o"),
        ("error_response", 7, "ErrorResponse", "o"),
    ],
    "FileDescriptorResponse": [("file_descriptor_proto", 1, _BYTES, "*")],
    "ExtensionNumberResponse": [
        ("base_type_name", 1, _STRING, ""),
        ("extension_number", 2, _INT32, "*"),
    ],
    "ListServiceResponse": [("service", 1, "ServiceResponse", "*")],
    "ServiceResponse": [("name", 1, _STRING, "")],
    "ErrorResponse": [
        ("error_code", 1, _INT32, ""),
        ("error_message", 2, _STRING, ""),
    ],
}


def _file(package: str, name: str) -> FileDescriptorProto:
    """reflection.proto of one version as the compiler describes it."""
    file = FileDescriptorProto(name=name, package=package, syntax="proto3")
    for title, members in _MESSAGES.items():
        message = file.message_type.add(name=title)
        if title in _ONE_OF:
            message.oneof_decl.add(name=_ONE_OF[title])
        for member in members:
            _add_field(message, f".{package}", *member)
    service = file.service.add(name="ServerReflection")
    service.method.add(
        name="ServerReflectionInfo",
        input_type=f".{package}.ServerReflectionRequest",
        output_type=f".{package}.ServerReflectionResponse",
        client_streaming=True,
        server_streaming=True,
    )
    return file


def _add_field(
    message: DescriptorProto, scope: str, name: str, number: int, kind: Any, marks: str
) -> None:
    field = message.field.add(
        name=name,
        number=number,
        label=_Field.LABEL_REPEATED if "*" in marks else _Field.LABEL_OPTIONAL,
    )
    if isinstance(kind, str):
        field.type, field.type_name = _Field.TYPE_MESSAGE, f"{scope}.{kind}"
    else:
        field.type = kind
    if "o" in marks:
        field.oneof_index = 0


def _added(package: str, name: str) -> FileDescriptor:
    pool = DescriptorPool()
    return pool.AddSerializedFile(_file(package, name).SerializeToString())


DESCRIPTORS: Final = (
    _added("grpc.reflection.v1", "grpc/reflection/v1/reflection.proto"),
    _added("grpc.reflection.v1alpha", "grpc/reflection/v1alpha/reflection.proto"),
)
"""Descriptors of both versions, each in a private pool."""

METHODS: Final = tuple(
    f"/{file.package}.ServerReflection/ServerReflectionInfo" for file in DESCRIPTORS
)
"""Paths of the one call, a stream in both directions, in both versions."""

if TYPE_CHECKING:

    class ServerReflectionRequest(Message):
        """Asks for one of its fields but `host`."""

        def __init__(self, **fields: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...

    class ServerReflectionResponse(Message):
        """Answers with one of its fields but the first two."""

        def __init__(self, **fields: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...

else:
    # On the wire, the messages of both versions are the same.
    _NAMES = DESCRIPTORS[0].message_types_by_name
    ServerReflectionRequest = GetMessageClass(_NAMES["ServerReflectionRequest"])
    ServerReflectionResponse = GetMessageClass(_NAMES["ServerReflectionResponse"])
