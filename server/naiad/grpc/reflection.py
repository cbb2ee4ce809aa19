"""gRPC's reflection service: tools such as grpcurl ask it which calls there are and what they take.

Knows descriptors, and nothing of models. The same answers in both of its versions.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import grpc
from google.protobuf.descriptor import FileDescriptor

from naiad.grpc import wire
from naiad.grpc.stream import Caller
from naiad_backends.api import Buffer
from naiad_proto import grpc_service_pb2, health, reflection
from naiad_proto.reflection import ServerReflectionRequest, ServerReflectionResponse


def _with_imports(file: FileDescriptor) -> Iterator[FileDescriptor]:
    yield file
    for needed in file.dependencies:
        yield from _with_imports(needed)


_ROOTS: Final = (grpc_service_pb2.DESCRIPTOR, health.DESCRIPTOR, *reflection.DESCRIPTORS)
_FILES: Final = {file.name: file for root in _ROOTS for file in _with_imports(root)}
_SERVICES: Final = sorted(
    service.full_name for root in _ROOTS for service in root.services_by_name.values()
)

_METHODS: Final = {
    method.full_name: service.full_name
    for root in _ROOTS
    for service in root.services_by_name.values()
    for method in service.methods
}


async def reflect(requests: AsyncIterator[Buffer], caller: Caller) -> None:
    """One ServerReflectionResponse for each request. Raises INVALID_ARG for what is no message."""
    async for data in requests:
        request = wire.parse(ServerReflectionRequest, data)
        answer = ServerReflectionResponse(
            valid_host=request.host, original_request=request, **_answer(request)
        )
        await caller.write((answer.SerializeToString(),))


def _answer(request: ServerReflectionRequest) -> dict[str, Any]:
    """The one field that answers a request."""
    asked = request.WhichOneof("message_request")
    if asked == "list_services":
        return {"list_services_response": {"service": [{"name": name} for name in _SERVICES]}}
    if asked == "file_by_filename":
        name = request.file_by_filename
        return _found(_FILES.get(name), name)
    if asked == "file_containing_symbol":
        name = request.file_containing_symbol
        return _found(_containing(name), name)
    if asked == "all_extension_numbers_of_type":
        name = request.all_extension_numbers_of_type
        if _containing(name) is not None:
            return {"all_extension_numbers_response": {"base_type_name": name}}
        return _error(grpc.StatusCode.NOT_FOUND, _unknown(name))
    if asked == "file_containing_extension":
        # proto3 has none.
        name = request.file_containing_extension.containing_type
        return _error(grpc.StatusCode.NOT_FOUND, f"'{name[:200]}' has no such extension")
    return _error(grpc.StatusCode.INVALID_ARGUMENT, "the request asks for nothing")


def _containing(symbol: str) -> FileDescriptor | None:
    """The file that defines a service, a message or anything in them."""
    for root in _ROOTS:
        try:
            # Pools do not know methods by name.
            name = root.pool.FindFileContainingSymbol(_METHODS.get(symbol, symbol)).name
        except KeyError:
            continue
        # A pool that others use, too, may have it in a file that is not served here.
        if name in _FILES:
            return _FILES[name]
    return None


def _found(file: FileDescriptor | None, name: str) -> dict[str, Any]:
    """A file with all that it imports, so that nobody has to ask twice."""
    if file is None:
        return _error(grpc.StatusCode.NOT_FOUND, _unknown(name))
    files = {each.name: each.serialized_pb for each in _with_imports(file)}
    return {"file_descriptor_response": {"file_descriptor_proto": list(files.values())}}


def _unknown(name: str) -> str:
    return f"'{name[:200]}' is not known here"


def _error(status: grpc.StatusCode, text: str) -> dict[str, Any]:
    code: int = status.value[0]
    return {"error_response": {"error_code": code, "error_message": text}}
