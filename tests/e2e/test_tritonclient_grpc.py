"""tritonclient over gRPC: the stream, typed contents, cancelling and deadlines.

On both of the server's ways to speak it.
"""

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests.e2e.process import EXPLICIT_ALL, ServerProcess, serving
from tests.e2e.tensors import SAMPLES, Array
from tritonclient.grpc import InferenceServerClient, InferInput, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

TYPED = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@pytest.fixture(scope="module", params=["lean", "grpcio"])
def server(
    request: pytest.FixtureRequest,
    client_repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServerProcess]:
    flags = (*EXPLICIT_ALL, f"--grpc-wire={request.param}")
    with serving(tmp_path_factory.mktemp("server"), client_repository, flags=flags) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.grpc) as client:
        yield client


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


def x_input(values: Array, name: str = "x") -> InferInput:
    tensor = InferInput(name, list(values.shape), "FP32")
    return tensor.set_data_from_numpy(values)


class Stream:
    """A stream of a client, and what came back on it, in that order."""

    def __init__(self, client: Any, **options: Any) -> None:
        self._client = client
        self._answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        client.start_stream(lambda result, error: self._answers.put((result, error)), **options)

    def send(self, model: str, number: float, **options: Any) -> None:
        name = "x" if model == "add" else "INPUT0"
        x = x_input(np.full((1, 2), number, np.float32), name)
        self._client.async_stream_infer(model, [x], **options)

    def next(self) -> tuple[Any, Any]:
        return self._answers.get(timeout=30)


def test_many_requests_of_a_stream_come_back_in_order(client: InferenceServerClient) -> None:
    stream = Stream(client)
    for number in range(50):
        stream.send("add", number, request_id=str(number))
    for number in range(50):
        result, error = stream.next()
        assert error is None
        assert result.get_response().id == str(number)
        np.testing.assert_array_equal(result.as_numpy("y"), np.full((1, 2), number + 2))
    client.stop_stream()


def test_a_fast_request_waits_for_the_slow_one_before_it(client: InferenceServerClient) -> None:
    stream = Stream(client)
    for number, model in enumerate(["slow", "identity", "slow", "identity"]):
        stream.send(model, number)
    found = [stream.next()[0].as_numpy("OUTPUT0")[0, 0] for _ in range(4)]
    assert found == [0, 1, 2, 3]
    client.stop_stream()


def test_an_error_is_told_in_the_stream_and_the_stream_goes_on(
    client: InferenceServerClient,
) -> None:
    stream = Stream(client)
    stream.send("add", 1)
    stream.send("add", 1, model_version="9", request_id="wrong")
    stream.send("add", 3, request_id="after")
    first, wrong, after = (stream.next() for _ in range(3))
    np.testing.assert_array_equal(first[0].as_numpy("y"), [[3, 3]])
    assert wrong[0] is None
    assert "no version 9" in str(wrong[1])
    assert after[0].get_response().id == "after"
    client.stop_stream()


def test_every_answer_is_marked_as_the_last_of_its_request(client: InferenceServerClient) -> None:
    stream = Stream(client)
    stream.send("add", 1, enable_empty_final_response=True)
    result, _ = stream.next()
    assert result.get_response().parameters["triton_final_response"].bool_param
    client.stop_stream()


def test_a_client_may_ask_that_an_error_ends_the_stream(client: InferenceServerClient) -> None:
    stream = Stream(client, headers={"triton_grpc_error": "true"})
    stream.send("add", 1, model_version="9")
    _, error = stream.next()
    assert error.status() == "StatusCode.NOT_FOUND"
    client.stop_stream()


def test_a_cancelled_stream_leaves_the_server_well(client: InferenceServerClient) -> None:
    stream = Stream(client)
    for number in range(10):
        stream.send("slow", number)
    client.stop_stream(cancel_requests=True)
    assert client.infer("add", [x_input(np.ones((1, 1), np.float32))]).as_numpy("y") == [[3]]


def test_streams_of_several_clients_do_not_mix(server: ServerProcess) -> None:
    def run(start: int) -> None:
        with InferenceServerClient(server.grpc) as client:
            stream = Stream(client)
            for number in range(start, start + 20):
                stream.send("add", number)
            got = [stream.next()[0].as_numpy("y")[0, 0] for _ in range(20)]
            client.stop_stream()
            found[start] = got

    found: dict[int, list[float]] = {}
    threads = [threading.Thread(target=run, args=(start,)) for start in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {s: [n + 2 for n in range(s, s + 20)] for s in (0, 1000, 2000)}


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents(channel: grpc.Channel, datatype: str) -> None:
    sent = SAMPLES[datatype]
    request = service_pb2.ModelInferRequest(model_name=f"echo_{datatype}")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=sent.shape)
    getattr(tensor.contents, TYPED[datatype]).extend(sent.ravel().tolist())
    response = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    if datatype == "BYTES":
        wire = b"".join(len(x).to_bytes(4, "little") + x for x in sent.flat)
    else:
        wire = sent.tobytes()
    assert response.raw_output_contents == [wire]


def test_a_deadline_ends_the_call_and_frees_the_server(client: InferenceServerClient) -> None:
    x = x_input(np.ones((1, 1), np.float32), "INPUT0")
    with pytest.raises(InferenceServerException, match=r"(?i)deadline"):
        client.infer("slow", [x], client_timeout=0.02)
    assert client.infer("slow", [x]).as_numpy("OUTPUT0") == [[1]]


def test_a_call_can_be_cancelled(client: InferenceServerClient) -> None:
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    x = x_input(np.ones((1, 1), np.float32), "INPUT0")
    call = client.async_infer("slow", [x], lambda result, error: answers.put(error))
    call.cancel()
    assert answers.get(timeout=30).status() == "StatusCode.CANCELLED"


def test_queued_requests_whose_deadline_has_passed_never_run(
    client: InferenceServerClient,
) -> None:
    def executions() -> int:
        return int(client.get_inference_statistics("slow").model_stats[0].execution_count)

    before = executions()
    errors: queue.SimpleQueue[Any] = queue.SimpleQueue()
    x = x_input(np.ones((1, 1), np.float32), "INPUT0")
    # Two run at a time and take 100 ms, so most are still queued after 250 ms.
    for _ in range(20):
        client.async_infer(
            "slow", [x], lambda result, error: errors.put(error), client_timeout=0.25
        )
    late = [error for error in (errors.get(timeout=30) for _ in range(20)) if error is not None]
    assert {error.status() for error in late} == {"StatusCode.DEADLINE_EXCEEDED"}
    client.infer("slow", [x])
    assert executions() - before < 20


def test_a_model_that_is_not_there_is_not_ready(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="unknown model") as caught:
        client.is_model_ready("nobody")
    assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_a_message_of_sixteen_megabytes(client: InferenceServerClient) -> None:
    sent = np.random.default_rng().random((1, 2**22), np.float32)
    x = x_input(sent, "INPUT0")
    np.testing.assert_array_equal(client.infer("identity", [x]).as_numpy("OUTPUT0"), sent)
