"""Bodies of the load harness against tritonclient: what it writes, and how it reads answers."""

from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from benchmarks import bodies
from benchmarks.errors import BenchmarkError
from benchmarks.workloads import Tensor
from tritonclient.grpc import service_pb2

SOUND = Tensor("input", "FP32", np.array([[0.5, -1.25, 0.1]], "<f4"))
RATE = Tensor("sr", "INT64", np.array([16000], "<i8"))


def test_json_request_carries_exact_values() -> None:
    request = bodies.encode("http-json", "silero", (SOUND, RATE), "output")
    sent = orjson.loads(request.body)
    assert request.path == "/v2/models/silero/infer"
    assert [(t["name"], t["datatype"], t["shape"]) for t in sent["inputs"]] == [
        ("input", "FP32", [1, 3]),
        ("sr", "INT64", [1]),
    ]
    assert np.array_equal(np.array([sent["inputs"][0]["data"]], "<f4"), SOUND.array)
    assert sent["outputs"] == [{"name": "output"}]


def test_binary_request_equals_that_of_tritonclient() -> None:
    inputs = []
    for tensor in (SOUND, RATE):
        inputs.append(triton_http.InferInput(tensor.name, tensor.array.shape, tensor.datatype))
        inputs[-1].set_data_from_numpy(tensor.array)
    output = triton_http.InferRequestedOutput("output", binary_data=True)
    body, length = triton_http.InferenceServerClient.generate_request_body(inputs, [output])

    request = bodies.encode("http-binary", "silero", (SOUND, RATE), "output")
    mine = int(request.headers[bodies.HEADER_LENGTH])
    assert orjson.loads(request.body[:mine]) == orjson.loads(body[:length])
    assert request.body[mine:] == body[length:]


def test_grpc_frame_is_read_by_tritonclients_messages() -> None:
    request = bodies.encode("grpc", "silero", (SOUND, RATE), "output")
    prefix, message = request.body[: bodies.GRPC_PREFIX], request.body[bodies.GRPC_PREFIX :]
    read = service_pb2.ModelInferRequest.FromString(message)
    assert prefix == b"\0" + len(message).to_bytes(4, "big")
    assert read.model_name == "silero"
    assert [(t.name, t.datatype, list(t.shape)) for t in read.inputs] == [
        ("input", "FP32", [1, 3]),
        ("sr", "INT64", [1]),
    ]
    assert list(read.raw_input_contents) == [SOUND.array.tobytes(), RATE.array.tobytes()]


def test_parameters_of_a_sequence_are_those_of_tritonclient() -> None:
    tensor = triton_http.InferInput("input", SOUND.array.shape, "FP32")
    tensor.set_data_from_numpy(SOUND.array)
    make = triton_http.InferenceServerClient.generate_request_body
    body, length = make([tensor], sequence_id=7, sequence_start=True, sequence_end=False)
    parameters: dict[str, int | bool] = {
        "sequence_id": 7,
        "sequence_start": True,
        "sequence_end": False,
    }
    theirs = orjson.loads(body[:length])["parameters"]
    assert parameters.items() <= theirs.items()

    for protocol in ("http-json", "http-binary"):
        request = bodies.encode(protocol, "m", (SOUND,), "output", parameters)
        mine = int(request.headers.get(bodies.HEADER_LENGTH, len(request.body)))
        assert orjson.loads(request.body[:mine])["parameters"] == parameters
    message = bodies.encode("grpc", "m", (SOUND,), "output", parameters).body[bodies.GRPC_PREFIX :]
    read = service_pb2.ModelInferRequest.FromString(message).parameters
    assert read["sequence_id"].int64_param == 7
    assert [read[f"sequence_{end}"].bool_param for end in ("start", "end")] == [True, False]


PLACES = {"input": bodies.Place("r", 0, 12), "sr": bodies.Place("r", 64, 8)}
RESULT = bodies.Place("r", 128, 12)


def in_region(kind: Any, place: bodies.Place) -> Any:
    """tritonclient's input or output, in its place."""
    kind.set_shared_memory(place.region, place.size, place.offset)
    return kind


def test_shared_http_request_equals_that_of_tritonclient() -> None:
    inputs = [
        in_region(triton_http.InferInput(t.name, t.array.shape, t.datatype), PLACES[t.name])
        for t in (SOUND, RATE)
    ]
    output = in_region(triton_http.InferRequestedOutput("output"), RESULT)
    body, _ = triton_http.InferenceServerClient.generate_request_body(inputs, [output])

    mine = bodies.encode_shared("shm-http", "silero", (SOUND, RATE), PLACES, "output", RESULT)
    assert with_offsets(orjson.loads(body)) == orjson.loads(mine.body)


def with_offsets(document: Any) -> Any:
    """tritonclient leaves an offset of 0 out."""
    for tensor in document["inputs"] + document["outputs"]:
        tensor["parameters"].setdefault("shared_memory_offset", 0)
        tensor["parameters"].pop("binary_data", None)
    return document


def test_shared_grpc_frame_has_the_places_and_no_tensors() -> None:
    request = bodies.encode_shared("shm-grpc", "silero", (SOUND, RATE), PLACES, "output", RESULT)
    read = service_pb2.ModelInferRequest.FromString(request.body[bodies.GRPC_PREFIX :])
    assert not read.raw_input_contents
    found = [tensor.parameters for tensor in (*read.inputs, *read.outputs)]
    for parameters, place in zip(found, (*PLACES.values(), RESULT), strict=True):
        assert parameters["shared_memory_region"].string_param == place.region
        assert parameters["shared_memory_offset"].int64_param == place.offset
        assert parameters["shared_memory_byte_size"].int64_param == place.size


def test_binary_answer_is_read_as_tritonclient_reads_it() -> None:
    header = orjson.dumps(
        {
            "outputs": [
                {
                    "name": "first",
                    "datatype": "INT64",
                    "shape": [1],
                    "parameters": {"binary_data_size": 8},
                },
                {
                    "name": "second",
                    "datatype": "FP32",
                    "shape": [1, 3],
                    "parameters": {"binary_data_size": 12},
                },
            ]
        }
    )
    body = header + RATE.array.tobytes() + SOUND.array.tobytes()
    theirs = triton_http.InferResult.from_response_body(body, header_length=len(header))
    headers = {bodies.HEADER_LENGTH.lower(): str(len(header))}
    for name in ("first", "second"):
        mine = bodies.decode("http-binary", name, headers, body)
        assert np.array_equal(mine, theirs.as_numpy(name))


def test_json_answer_is_read() -> None:
    data = {"name": "output", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 0.25]}
    body = orjson.dumps({"outputs": [data]})
    assert bodies.decode("http-json", "output", {}, body).tolist() == [[0.5, 0.25]]


def test_grpc_answer_is_read_as_tritonclient_reads_it() -> None:
    response = service_pb2.ModelInferResponse(model_name="silero")
    response.outputs.add(name="output", datatype="FP32", shape=[1, 3])
    response.raw_output_contents.append(SOUND.array.tobytes())
    mine = bodies.decode("grpc", "output", {}, response.SerializeToString())
    assert np.array_equal(mine, triton_grpc.InferResult(response).as_numpy("output"))


@pytest.mark.parametrize("protocol", bodies.PROTOCOLS)
def test_missing_output_is_named(protocol: str) -> None:
    body = b"" if protocol == "grpc" else b'{"outputs": []}'
    with pytest.raises(BenchmarkError, match="no output speech"):
        bodies.decode(protocol, "speech", {}, body)
