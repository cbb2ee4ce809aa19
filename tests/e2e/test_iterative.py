"""Models that run a request step by step, over both protocols."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio as grpc
import tritonclient.http as http
from tests.e2e import graphs, tell
from tests.e2e.process import EXPLICIT_ALL, ServerProcess, serving

STRATEGIES = ("direct", "oldest")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repository")


@pytest.fixture(scope="module")
def server(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, plugin: dict[str, str]
) -> Iterator[ServerProcess]:
    for strategy in STRATEGIES:
        batching = f"sequence_batching {{ iterative_sequence: true {strategy} {{ }} }}"
        graphs.write_model(repository, strategy, config=tell.config(more=batching))
    graphs.write_model(repository, "plain", config=tell.config())
    graphs.write_model(repository, "once", config=tell.config(more="sequence_batching { }"))
    log = tmp_path_factory.mktemp("log")
    with serving(log, repository, flags=EXPLICIT_ALL, env=plugin) as running:
        yield running


def infer_input() -> http.InferInput:
    tensor = http.InferInput("x", [2], "FP32")
    tensor.set_data_from_numpy(np.ones(2, np.float32))
    return tensor


@pytest.mark.parametrize("model", STRATEGIES)
def test_a_request_runs_as_often_as_the_model_asks(server: ServerProcess, model: str) -> None:
    with http.InferenceServerClient(server.http) as client:
        result = client.infer(model, [infer_input()], parameters={"steps": 5})
    told = result.get_response()["parameters"]
    assert told["server.runs"] == 5
    assert told["server.sequence_id"] > 0
    assert not told["server.sequence_start"] and not told["server.sequence_end"]
    [stats] = server.get(f"/v2/models/{model}/stats").json()["model_stats"]
    assert stats["inference_stats"]["success"]["count"] == 1
    assert stats["execution_count"] == 5


@pytest.mark.parametrize("model", STRATEGIES)
def test_many_at_once_have_steps_of_their_own(server: ServerProcess, model: str) -> None:
    async def one(client: grpc.InferenceServerClient, steps: int) -> None:
        tensor = grpc.InferInput("x", [2], "FP32")
        tensor.set_data_from_numpy(np.full(2, steps, np.float32))
        result: Any = await client.infer(model, [tensor], parameters={"steps": steps})
        assert result.get_response().parameters["server.runs"].int64_param == steps
        assert result.as_numpy("y").tolist() == [steps, steps]

    async def all_of_them() -> None:
        async with grpc.InferenceServerClient(server.grpc) as client:
            await asyncio.gather(*[one(client, steps) for steps in range(1, 60)])

    asyncio.run(all_of_them())


@pytest.mark.parametrize("model", ["plain", "once"])
def test_a_model_that_may_not(server: ServerProcess, model: str) -> None:
    sequence = {"sequence_id": 1, "sequence_start": True}
    document = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}],
        "parameters": {"steps": 2, **sequence},
    }
    reply = server.post(f"/v2/models/{model}/infer", document)
    assert (reply.status, reply.json()["code"]) == (400, "INVALID_ARG")
    assert "iterative_sequence" in reply.json()["error"]

    async def over_grpc() -> None:
        tensor = grpc.InferInput("x", [1], "FP32")
        tensor.set_data_from_numpy(np.ones(1, np.float32))
        async with grpc.InferenceServerClient(server.grpc) as client:
            with pytest.raises(grpc.InferenceServerException, match="iterative") as error:
                await client.infer(model, [tensor], parameters={"steps": 9}, **sequence)
            assert error.value.status() == "StatusCode.INVALID_ARGUMENT"

    asyncio.run(over_grpc())


def test_decoupled_models_in_the_server_have_no_sequences(
    server: ServerProcess, repository: Path
) -> None:
    config = tell.config(decoupled=True, more="sequence_batching { iterative_sequence: true }")
    graphs.write_model(repository, "decoupled", config=config)
    reply = server.post("/v2/repository/models/decoupled/load")
    assert reply.status == 400
    assert "a decoupled model of this backend cannot have sequences" in reply.json()["error"]
