"""Decoupled models over a gRPC stream, on both wires: many responses, none, the end, order."""

import queue
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests.e2e import graphs
from tests.e2e.process import ServerProcess, eventually, serving
from tests.e2e.test_generate import REPEAT
from tritonclient.grpc import InferenceServerClient, InferInput


@pytest.fixture(scope="module", params=["lean", "grpcio"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("repository")
    graphs.write_model(repository, "repeat", config=REPEAT)
    graphs.write_model(repository, "identity", config=graphs.IDENTITY)
    graphs.write_model(repository, "slow", config=graphs.slow_identity(300))
    log = tmp_path_factory.mktemp("log")
    with serving(log, repository, flags=["--grpc-wire", request.param]) as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.grpc) as one:
        yield one


def tensor(name: str, values: list[int], datatype: str) -> Any:
    given = InferInput(name, [len(values)], datatype)
    given.set_data_from_numpy(np.array(values, {"INT32": np.int32, "UINT32": np.uint32}[datatype]))
    return given


def repeat(values: list[int], delays: list[int]) -> list[Any]:
    return [
        tensor("IN", values, "INT32"),
        tensor("DELAY", delays, "UINT32"),
        tensor("WAIT", [0], "UINT32"),
    ]


def start(client: InferenceServerClient) -> Any:
    got: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    client.start_stream(lambda result, error: got.put((result, error)))
    return got


def final(result: Any) -> bool:
    return bool(result.get_response().parameters["triton_final_response"].bool_param)


def test_responses_come_in_order_with_an_empty_final(client: InferenceServerClient) -> None:
    got = start(client)
    client.async_stream_infer(
        "repeat", repeat([4, 5, 6], [1, 1, 1]), request_id="r", enable_empty_final_response=True
    )
    results = [got.get(timeout=30) for _ in range(4)]
    assert [error for _, error in results] == [None] * 4
    values = [result.as_numpy("OUT").item() for result, _ in results[:3]]
    assert values == [4, 5, 6]
    assert [final(result) for result, _ in results] == [False] * 3 + [True]
    end = results[3][0].get_response()
    assert (end.id, end.model_name, len(end.outputs)) == ("r", "repeat", 0)
    client.stop_stream()


def test_without_the_option_the_end_is_silent(client: InferenceServerClient) -> None:
    got = start(client)
    client.async_stream_infer("repeat", repeat([], []), request_id="none")
    client.async_stream_infer("repeat", repeat([9], [1]), request_id="one")
    result, error = got.get(timeout=30)
    assert error is None and result.get_response().id == "one"
    client.stop_stream()
    assert got.empty()


def test_many_requests_at_once_keep_their_own_responses(client: InferenceServerClient) -> None:
    got = start(client)
    wanted = {str(n): list(range(n, n + 5)) for n in range(40)}
    for name, values in wanted.items():
        client.async_stream_infer(
            "repeat", repeat(values, [n % 3 for n in values]), request_id=name
        )
    found: dict[str, list[int]] = {name: [] for name in wanted}
    for _ in range(200):
        result, error = got.get(timeout=30)
        assert error is None
        found[result.get_response().id].append(result.as_numpy("OUT").item())
    assert found == wanted
    client.stop_stream()


def test_ordinary_models_keep_their_order_and_decoupled_ones_do_not_wait(
    client: InferenceServerClient,
) -> None:
    got = start(client)
    x = InferInput("INPUT0", [1, 1], "FP32")
    x.set_data_from_numpy(np.ones((1, 1), np.float32))
    client.async_stream_infer("slow", [x], request_id="slow")
    client.async_stream_infer("identity", [x], request_id="quick")
    client.async_stream_infer("repeat", repeat([1], [0]), request_id="decoupled")
    order = [got.get(timeout=30)[0].get_response().id for _ in range(3)]
    assert order == ["decoupled", "slow", "quick"]
    client.stop_stream()


def test_an_error_is_in_band_and_the_stream_goes_on(client: InferenceServerClient) -> None:
    got = start(client)
    client.async_stream_infer("repeat", repeat([1, 2], [1]), request_id="bad")
    _, error = got.get(timeout=30)
    assert "DELAY" in error.message()
    client.async_stream_infer("repeat", repeat([1], [1]), request_id="good")
    assert got.get(timeout=30)[0].get_response().id == "good"
    client.stop_stream()


def test_a_unary_call_is_refused(client: InferenceServerClient) -> None:
    with pytest.raises(Exception, match=r"UNIMPLEMENTED.*decoupled"):
        client.infer("repeat", repeat([1], [1]))


def test_leaving_stops_the_model(client: InferenceServerClient, server: ServerProcess) -> None:
    def failures() -> int:
        stats = client.get_inference_statistics("repeat").model_stats[0]
        return int(stats.inference_stats.fail.count)

    before = failures()
    with InferenceServerClient(server.grpc) as leaver:
        got = start(leaver)
        leaver.async_stream_infer("repeat", repeat([1, 2], [0, 600_000]))
        assert got.get(timeout=30)[1] is None
        leaver.stop_stream(cancel_requests=True)
    eventually(lambda: failures() == before + 1)
    stats = client.get_inference_statistics("repeat").model_stats[0]
    assert stats.response_stats["0"].success.count > 0
