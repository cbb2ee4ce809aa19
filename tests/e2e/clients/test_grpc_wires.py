"""ModelInfer on both of the server's wires: typed contents, cancelling, deadlines, large calls."""

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests.e2e.process import EXPLICIT_ALL, ServerProcess, serving
from tests.e2e.tensors import SAMPLES, Array
from tritonclient.grpc import InferenceServerClient, InferInput, service_pb2, service_pb2_grpc

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


def given(values: Array) -> Any:
    """The input of `slow` and `identity`."""
    return InferInput("INPUT0", list(values.shape), "FP32").set_data_from_numpy(values)


ONE = np.ones((1, 1), np.float32)


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents(server: ServerProcess, datatype: str) -> None:
    sent = SAMPLES[datatype]
    request = service_pb2.ModelInferRequest(model_name=f"echo_{datatype}")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=sent.shape)
    getattr(tensor.contents, TYPED[datatype]).extend(sent.ravel().tolist())
    with grpc.insecure_channel(server.grpc) as channel:
        response = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    if datatype == "BYTES":
        wire = b"".join(len(x).to_bytes(4, "little") + x for x in sent.flat)
    else:
        wire = sent.tobytes()
    assert response.raw_output_contents == [wire]


def test_a_call_can_be_cancelled(client: InferenceServerClient) -> None:
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    call = client.async_infer("slow", [given(ONE)], lambda result, error: answers.put(error))
    call.cancel()
    assert answers.get(timeout=30).status() == "StatusCode.CANCELLED"


def test_queued_requests_whose_deadline_has_passed_never_run(
    client: InferenceServerClient,
) -> None:
    def executions() -> int:
        return int(client.get_inference_statistics("slow").model_stats[0].execution_count)

    before = executions()
    errors: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # Two run at a time and take 100 ms, so most are still queued after 250 ms.
    for _ in range(20):
        client.async_infer(
            "slow", [given(ONE)], lambda result, error: errors.put(error), client_timeout=0.25
        )
    late = [error for error in (errors.get(timeout=30) for _ in range(20)) if error is not None]
    assert {error.status() for error in late} == {"StatusCode.DEADLINE_EXCEEDED"}
    client.infer("slow", [given(ONE)])
    assert executions() - before < 20


def test_a_message_of_sixteen_megabytes(client: InferenceServerClient) -> None:
    sent = np.random.default_rng().random((1, 2**22), np.float32)
    result = client.infer("identity", [given(sent)])
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), sent)
