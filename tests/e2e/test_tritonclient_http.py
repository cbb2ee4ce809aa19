"""tritonclient over HTTP: tensors as JSON, as binary data and mixed, and compressed answers."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from tests.e2e.process import ServerProcess
from tests.e2e.tensors import SAMPLES, Array
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

WITH_JSON_FORM = [name for name in SAMPLES if name not in ("FP16", "BF16")]


@pytest.fixture(scope="module")
def client(client_server: ServerProcess) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(client_server.http) as client:
        yield client


def infer_input(name: str, values: Array, datatype: str, binary: bool) -> Any:
    tensor = InferInput(name, list(values.shape), datatype)
    return tensor.set_data_from_numpy(values, binary_data=binary)


@pytest.mark.parametrize(
    ("sent_binary", "asked_binary"), [(True, True), (True, False), (False, True), (False, False)]
)
@pytest.mark.parametrize("datatype", WITH_JSON_FORM)
def test_json_and_binary_in_every_mix(
    client: InferenceServerClient, datatype: str, sent_binary: bool, asked_binary: bool
) -> None:
    sent = SAMPLES[datatype]
    result = client.infer(
        f"echo_{datatype}",
        [infer_input("x", sent, datatype, sent_binary)],
        outputs=[InferRequestedOutput("y", binary_data=asked_binary)],
    )
    (output,) = result.get_response()["outputs"]
    assert ("data" in output, "parameters" in output) == (not asked_binary, asked_binary)
    found = result.as_numpy("y")
    assert found.shape == sent.shape
    if datatype == "BYTES":
        # tritonclient leaves text that came as JSON as it is.
        assert [x if isinstance(x, bytes) else x.encode() for x in found.flat] == list(sent.flat)
    else:
        np.testing.assert_array_equal(found, sent)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_have_no_json_form(client: InferenceServerClient, datatype: str) -> None:
    with pytest.raises(InferenceServerException, match="binary"):
        client.infer(
            f"echo_{datatype}",
            [infer_input("x", SAMPLES[datatype], datatype, binary=True)],
            outputs=[InferRequestedOutput("y", binary_data=False)],
        )


def test_one_input_as_json_and_one_as_binary(client: InferenceServerClient) -> None:
    a, b = np.array([[5, 6]], np.int32), np.array([[1, 2]], np.int32)
    result = client.infer(
        "pair",
        [infer_input("a", a, "INT32", binary=False), infer_input("b", b, "INT32", binary=True)],
        outputs=[
            InferRequestedOutput("sum", binary_data=True),
            InferRequestedOutput("difference", binary_data=False),
        ],
    )
    np.testing.assert_array_equal(result.as_numpy("sum"), a + b)
    np.testing.assert_array_equal(result.as_numpy("difference"), a - b)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_client_that_takes_compressed_answers(
    client: InferenceServerClient, algorithm: str
) -> None:
    sent = np.zeros((1, 5000), np.float32)
    result = client.infer(
        "add",
        [infer_input("x", sent, "FP32", binary=True)],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    np.testing.assert_array_equal(result.as_numpy("y"), sent + 2)


def test_bodies_made_and_read_offline(client_server: ServerProcess) -> None:
    x = np.array([[1, 2]], np.float32)
    body, length = InferenceServerClient.generate_request_body([infer_input("x", x, "FP32", True)])
    headers = {"Inference-Header-Content-Length": str(length)}
    reply = client_server.call("POST", "/v2/models/add/infer", body, headers)
    result = InferenceServerClient.parse_response_body(
        reply.body, header_length=int(reply.headers["Inference-Header-Content-Length"])
    )
    np.testing.assert_array_equal(result.as_numpy("y"), x + 2)


def test_a_raw_body_is_the_only_input(client_server: ServerProcess) -> None:
    x = np.array([1, 2, 3], np.float32)
    reply = client_server.call(
        "POST",
        "/v2/models/add/infer",
        x.tobytes(),
        {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"},
    )
    head = int(reply.headers["Inference-Header-Content-Length"])
    np.testing.assert_array_equal(np.frombuffer(reply.body[head:], np.float32), x + 2)


def test_a_model_that_is_not_there_is_not_ready(client: InferenceServerClient) -> None:
    assert not client.is_model_ready("nobody")
    assert not client.is_model_ready("add", "9")


def test_a_client_with_a_url_prefix_gets_a_readable_error(client_server: ServerProcess) -> None:
    with (
        tritonclient.http.InferenceServerClient(f"{client_server.http}/base") as client,
        pytest.raises(InferenceServerException, match="no such path"),
    ):
        client.get_server_metadata()
