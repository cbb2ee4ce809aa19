"""Dynamic batching on a live server, seen through its statistics and its refusals.

No request here waits for a time to pass: delays are so long that only other requests end them.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from tests.e2e import graphs
from tests.e2e.process import EXPLICIT_ALL, Reply, ServerProcess, eventually, serving
from tests.e2e.test_metrics import figure

Array = np.ndarray[Any, Any]

HOUR = 3_600_000_000
"""In microseconds."""

MODELS = {
    "pairs": f"preferred_batch_size: [2] max_queue_delay_microseconds: {HOUR}",
    "fours": f"max_queue_delay_microseconds: {HOUR}",
    "short": f"""max_queue_delay_microseconds: {HOUR}
                 default_queue_policy {{ max_queue_size: 2 }}""",
    "hasty": f"""max_queue_delay_microseconds: {HOUR}
                 default_queue_policy {{ default_timeout_microseconds: 1000 }}""",
    "asked": f"""max_queue_delay_microseconds: {HOUR}
                 default_queue_policy {{ allow_timeout_override: true }}""",
    "levels": f"""max_queue_delay_microseconds: {HOUR}
                  priority_levels: 2 default_priority_level: 2""",
    "greedy": "",
}

CONFIG = """
backend: "identity" max_batch_size: 4
input {{ name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] }}
output {{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] }}
dynamic_batching {{ {} }}
"""


RAGGED = f"""
max_batch_size: 3
input {{ name: "x" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true }}
batch_input {{ kind: BATCH_ELEMENT_COUNT target_name: "counts" data_type: TYPE_INT32
              source_input: "x" }}
output {{ name: "y" data_type: TYPE_FP32 dims: [ -1 ] }}
output {{ name: "n" data_type: TYPE_INT32 dims: [ 1 ] }}
batch_output {{ target_name: "y" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "x" }}
dynamic_batching {{ max_queue_delay_microseconds: {HOUR} }}
"""

OPTIONAL = f"""
max_batch_size: 2
input {{ name: "x" data_type: TYPE_FP32 dims: [ -1 ] }}
input {{ name: "extra" data_type: TYPE_FP32 dims: [ -1 ] optional: true }}
output {{ name: "y" data_type: TYPE_FP32 dims: [ -1 ] }}
dynamic_batching {{ max_queue_delay_microseconds: {HOUR} }}
"""

PADDED = (
    CONFIG.format(f"max_queue_delay_microseconds: {HOUR}")
    + """
parameters { key: "padding_buckets" value { string_value: "4,8" } }
"""
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("repository")
    for name, batching in MODELS.items():
        graphs.write_model(repository, name, config=CONFIG.format(batching))
    graphs.write_model(repository, "padded", config=PADDED)
    graphs.write_model(repository, "ragged", {1: graphs.ragged()}, RAGGED)
    graphs.write_model(repository, "optional", {1: graphs.with_default()}, OPTIONAL)
    with serving(tmp_path_factory.mktemp("log"), repository, flags=EXPLICIT_ALL) as running:
        yield running


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def infer(server: ServerProcess, model: str, rows: int = 1, columns: int = 2) -> Array:
    """One request with numbers of its own; checks that they came back."""
    data = np.random.default_rng().random((rows, columns), np.float32)
    tensor = http.InferInput("INPUT0", data.shape, "FP32")
    tensor.set_data_from_numpy(data)
    with http.InferenceServerClient(server.http) as client:
        result = client.infer(model, [tensor]).as_numpy("OUTPUT0")
    assert result is not None
    np.testing.assert_array_equal(result, data)
    return data


def post(server: ServerProcess, model: str, **parameters: object) -> Reply:
    inputs = [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 1], "data": [1]}]
    document = {"inputs": inputs, "parameters": parameters}
    return server.post(f"/v2/models/{model}/infer", document)


def waiting(server: ServerProcess, model: str) -> int:
    """Requests in the model's queue."""
    return figure(server, "nv_inference_pending_request_count", model)


def batches(server: ServerProcess, model: str) -> dict[int, int]:
    """How many batches of each size have run."""
    [stats] = server.get(f"/v2/models/{model}/stats").json()["model_stats"]
    return {one["batch_size"]: one["compute_infer"]["count"] for one in stats["batch_stats"]}


def test_a_preferred_size_is_sent_as_soon_as_it_is_there(
    server: ServerProcess, threads: ThreadPoolExecutor
) -> None:
    for _ in range(3):
        first = threads.submit(infer, server, "pairs")
        eventually(lambda: waiting(server, "pairs") == 1)
        infer(server, "pairs")
        first.result(30)
    assert batches(server, "pairs") == {2: 3}


def test_requests_of_several_rows_fill_a_batch(
    server: ServerProcess, threads: ThreadPoolExecutor
) -> None:
    parts: list[Future[Array]] = []
    for rows in (1, 2, 1):
        parts.append(threads.submit(infer, server, "fours", rows))
        if rows != 1 or len(parts) == 1:
            eventually(lambda: waiting(server, "fours") == len(parts))
    for part in parts:
        part.result(30)
    assert batches(server, "fours") == {4: 1}


def test_another_shape_ends_the_batch(server: ServerProcess, threads: ThreadPoolExecutor) -> None:
    before = batches(server, "fours")
    first = threads.submit(infer, server, "fours", 1, 7)
    eventually(lambda: waiting(server, "fours") == 1)
    second = threads.submit(infer, server, "fours", 3, 8)
    first.result(30)
    eventually(lambda: waiting(server, "fours") == 1)
    infer(server, "fours", 1, 8)
    second.result(30)
    after = batches(server, "fours")
    assert (after[1], after[4] - before.get(4, 0)) == (1, 1)


def test_a_full_queue_refuses_over_both_protocols(
    server: ServerProcess, threads: ThreadPoolExecutor
) -> None:
    held = [threads.submit(infer, server, "short") for _ in range(2)]
    eventually(lambda: waiting(server, "short") == 2)
    refused = post(server, "short")
    assert refused.status == 503
    assert refused.json()["code"] == "UNAVAILABLE" and "full" in refused.json()["error"]
    assert int(refused.headers["Retry-After"]) >= 1
    with grpc.InferenceServerClient(server.grpc) as client:
        tensor = grpc.InferInput("INPUT0", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 1), np.float32))
        with pytest.raises(grpc.InferenceServerException, match="full") as error:
            client.infer("short", [tensor])
        assert error.value.status() == "StatusCode.UNAVAILABLE"
    [stats] = server.get("/v2/models/short/stats").json()["model_stats"]
    assert stats["inference_stats"]["fail"]["count"] == 2
    assert not any(call.done() for call in held)
    # A model that goes out of service does not let its requests wait for company.
    server.post("/v2/repository/models/short/unload")
    for call in held:
        call.result(30)


@pytest.mark.parametrize(("model", "asked"), [("hasty", 0), ("asked", 1000)])
def test_a_request_whose_time_in_the_queue_is_up(
    server: ServerProcess, model: str, asked: int
) -> None:
    refused = post(server, model, timeout=asked)
    assert refused.status == 503
    assert "timed out" in refused.json()["error"]


def test_a_request_of_high_priority_comes_first(
    server: ServerProcess, threads: ThreadPoolExecutor
) -> None:
    low = [threads.submit(post, server, "levels", priority=2) for _ in range(2)]
    eventually(lambda: waiting(server, "levels") == 2)
    rows = {"name": "INPUT0", "datatype": "FP32", "shape": [3, 1], "data": [1, 2, 3]}
    document = {"inputs": [rows], "parameters": {"priority": 1}}
    # It takes the place of the second of those that were here before it.
    assert server.post("/v2/models/levels/infer", document).status == 200
    assert waiting(server, "levels") == 1
    server.post("/v2/repository/models/levels/unload")
    assert [call.result(30).status for call in low] == [200, 200]


def test_what_comes_while_an_instance_is_free_runs_at_once(server: ServerProcess) -> None:
    infer(server, "greedy")
    assert batches(server, "greedy") == {1: 1}


def ask(server: ServerProcess, model: str, **inputs: Array) -> dict[str, Array]:
    """One request with these inputs; all outputs by name."""
    tensors = []
    for name, array in inputs.items():
        tensors.append(http.InferInput(name, array.shape, "FP32"))
        tensors[-1].set_data_from_numpy(array)
    with http.InferenceServerClient(server.http) as client:
        result = client.infer(model, tensors)
    names = [output["name"] for output in result.get_response()["outputs"]]
    return {name: result.as_numpy(name) for name in names}


def numbers(*shape: int) -> Array:
    return np.random.default_rng().random(shape, np.float32)


def test_requests_of_different_lengths_share_a_ragged_batch(
    server: ServerProcess, threads: ThreadPoolExecutor
) -> None:
    data = [numbers(1, 2), numbers(1, 3), numbers(1, 1)]
    calls = []
    for number, array in enumerate(data, 1):
        calls.append(threads.submit(ask, server, "ragged", x=array))
        if number < len(data):
            eventually(lambda: waiting(server, "ragged") == len(calls))
    for array, call in zip(data, calls, strict=True):
        answer = call.result(30)
        np.testing.assert_array_equal(answer["y"], 2 * array)
        assert answer["n"].tolist() == [[array.size]]
    assert batches(server, "ragged") == {3: 1}


def test_requests_share_a_batch_if_they_give_the_same_inputs(
    server: ServerProcess, threads: ThreadPoolExecutor
) -> None:
    first, second, third, extra = (numbers(1, 4) for _ in range(4))
    with_it = threads.submit(ask, server, "optional", x=first, extra=extra)
    eventually(lambda: waiting(server, "optional") == 1)
    without = threads.submit(ask, server, "optional", x=second)
    np.testing.assert_array_equal(with_it.result(30)["y"], first + extra)
    eventually(lambda: waiting(server, "optional") == 1)
    np.testing.assert_array_equal(ask(server, "optional", x=third)["y"], third + 100)
    np.testing.assert_array_equal(without.result(30)["y"], second + 100)
    assert batches(server, "optional") == {1: 1, 2: 1}


def test_lengths_of_one_bucket_share_a_batch_and_come_back_as_they_were(
    server: ServerProcess, threads: ThreadPoolExecutor
) -> None:
    short = threads.submit(infer, server, "padded", 2, 3)
    eventually(lambda: waiting(server, "padded") == 1)
    infer(server, "padded", 2, 4)
    short.result(30)
    assert batches(server, "padded") == {4: 1}
    infer(server, "padded", 4, 9)
