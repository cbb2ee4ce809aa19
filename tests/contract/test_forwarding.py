"""Headers that become parameters: real servers and clients, and a model that tells what it got."""

import asyncio
import contextlib
import http.client
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.contract.grpc_server import SERVICE, add_model, infer_message

from naiad.core import loading
from naiad.core.dataplane import DataPlane
from naiad.core.forwarding import HeaderForwarding, forwarding
from naiad.core.lifecycle import Lifecycle
from naiad.core.loadoptions import ControlMode, LoadOptions
from naiad.core.model import ServedModel
from naiad.core.registry import Registry
from naiad.grpc.library import LibraryServer
from naiad.grpc.server import GrpcServer
from naiad.http.server import HttpServer
from naiad.repository.config import ModelConfig
from naiad.repository.layout import ModelFolder, Repositories
from naiad_backends.api import (
    Backend,
    Completion,
    Execution,
    Instance,
    Model,
    ModelSpec,
    Placement,
    Request,
    Response,
)
from naiad_backends.errors import Code, NaiadError
from naiad_backends.registry import BackendRegistry
from naiad_proto import grpc_service_pb2 as pb

Headers = Sequence[tuple[str, str | bytes]]

BODY = json.dumps(
    {
        "inputs": [{"name": "IN", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]}],
        "parameters": {"own": 1, "x-both": "body"},
    }
)


class Telling(Backend, Model, Instance):
    """Answers with the parameters of the request, and without outputs."""

    def __init__(self) -> None:
        super().__init__({})

    def complete(self, spec: ModelSpec) -> Completion | None:
        return None

    def load(self, spec: ModelSpec) -> Model:
        return self

    def instance(self, placement: Placement) -> Instance:
        return self

    def execute(self, requests: Sequence[Request]) -> Execution:
        return Execution([Response(parameters=request.parameters) for request in requests])

    def close(self) -> None:
        pass


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[DataPlane]:
    """Serves the model `echo`, which tells."""
    add_model(tmp_path, "echo")
    registry = Registry()
    options = LoadOptions(ControlMode.EXPLICIT)
    lifecycle = Lifecycle(Repositories([tmp_path]), BackendRegistry(), registry, options)
    folder = ModelFolder.at(tmp_path / "echo")
    config = ModelConfig.read(folder).with_defaults((), 1)
    registry.publish(ServedModel(loading.load(Telling(), config, config.spec(1, folder))))
    yield DataPlane(registry, lifecycle, "naiad", "1", strict=True)
    await lifecycle.close()


# -- HTTP


@contextlib.asynccontextmanager
async def http_port(plane: DataPlane, pattern: str) -> AsyncIterator[int]:
    server = HttpServer(plane, "127.0.0.1", 0, False, 2**20, forwarding(pattern, "--x"))
    port = await server.start()
    try:
        yield port
    finally:
        await server.stop(5)


def post(port: int, path: str, headers: Mapping[str, str], body: Any) -> tuple[int, Any]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as client:
        client.request("POST", path, body, dict(headers))
        answer = client.getresponse()
        return answer.status, json.loads(answer.read())


async def told_by_http(
    port: int, headers: Mapping[str, str], whole: bool = True
) -> tuple[int, Any]:
    """whole: the body has a length; else it comes in chunks, which takes the long way."""
    body = BODY if whole else iter([BODY.encode()])
    return await asyncio.to_thread(post, port, "/v2/models/echo/infer", headers, body)


@pytest.mark.parametrize("whole", [True, False])
async def test_matching_headers_are_parameters(plane: DataPlane, whole: bool) -> None:
    async with http_port(plane, "^x-|TOKEN") as port:
        headers = {"X-One": "1", "my-Token": "t", "Other": "o", "x-both": "header"}
        status, document = await told_by_http(port, headers, whole)
    assert status == 200
    wanted = {"own": 1, "X-One": "1", "my-Token": "t", "x-both": "header"}
    assert document["parameters"] == wanted


async def test_the_case_counts_where_the_pattern_says_so(plane: DataPlane) -> None:
    async with http_port(plane, "(?-i)^X-") as port:
        _, document = await told_by_http(port, {"X-One": "1", "x-two": "2"})
    assert document["parameters"] == {"own": 1, "x-both": "body", "X-One": "1"}


async def test_no_pattern_forwards_nothing(plane: DataPlane) -> None:
    async with http_port(plane, "") as port:
        _, document = await told_by_http(port, {"X-One": "1"})
    assert document["parameters"] == {"own": 1, "x-both": "body"}


@pytest.mark.parametrize("name", ["priority", "timeout", "headers", "triton_x"])
async def test_reserved_names_are_refused(plane: DataPlane, name: str) -> None:
    async with http_port(plane, ".*") as port:
        status, document = await told_by_http(port, {name: "1"})
    assert (status, document["field"]) == (400, name)


async def test_generate_forwards_nothing(plane: DataPlane) -> None:
    async with http_port(plane, "x-") as port:
        status, document = await asyncio.to_thread(
            post, port, "/v2/models/echo/generate", {"x-one": "1"}, '{"IN": 1.0}'
        )
    assert status == 200
    assert "x-one" not in document


# -- gRPC


Kind = type[GrpcServer] | type[LibraryServer]


@contextlib.asynccontextmanager
async def channel(kind: Kind, plane: DataPlane, pattern: str) -> AsyncIterator[Any]:
    server = kind(plane, "127.0.0.1", 0, False, forwarding(pattern, "--x"))
    port = await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as open_channel:
            yield open_channel
    finally:
        await server.stop(5)


def message() -> bytes:
    parameters = {
        "own": pb.InferParameter(int64_param=1),
        "x-both": pb.InferParameter(string_param="body"),
    }
    return infer_message(parameters=parameters).SerializeToString()


def told(response: pb.ModelInferResponse) -> dict[str, Any]:
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "")
        for name, value in response.parameters.items()
        if name != "triton_final_response"
    }


METADATA: Headers = [("x-one", "1"), ("x-two-bin", b"\xff"), ("other", "o"), ("x-both", "header")]
TOLD = {"own": 1, "x-one": "1", "x-both": "header"}


@pytest.mark.parametrize("kind", [GrpcServer, LibraryServer])
async def test_matching_metadata_are_parameters(plane: DataPlane, kind: Kind) -> None:
    async with channel(kind, plane, "^X-") as opened:
        unary = opened.unary_unary(SERVICE + "ModelInfer", None, None)
        answer = await unary(message(), metadata=METADATA)
        assert told(pb.ModelInferResponse.FromString(answer)) == TOLD
        stream = opened.stream_stream(SERVICE + "ModelStreamInfer", None, None)
        answers = [a async for a in stream(_many(message(), message()), metadata=METADATA)]
    for one in answers:
        assert told(pb.ModelStreamInferResponse.FromString(one).infer_response) == TOLD
    assert len(answers) == 2


@pytest.mark.parametrize("kind", [GrpcServer, LibraryServer])
async def test_reserved_keys_are_refused(plane: DataPlane, kind: Kind) -> None:
    async with channel(kind, plane, "time|triton") as opened:
        for key in ("timeout", "triton_x"):
            unary = opened.unary_unary(SERVICE + "ModelInfer", None, None)
            with pytest.raises(grpc.aio.AioRpcError, match=key) as caught:
                await unary(message(), metadata=[(key, "1")])
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            stream = opened.stream_stream(SERVICE + "ModelStreamInfer", None, None)
            (answer,) = [a async for a in stream(_many(message()), metadata=[(key, "1")])]
            assert key in pb.ModelStreamInferResponse.FromString(answer).error_message


async def _many(*messages: bytes) -> AsyncIterator[bytes]:
    for one in messages:
        yield one


# -- patterns


@pytest.mark.parametrize("pattern", ["(", "[a", "*", "(?-i)("])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(NaiadError) as caught:
        HeaderForwarding(pattern, "--http-header-forward-pattern")
    assert caught.value.code is Code.INVALID_ARG
    assert caught.value.field == "--http-header-forward-pattern"


def test_the_last_of_equal_names_counts() -> None:
    request = Request("m")
    pairs: Iterable[tuple[str, str]] = [("a", "1"), ("a", "2"), ("A", "3")]
    HeaderForwarding("a", "--x")(request, pairs)
    assert request.parameters == {"a": "2", "A": "3"}
