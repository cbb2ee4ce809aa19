"""The two wires of gRPC side by side: whatever is asked, both answer the same."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.contract.grpc_server import SERVICE, add_model, data_plane, infer_message

from naiad.grpc.library import LibraryServer
from naiad.grpc.server import GrpcServer
from naiad_proto import grpc_service_pb2 as pb
from naiad_proto.health import CHECK_METHOD, HealthCheckRequest

Outcome = tuple[str, str, list[bytes]]


@dataclass(frozen=True)
class Wires:
    """A channel to each server; one data plane behind both."""

    own: Any
    library: Any


@pytest.fixture
async def wires(tmp_path: Path) -> AsyncIterator[Wires]:
    add_model(tmp_path, "echo")
    add_model(tmp_path, "batching", batch=4)
    async with data_plane(tmp_path, ["*"]) as plane:
        own = GrpcServer(plane, "127.0.0.1", 0, reuse_port=False)
        library = LibraryServer(plane, "127.0.0.1", 0, reuse_port=False)
        channels = [
            grpc.insecure_channel(f"127.0.0.1:{await server.start()}") for server in (own, library)
        ]
        yield Wires(*channels)
        for channel in channels:
            channel.close()
        await own.stop(0)
        await library.stop(0)


def outcome(channel: Any, method: str, messages: list[bytes], **options: Any) -> Outcome:
    """Status, details and answers of a call, which may hold any number of messages.

    The blocking client, as grpc.aio loses the status of a call that ends before its last request.
    """
    call = channel.stream_stream(method, None, None)(iter(messages), **options)
    answers: list[bytes] = []
    with contextlib.suppress(grpc.RpcError):
        for answer in call:
            answers.append(answer)
    return call.code().name, call.details(), answers


async def same(wires: Wires, method: str, messages: list[bytes], **options: Any) -> Outcome:
    """The outcome, which is one."""
    own, library = [
        await asyncio.to_thread(outcome, channel, method, messages, **options)
        for channel in (wires.own, wires.library)
    ]
    assert own == library
    return own


NAMES = st.sampled_from(["echo", "batching", "nobody", "", "ä€\n%", "../echo"])
VERSIONS = st.sampled_from(["", "1", "2", "x"])
DATATYPES = st.sampled_from(["FP32", "INT8", "BYTES", "X"])
INPUTS = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=st.sampled_from(["IN", "X"]),
    datatype=DATATYPES,
    shape=st.lists(st.integers(-1, 5), max_size=3),
)
INFER = st.builds(
    pb.ModelInferRequest,
    model_name=NAMES,
    model_version=VERSIONS,
    id=st.text(max_size=5),
    inputs=st.lists(INPUTS, max_size=2),
    raw_input_contents=st.lists(st.binary(max_size=24), max_size=2),
)
GOOD = st.builds(infer_message, st.sampled_from(["echo", "batching"]), st.integers(1, 4))
CALLS = st.one_of(
    st.tuples(st.just("ModelInfer"), INFER | GOOD),
    st.tuples(st.just("ModelReady"), st.builds(pb.ModelReadyRequest, name=NAMES, version=VERSIONS)),
    st.tuples(
        st.just("ModelMetadata"), st.builds(pb.ModelMetadataRequest, name=NAMES, version=VERSIONS)
    ),
    st.tuples(st.just("ModelConfig"), st.builds(pb.ModelConfigRequest, name=NAMES)),
    st.tuples(
        st.just("RepositoryIndex"), st.builds(pb.RepositoryIndexRequest, ready=st.booleans())
    ),
    st.tuples(st.just("RepositoryModelLoad"), st.just(pb.RepositoryModelLoadRequest())),
    st.tuples(st.just("LogSettings"), st.just(pb.LogSettingsRequest())),
    st.tuples(st.just("ServerMetadata"), st.just(pb.ServerMetadataRequest())),
)
UNTIMED = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(CALLS)
@UNTIMED
async def test_calls(wires: Wires, call: tuple[str, Any]) -> None:
    name, message = call
    await same(wires, SERVICE + name, [message.SerializeToString()])


@given(st.sampled_from(["ModelInfer", "ModelMetadata", "ModelStreamInfer"]), st.binary(max_size=30))
@UNTIMED
async def test_bytes(wires: Wires, name: str, data: bytes) -> None:
    await same(wires, SERVICE + name, [data])


@given(st.lists(INFER | GOOD, max_size=8), st.booleans())
@UNTIMED
async def test_streams(wires: Wires, requests: list[Any], fail_fast: bool) -> None:
    metadata = [("triton_grpc_error", "true")] if fail_fast else []
    messages = [request.SerializeToString() for request in requests]
    await same(wires, SERVICE + "ModelStreamInfer", messages, metadata=metadata)


@pytest.mark.parametrize("algorithm", list(grpc.Compression))
async def test_compression(wires: Wires, algorithm: grpc.Compression) -> None:
    data = infer_message(rows=5000).SerializeToString()
    got = await same(wires, SERVICE + "ModelInfer", [data], compression=algorithm)
    assert got[0] == "OK"


@pytest.mark.parametrize("name", ["", "echo", "nobody"])
async def test_health(wires: Wires, name: str) -> None:
    await same(wires, CHECK_METHOD, [HealthCheckRequest(service=name).SerializeToString()])


@pytest.mark.parametrize("path", ["/a/b", SERVICE + "Nothing", SERVICE])
async def test_paths(wires: Wires, path: str) -> None:
    assert (await same(wires, path, [b""]))[0] == "UNIMPLEMENTED"


async def test_metadata(wires: Wires) -> None:
    metadata = [("a", "b"), ("a", "c"), ("x-bin", b"\0\xff"), ("y-bin", b"")]
    data = infer_message().SerializeToString()
    assert (await same(wires, SERVICE + "ModelInfer", [data], metadata=metadata))[0] == "OK"
