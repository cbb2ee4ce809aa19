"""tritonclient, synchronous, over both protocols: every call that does not depend on which."""

import queue
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tests.e2e import graphs
from tests.e2e.process import ServerProcess
from tests.e2e.tensors import SAMPLES, Array
from tritonclient.utils import InferenceServerException

import naiad


@dataclass(frozen=True)
class Api:
    """One of tritonclient's two modules and a client of it."""

    protocol: str
    module: Any
    client: Any

    def ask(self, call: str, *args: str) -> Any:
        """An administrative call, its answer as plain dicts and lists."""
        how = {"as_json": True} if self.protocol == "grpc" else {}
        return getattr(self.client, call)(*args, **how)

    def tensor(self, name: str, values: Array, datatype: str) -> Any:
        """An input."""
        tensor = self.module.InferInput(name, list(values.shape), datatype)
        return tensor.set_data_from_numpy(values)

    def infer(self, model: str, values: Array, datatype: str = "FP32", **options: Any) -> Any:
        """Run a model that has the one input `x`."""
        return self.client.infer(model, [self.tensor("x", values, datatype)], **options)


@pytest.fixture(scope="module", params=["http", "grpc"])
def api(request: pytest.FixtureRequest, client_server: ServerProcess) -> Iterator[Api]:
    """A client for the module's server."""
    if request.param == "http":
        client = tritonclient.http.InferenceServerClient(client_server.http, concurrency=8)
        yield Api("http", tritonclient.http, client)
    else:
        client = tritonclient.grpc.InferenceServerClient(client_server.grpc)
        yield Api("grpc", tritonclient.grpc, client)
    client.close()


ONES = np.ones((1, 2), np.float32)


# -- health and metadata


def test_health(api: Api) -> None:
    assert api.client.is_server_live()
    assert api.client.is_server_ready()
    assert api.client.is_model_ready("add")
    assert api.client.is_model_ready("add", "1")


def test_server_metadata(api: Api) -> None:
    metadata = api.ask("get_server_metadata")
    assert (metadata["name"], metadata["version"]) == ("naiad", naiad.__version__)
    assert {"model_repository", "statistics", "binary_tensor_data"} <= set(metadata["extensions"])


def test_model_metadata(api: Api) -> None:
    metadata = api.ask("get_model_metadata", "add")
    assert metadata["name"] == "add"
    assert metadata["versions"] == ["1", "2"]
    assert metadata["platform"] == "onnxruntime_onnx"
    for tensor, name in ((metadata["inputs"], "x"), (metadata["outputs"], "y")):
        shape = [int(size) for size in tensor[0].pop("shape")]
        assert (tensor, shape) == ([{"name": name, "datatype": "FP32"}], [-1, -1])


def test_metadata_of_one_version(api: Api) -> None:
    assert api.ask("get_model_metadata", "add", "1")["versions"] == ["1"]


def test_configuration_is_completed_from_the_file(api: Api) -> None:
    config = api.ask("get_model_config", "pair")
    config = config.get("config", config)
    assert (config["name"], config["backend"]) == ("pair", "onnxruntime")
    assert config["max_batch_size"] == 4
    assert [t["name"] for t in config["input"]] == ["a", "b"]
    assert [t["data_type"] for t in config["output"]] == ["TYPE_INT32", "TYPE_INT32"]


def test_index(api: Api) -> None:
    index = api.ask("get_model_repository_index")
    models = index["models"] if api.protocol == "grpc" else index
    assert len(models) == len(graphs.ONNX_TYPES) + 5
    assert {m["state"] for m in models} == {"READY"}
    assert [m["version"] for m in models if m["name"] == "add"] == ["1", "2"]


def test_statistics_count_batch_elements_and_executions(api: Api) -> None:
    def counts() -> tuple[int, ...]:
        (stats,) = api.ask("get_inference_statistics", "add", "1")["model_stats"]
        return (
            int(stats.get("inference_count", 0)),
            int(stats.get("execution_count", 0)),
            int(stats["inference_stats"]["success"].get("count", 0)),
        )

    before = counts()
    api.infer("add", np.ones((3, 2), np.float32), model_version="1")
    api.infer("add", ONES, model_version="1")
    assert tuple(b - a for a, b in zip(before, counts(), strict=True)) == (4, 2, 2)


def test_statistics_of_all_models(api: Api) -> None:
    names = {s["name"] for s in api.ask("get_inference_statistics")["model_stats"]}
    assert {"add", "pair", "identity", "echo_BYTES"} <= names


def test_unload_and_load(api: Api) -> None:
    api.client.unload_model("identity")
    with pytest.raises(InferenceServerException, match="no version that is ready"):
        api.client.get_model_metadata("identity")
    api.client.load_model("identity")
    assert api.client.is_model_ready("identity")


# -- inference


@pytest.mark.parametrize("datatype", graphs.ONNX_TYPES)
def test_every_datatype_comes_back_bit_by_bit(api: Api, datatype: str) -> None:
    sent = SAMPLES[datatype]
    found = api.infer(f"echo_{datatype}", sent, datatype).as_numpy("y")
    assert found.shape == sent.shape
    if datatype == "BYTES":
        assert found.tolist() == sent.tolist()
    else:
        assert found.tobytes() == sent.tobytes()


@pytest.mark.parametrize("shape", [(1, 0), (1, 1), (4, 1), (2, 300_000)])
def test_sizes(api: Api, shape: tuple[int, int]) -> None:
    sent = np.random.default_rng().random(shape, np.float32)
    found = api.infer("add", sent).as_numpy("y")
    np.testing.assert_array_equal(found.reshape(shape), sent + np.float32(2))


@pytest.mark.parametrize(("version", "amount"), [("1", 1), ("2", 2), ("", 2)])
def test_versions(api: Api, version: str, amount: float) -> None:
    result = api.infer("add", ONES, model_version=version)
    np.testing.assert_array_equal(result.as_numpy("y"), ONES + amount)


def test_the_answer_tells_who_answered_what(api: Api) -> None:
    result = api.infer("add", ONES, request_id="number-7", parameters={"colour": "blue", "n": 3})
    response = result.get_response()
    head = response if api.protocol == "http" else {k.name: v for k, v in response.ListFields()}
    assert (head["id"], head["model_name"], head["model_version"]) == ("number-7", "add", "2")


@pytest.mark.parametrize("wanted", [["sum"], ["difference"], ["difference", "sum"]])
def test_only_the_requested_outputs_come(api: Api, wanted: list[str]) -> None:
    a, b = np.array([[5, 6]], np.int32), np.array([[1, 2]], np.int32)
    result = api.client.infer(
        "pair",
        [api.tensor("a", a, "INT32"), api.tensor("b", b, "INT32")],
        outputs=[api.module.InferRequestedOutput(name) for name in wanted],
    )
    expected = {"sum": a + b, "difference": a - b}
    for name in expected:
        found = result.as_numpy(name)
        if name in wanted:
            np.testing.assert_array_equal(found, expected[name])
        else:
            assert found is None


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(api: Api, algorithm: str) -> None:
    sent = np.zeros((2, 5000), np.float32)
    option = "request_compression_algorithm" if api.protocol == "http" else "compression_algorithm"
    found = api.infer("add", sent, **{option: algorithm}).as_numpy("y")
    np.testing.assert_array_equal(found, sent + 2)


def test_many_requests_in_flight(api: Api) -> None:
    inputs = [np.full((1, 3), n, np.float32) for n in range(16)]
    if api.protocol == "http":
        running = [api.client.async_infer("add", [api.tensor("x", x, "FP32")]) for x in inputs]
        results = [request.get_result(timeout=30) for request in running]
    else:
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for n, x in enumerate(inputs):
            api.client.async_infer(
                "add",
                [api.tensor("x", x, "FP32")],
                lambda result, error, n=n: done.put((n, result, error)),
            )
        answers = sorted((done.get(timeout=30) for _ in inputs), key=lambda item: item[0])
        assert [error for _, _, error in answers] == [None] * len(inputs)
        results = [result for _, result, _ in answers]
    for x, result in zip(inputs, results, strict=True):
        np.testing.assert_array_equal(result.as_numpy("y"), x + 2)


# -- errors


BAD_REQUESTS: dict[str, tuple[dict[str, Any], str | None, str | None, str]] = {
    "unknown model": ({"model": "nobody"}, "404", "NOT_FOUND", "nobody"),
    "unknown version": ({"version": "9"}, "404", "NOT_FOUND", "known versions are 1, 2"),
    "unknown input": ({"input": "z"}, "400", "INVALID_ARGUMENT", "no input 'z'"),
    "unknown output": ({"output": "z"}, "400", "INVALID_ARGUMENT", "no output 'z'"),
    "wrong datatype": (
        {"values": np.ones((1, 2), np.int32), "datatype": "INT32"},
        "400",
        "INVALID_ARGUMENT",
        "takes FP32",
    ),
    "wrong rank": ({"values": np.ones(2, np.float32)}, "400", "INVALID_ARGUMENT", r"\[-1, -1\]"),
    "batch too large": (
        {"values": np.ones((5, 1), np.float32)},
        "400",
        "INVALID_ARGUMENT",
        "1 to 4",
    ),
    "reserved parameter": ({"parameters": {"triton_x": 1}}, None, None, "reserved|triton_"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_errors_reach_the_client_with_status_and_reason(api: Api, case: str) -> None:
    options, http_status, grpc_status, text = BAD_REQUESTS[case]
    values: Array = options.get("values", ONES)
    with pytest.raises(InferenceServerException, match=text) as caught:
        api.client.infer(
            options.get("model", "add"),
            [api.tensor(options.get("input", "x"), values, options.get("datatype", "FP32"))],
            model_version=options.get("version", ""),
            outputs=[api.module.InferRequestedOutput(options.get("output", "y"))],
            parameters=options.get("parameters"),
        )
    status = http_status if api.protocol == "http" else grpc_status and f"StatusCode.{grpc_status}"
    if http_status is not None:
        assert caught.value.status() == status


@pytest.mark.parametrize("call", ["get_model_metadata", "get_model_config", "load_model"])
def test_calls_on_an_unknown_model_fail(api: Api, call: str) -> None:
    with pytest.raises(InferenceServerException, match="nobody"):
        getattr(api.client, call)("nobody")


def test_unload_of_an_unknown_model_is_no_error(api: Api) -> None:
    api.client.unload_model("nobody")


@pytest.mark.parametrize("call", ["get_trace_settings"])
def test_what_is_not_served_is_refused_and_not_broken(api: Api, call: str) -> None:
    with pytest.raises(InferenceServerException):
        getattr(api.client, call)()
    assert api.client.is_server_ready()
