"""tritonclient's asyncio clients over both protocols."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tests.e2e.process import ServerProcess
from tests.e2e.tensors import Array
from tritonclient.utils import InferenceServerException

MODULES: dict[str, Any] = {"http": tritonclient.http, "grpc": tritonclient.grpc}
ONES = np.ones((1, 2), np.float32)


@pytest.fixture(params=["http", "grpc"])
async def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def client(protocol: str, client_server: ServerProcess) -> AsyncIterator[Any]:
    if protocol == "http":
        async with tritonclient.http.aio.InferenceServerClient(client_server.http) as client:
            yield client
    else:
        async with tritonclient.grpc.aio.InferenceServerClient(client_server.grpc) as client:
            yield client


def x_input(protocol: str, values: Array, name: str = "x") -> Any:
    tensor = MODULES[protocol].InferInput(name, list(values.shape), "FP32")
    return tensor.set_data_from_numpy(values)


async def test_health_and_metadata(client: Any, protocol: str) -> None:
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("add", "2")
    how = {"as_json": True} if protocol == "grpc" else {}
    assert (await client.get_server_metadata(**how))["name"] == "naiad"
    assert (await client.get_model_metadata("add", **how))["versions"] == ["1", "2"]
    config = await client.get_model_config("add", **how)
    assert config.get("config", config)["backend"] == "onnxruntime"


async def test_repository_calls(client: Any, protocol: str) -> None:
    how = {"as_json": True} if protocol == "grpc" else {}
    await client.unload_model("identity")
    await client.load_model("identity")
    index = await client.get_model_repository_index(**how)
    models = index["models"] if protocol == "grpc" else index
    assert [m["state"] for m in models if m["name"] == "identity"] == ["READY"]
    statistics = await client.get_inference_statistics("identity", **how)
    assert [s["name"] for s in statistics["model_stats"]] == ["identity"]


async def test_requests_side_by_side(client: Any, protocol: str) -> None:
    sent = [np.full((1, 3), n, np.float32) for n in range(30)]
    results = await asyncio.gather(
        *(client.infer("add", [x_input(protocol, x)], request_id=str(x[0, 0])) for x in sent)
    )
    for x, result in zip(sent, results, strict=True):
        np.testing.assert_array_equal(result.as_numpy("y"), x + 2)


async def test_outputs_versions_and_compression(client: Any, protocol: str) -> None:
    option = "request_compression_algorithm" if protocol == "http" else "compression_algorithm"
    result = await client.infer(
        "add",
        [x_input(protocol, ONES)],
        model_version="1",
        outputs=[MODULES[protocol].InferRequestedOutput("y")],
        parameters={"colour": "blue"},
        **{option: "gzip"},
    )
    np.testing.assert_array_equal(result.as_numpy("y"), ONES + 1)


async def test_errors(client: Any, protocol: str) -> None:
    with pytest.raises(InferenceServerException, match="known versions are 1, 2"):
        await client.infer("add", [x_input(protocol, ONES)], model_version="7")


async def test_a_client_that_gives_up_leaves_the_server_well(client: Any, protocol: str) -> None:
    x = x_input(protocol, ONES, "INPUT0")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.infer("slow", [x]), 0.02)
    result = await client.infer("slow", [x])
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), ONES)


async def test_stream(client_server: ServerProcess) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(20):
            x = np.full((1, 1), number, np.float32)
            yield {
                "model_name": "add" if number != 7 else "nobody",
                "inputs": [x_input("grpc", x)],
                "request_id": str(number),
            }

    async with tritonclient.grpc.aio.InferenceServerClient(client_server.grpc) as client:
        answers = [answer async for answer in client.stream_infer(requests())]
    assert [error is not None for _, error in answers] == [n == 7 for n in range(20)]
    assert [r.as_numpy("y")[0, 0] for r, e in answers if e is None] == [
        n + 2 for n in range(20) if n != 7
    ]
