"""Server reflection on both wires, against the gRPC library's own client and descriptors."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2 as theirs
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from hypothesis import given
from hypothesis import strategies as st
from tests.contract.grpc_server import SERVICE, data_plane

from naiad.grpc.library import LibraryServer
from naiad.grpc.server import GrpcServer
from naiad_proto import grpc_service_pb2, reflection

T = TypeVar("T")
Kind = type[GrpcServer] | type[LibraryServer]
Do = Callable[..., Any]

V1, V1ALPHA = reflection.METHODS


@contextlib.asynccontextmanager
async def channel(kind: Kind, folder: Path) -> AsyncIterator[Any]:
    async with data_plane(folder, []) as plane:
        server = kind(plane, "127.0.0.1", 0, reuse_port=False)
        port = await server.start()
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as opened:
                yield opened
        finally:
            await server.stop(0)


WIRES = pytest.mark.parametrize("kind", [GrpcServer, LibraryServer])


@WIRES
async def test_a_client_builds_a_call_from_nothing_else(tmp_path: Path, kind: Kind) -> None:
    def call(opened: Any) -> tuple[list[str], Any, set[str]]:
        database = ProtoReflectionDescriptorDatabase(opened)
        pool = DescriptorPool(database)
        service = pool.FindServiceByName("inference.GRPCInferenceService")
        method = service.methods_by_name["ServerMetadata"]
        answer = GetMessageClass(method.output_type)
        ask = opened.unary_unary(SERVICE + "ServerMetadata", None, answer.FromString)
        names = set(service.methods_by_name)
        return (
            list(database.get_services()),
            ask(GetMessageClass(method.input_type)().SerializeToString()),
            names,
        )

    async with channel(kind, tmp_path) as opened:
        services, answer, methods = await asyncio.to_thread(call, opened)
    assert services == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    ]
    assert (answer.name, answer.version) == ("naiad", "1.2.3")
    ours = grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert methods == set(ours.methods_by_name)


def ask(opened: Any, method: str, requests: Iterable[Any]) -> list[Any]:
    call = opened.stream_stream(
        method,
        theirs.ServerReflectionRequest.SerializeToString,
        theirs.ServerReflectionResponse.FromString,
    )
    return list(call(iter(requests)))


REQUESTS: list[tuple[dict[str, Any], str]] = [
    ({"list_services": "*"}, ""),
    ({"file_by_filename": "grpc_service.proto"}, "grpc_service.proto model_config.proto"),
    ({"file_by_filename": "health.proto"}, "health.proto"),
    ({"file_by_filename": "google/protobuf/descriptor.proto"}, "NOT_FOUND"),
    ({"file_by_filename": "../../etc/passwd"}, "NOT_FOUND"),
    ({"file_containing_symbol": "inference.ModelConfig"}, "model_config.proto"),
    (
        {"file_containing_symbol": "inference.GRPCInferenceService.ModelInfer"},
        "grpc_service.proto model_config.proto",
    ),
    ({"file_containing_symbol": "grpc.health.v1.Health"}, "health.proto"),
    (
        {"file_containing_symbol": "grpc.reflection.v1.ServerReflection"},
        "grpc/reflection/v1/reflection.proto",
    ),
    ({"file_containing_symbol": "google.protobuf.FileDescriptorProto"}, "NOT_FOUND"),
    ({"file_containing_symbol": "inference.Nothing"}, "NOT_FOUND"),
    ({"file_containing_symbol": ""}, "NOT_FOUND"),
    ({"file_containing_extension": {"containing_type": "inference.ModelConfig"}}, "NOT_FOUND"),
    ({"all_extension_numbers_of_type": "inference.ModelConfig"}, ""),
    ({"all_extension_numbers_of_type": "nothing"}, "NOT_FOUND"),
    ({}, "INVALID_ARGUMENT"),
]


def said(answer: Any) -> str:
    """The files of an answer, or the status of its error."""
    if answer.HasField("error_response"):
        assert answer.error_response.error_message
        (found,) = (c for c in grpc.StatusCode if c.value[0] == answer.error_response.error_code)
        return str(found.name)
    files = answer.file_descriptor_response.file_descriptor_proto
    return " ".join(FileDescriptorProto.FromString(file).name for file in files)


@WIRES
@pytest.mark.parametrize("method", [V1, V1ALPHA])
async def test_questions(tmp_path: Path, kind: Kind, method: str) -> None:
    requests = [theirs.ServerReflectionRequest(host="h", **fields) for fields, _ in REQUESTS]
    async with channel(kind, tmp_path) as opened:
        answers = await asyncio.to_thread(ask, opened, method, requests)
    assert [said(answer) for answer in answers] == [wanted for _, wanted in REQUESTS]
    assert [answer.original_request for answer in answers] == requests
    assert {answer.valid_host for answer in answers} == {"h"}


@WIRES
async def test_bytes_that_are_no_message_end_the_stream(tmp_path: Path, kind: Kind) -> None:
    def status(opened: Any) -> str:
        call = opened.stream_stream(V1, None, None)(iter([b"\xff"]))
        with pytest.raises(grpc.RpcError):
            list(call)
        return str(call.code().name)

    async with channel(kind, tmp_path) as opened:
        assert await asyncio.to_thread(status, opened) == "INVALID_ARGUMENT"


@given(st.binary(max_size=40))
def test_messages_are_read_as_the_library_reads_them(data: bytes) -> None:
    ours: Any = reflection.ServerReflectionRequest()
    other = theirs.ServerReflectionRequest()
    results = []
    for message in (ours, other):
        try:
            results.append(message.ParseFromString(data))
        except Exception as error:
            results.append(type(error))
    assert results[0] == results[1]
    assert ours.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


def test_descriptors_equal_the_librarys() -> None:
    made, wanted = FileDescriptorProto(), FileDescriptorProto()
    reflection.DESCRIPTORS[1].CopyToProto(made)
    theirs.DESCRIPTOR.CopyToProto(wanted)
    wanted.name = made.name  # the package has a folder of its own
    assert made == wanted
