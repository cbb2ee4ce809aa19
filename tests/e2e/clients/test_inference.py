"""Inference by all four clients: real models against onnxruntime, every datatype and every
argument of `infer`, `async_infer`, and the helper classes that go with them."""

import asyncio
import queue
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.e2e import graphs
from tests.e2e.clients.conftest import REAL, Sessions, random_inputs
from tests.e2e.clients.kinds import Api, plain
from tests.e2e.tensors import SAMPLES, Array
from tests.e2e.test_real_models import features
from tritonclient.utils import InferenceServerException

HTTP = pytest.mark.parametrize("kind", ["http", "http.aio"])
GRPC = pytest.mark.parametrize("kind", ["grpc", "grpc.aio"])

ONES = np.ones((1, 2), np.float32)
WITH_JSON_FORM = [name for name in SAMPLES if name not in ("FP16", "BF16")]


def same(found: Array, sent: Array) -> bool:
    """Whether arrays are equal bit by bit, and BYTES in value: tritonclient leaves text as it is
    that came as JSON."""
    if sent.dtype == object:
        texts = [x if isinstance(x, bytes) else x.encode() for x in found.flat]
        return texts == list(sent.flat) and found.shape == sent.shape
    return found.tobytes() == sent.tobytes() and found.shape == sent.shape


# -- the right answers


@pytest.mark.parametrize("model", REAL)
async def test_infer(api: Api, sessions: Sessions, model: str) -> None:
    inputs = random_inputs(model)
    result = await api.infer(model, inputs)
    # A configuration has no empty shape, so the scalar of the graph travels as one element.
    feed = inputs | ({"sr": inputs["sr"].reshape(())} if "sr" in inputs else {})
    expected = sessions(model).run(None, feed)
    names = [output.name for output in sessions(model).get_outputs()]
    assert list(api.head(result)["outputs"]) == names
    for name, wanted in zip(names, expected, strict=True):
        # Sums may be taken in another order when threads share the work.
        np.testing.assert_allclose(result.as_numpy(name), wanted, rtol=1e-3, atol=1e-5)


async def test_async_infer(api: Api, sessions: Sessions) -> None:
    """Eight requests in flight, each with its own answer."""
    sent = [random_inputs("magika")["bytes"] for _ in range(8)]
    inputs = [[api.tensor("bytes", x)] for x in sent]
    if api.http:
        running = [await api.call("async_infer", "magika", given) for given in inputs]
        results = [request.get_result(timeout=30) for request in running]
    else:
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for n, given in enumerate(inputs):

            def note(result: Any, error: Any, n: int = n) -> None:
                done.put((n, result, error))

            await api.call("async_infer", "magika", given, note)
        answers = sorted((done.get(timeout=30) for _ in inputs), key=lambda item: item[0])
        assert [error for _, _, error in answers] == [None] * len(inputs)
        results = [result for _, result, _ in answers]
    for x, result in zip(sent, results, strict=True):
        (wanted,) = sessions("magika").run(None, {"bytes": x})
        np.testing.assert_allclose(result.as_numpy("target_label"), wanted, rtol=1e-3, atol=1e-5)


async def test_an_error_of_a_request_in_the_background(api: Api) -> None:
    inputs = [api.tensor("x", ONES)]
    if api.kind == "http":
        request = await api.call("async_infer", "nobody", inputs)
        with pytest.raises(InferenceServerException, match="nobody"):
            request.get_result(timeout=30)
    elif api.kind == "grpc":
        errors: queue.SimpleQueue[Any] = queue.SimpleQueue()
        await api.call("async_infer", "nobody", inputs, lambda result, error: errors.put(error))
        assert errors.get(timeout=30).status() == "StatusCode.NOT_FOUND"
    else:
        task = asyncio.ensure_future(api.call("infer", "nobody", inputs))
        with pytest.raises(InferenceServerException, match="nobody"):
            await task


@pytest.mark.parametrize("kind", ["http.aio", "grpc.aio"])
async def test_requests_side_by_side(api: Api) -> None:
    sent = [np.full((1, 3), n, np.float32) for n in range(30)]
    results = await asyncio.gather(*(api.infer("add", {"x": x}) for x in sent))
    for x, result in zip(sent, results, strict=True):
        np.testing.assert_array_equal(result.as_numpy("y"), x + 2)


@pytest.mark.parametrize("datatype", graphs.ONNX_TYPES)
async def test_every_datatype_comes_back_bit_by_bit(api: Api, datatype: str) -> None:
    sent = SAMPLES[datatype]
    result = await api.call("infer", f"echo_{datatype}", [api.tensor("x", sent, datatype)])
    assert same(result.as_numpy("y"), sent)
    assert api.head(result)["outputs"] == {"y": (datatype, list(sent.shape))}


# aiohttp does not like large bodies in one piece, which is how tritonclient sends them.
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
@pytest.mark.parametrize("shape", [(1, 0), (1, 1), (4, 1), (2, 300_000)])
async def test_sizes(api: Api, shape: tuple[int, int]) -> None:
    sent = np.random.default_rng().random(shape, np.float32)
    found = (await api.infer("add", {"x": sent})).as_numpy("y")
    np.testing.assert_array_equal(found.reshape(shape), sent + np.float32(2))


@pytest.mark.parametrize(("version", "amount"), [("1", 1), ("2", 2), ("", 2)])
async def test_versions(api: Api, version: str, amount: int) -> None:
    result = await api.infer("add", {"x": ONES}, model_version=version, request_id="number-7")
    np.testing.assert_array_equal(result.as_numpy("y"), ONES + amount)
    head = api.head(result)
    assert (head["id"], head["model_name"]) == ("number-7", "add")
    assert head["model_version"] == str(amount)


@pytest.mark.parametrize("wanted", [["sum"], ["difference"], ["difference", "sum"]])
async def test_only_the_requested_outputs_come(api: Api, wanted: list[str]) -> None:
    a, b = np.array([[5, 6]], np.int32), np.array([[1, 2]], np.int32)
    outputs = [api.output(name) for name in wanted]
    result = await api.infer("pair", {"a": a, "b": b}, outputs=outputs)
    expected = {"sum": a + b, "difference": a - b}
    for name in expected:
        if name in wanted:
            np.testing.assert_array_equal(result.as_numpy(name), expected[name])
            assert result.get_output(name) is not None
        else:
            assert result.as_numpy(name) is None


async def test_classification(api: Api, models: Path, sessions: Sessions) -> None:
    """The three best classes with magika's names, largest first, as onnxruntime's output says."""
    labels = (models / "magika" / "labels.txt").read_text().splitlines()
    x = np.stack([features(Path(__file__).read_bytes()), features(b"<html><body></body></html>")])
    output = api.output("target_label", class_count=3)
    result = await api.infer("magika", {"bytes": x}, outputs=[output])
    (scores,) = sessions("magika").run(None, {"bytes": x})
    found = result.as_numpy("target_label")
    assert found.shape == (2, 3)
    for row, probabilities in zip(found, scores, strict=True):
        best = np.argsort(-probabilities, kind="stable")[:3]
        for element, index in zip(row, best, strict=True):
            value, number, label = element.decode().split(":")
            assert (int(number), label) == (index, labels[index])
            assert float(value) == pytest.approx(probabilities[index], abs=1e-3)
    assert found[0, 0].endswith(b":python")


# -- what goes along


async def test_parameters_of_every_type_reach_the_model_and_come_back(api: Api) -> None:
    sent = {
        "flag": True,
        "count": -(2**62),
        "ratio": 0.1,
        "text": "Gr\u00fc\u00dfe \U0001f30a",
        "no": "",
    }
    head = api.head(await api.infer("tell", {"x": ONES[0]}, parameters=sent))
    told = {k: v for k, v in head["parameters"].items() if not k.startswith("server.")}
    assert told == sent
    assert {k: type(v) for k, v in told.items()} == {k: type(v) for k, v in sent.items()}


@pytest.mark.parametrize("sequence", [0, 7, 2**63 - 1, "a sequence"])
async def test_sequence_priority_and_timeout_are_the_servers(api: Api, sequence: Any) -> None:
    result = await api.infer(
        "tell",
        {"x": ONES[0]},
        sequence_id=sequence,
        sequence_start=True,
        sequence_end=True,
        priority=2**64 - 1,
        timeout=2_000_000,
    )
    assert api.head(result)["parameters"] == {
        "server.sequence_id": sequence,
        # A client that has no sequence leaves the flags out.
        "server.sequence_start": bool(sequence),
        "server.sequence_end": bool(sequence),
        "server.priority": 2**64 - 1,
        "server.timeout": 2_000_000,
    }


async def test_headers_that_are_forwarded(api: Api) -> None:
    headers = {"x-test-one": "1", "other": "2"}
    head = api.head(await api.infer("tell", {"x": ONES[0]}, headers=headers))
    assert head["parameters"]["x-test-one"] == "1"
    assert "other" not in head["parameters"]


async def test_reserved_parameters_are_refused(api: Api) -> None:
    for name in ("sequence_id", "headers", "triton_x"):
        with pytest.raises(InferenceServerException, match=r"reserved|cannot be specified"):
            await api.infer("add", {"x": ONES}, parameters={name: 1})


# -- errors

BAD_REQUESTS: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "unknown model": ({"model": "nobody"}, 404, "NOT_FOUND", "nobody"),
    "unknown version": ({"version": "9"}, 404, "NOT_FOUND", "known versions are 1, 2"),
    "unknown input": ({"input": "z"}, 400, "INVALID_ARGUMENT", "no input 'z'"),
    "unknown output": ({"output": "z"}, 400, "INVALID_ARGUMENT", "no output 'z'"),
    "wrong datatype": (
        {"values": np.ones((1, 2), np.int32)},
        400,
        "INVALID_ARGUMENT",
        "takes FP32",
    ),
    "wrong rank": ({"values": np.ones(2, np.float32)}, 400, "INVALID_ARGUMENT", "[-1, -1]"),
    "batch too large": (
        {"values": np.ones((5, 1), np.float32)},
        400,
        "INVALID_ARGUMENT",
        "1 to 4",
    ),
    "decoupled": ({"model": "repeat"}, 501, "UNIMPLEMENTED", "decoupled"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
async def test_errors_reach_the_client_with_status_and_reason(api: Api, case: str) -> None:
    options, status, code, text = BAD_REQUESTS[case]
    inputs = [api.tensor(options.get("input", "x"), options.get("values", ONES))]
    if case == "decoupled":
        one = np.array([1], np.int32)
        inputs = [api.tensor("IN", one)]
        inputs += [api.tensor(name, one.astype(np.uint32)) for name in ("DELAY", "WAIT")]
    said = await api.refused(
        status,
        code,
        "infer",
        options.get("model", "add"),
        inputs,
        model_version=options.get("version", ""),
        outputs=[] if case == "decoupled" else [api.output(options.get("output", "y"))],
    )
    assert text in said


# -- HTTP alone


@pytest.mark.parametrize(
    ("sent_binary", "asked_binary"), [(True, True), (True, False), (False, True), (False, False)]
)
@pytest.mark.parametrize("datatype", WITH_JSON_FORM)
@pytest.mark.parametrize("kind", ["http"])
async def test_json_and_binary_in_every_mix(
    api: Api, datatype: str, sent_binary: bool, asked_binary: bool
) -> None:
    sent = SAMPLES[datatype]
    result = await api.call(
        "infer",
        f"echo_{datatype}",
        [api.tensor("x", sent, datatype, binary_data=sent_binary)],
        outputs=[api.output("y", binary_data=asked_binary)],
    )
    output = result.get_output("y")
    assert ("data" in output, "parameters" in output) == (not asked_binary, asked_binary)
    found = result.as_numpy("y")
    if datatype in ("FP32", "FP64") and not (sent_binary and asked_binary):
        # JSON has one NaN.
        np.testing.assert_array_equal(found, sent)
    else:
        assert same(found, sent)


@HTTP
@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
async def test_half_floats_have_no_json_form(api: Api, datatype: str) -> None:
    inputs = [api.tensor("x", SAMPLES[datatype], datatype)]
    outputs = [api.output("y", binary_data=False)]
    text = await api.refused(400, "", "infer", f"echo_{datatype}", inputs, outputs=outputs)
    assert "binary" in text


@HTTP
async def test_one_input_as_json_and_one_as_binary(api: Api) -> None:
    a, b = np.array([[5, 6]], np.int32), np.array([[1, 2]], np.int32)
    result = await api.call(
        "infer",
        "pair",
        [api.tensor("a", a, binary_data=False), api.tensor("b", b, binary_data=True)],
        outputs=[api.output("sum"), api.output("difference", binary_data=False)],
    )
    np.testing.assert_array_equal(result.as_numpy("sum"), a + b)
    np.testing.assert_array_equal(result.as_numpy("difference"), a - b)


async def test_generate_request_body(api: Api) -> None:
    """A body made offline, sent by another client."""
    body, length = await api.call("generate_request_body", [api.tensor("x", ONES)])
    headers = {"Inference-Header-Content-Length": str(length)}
    reply = api.server.call("POST", "/v2/models/add/infer", body, headers)
    head = int(reply.headers["Inference-Header-Content-Length"])
    assert reply.body[head:] == (ONES + 2).tobytes()


async def test_parse_response_body(api: Api) -> None:
    """An answer that another client got, read offline."""
    x = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    document = {"inputs": [x], "parameters": {"binary_data_output": True}}
    reply = api.server.post("/v2/models/add/infer", document)
    head = int(reply.headers["Inference-Header-Content-Length"])
    result = await api.call("parse_response_body", reply.body, header_length=head)
    np.testing.assert_array_equal(result.as_numpy("y"), [[3, 4]])


@HTTP
@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_compression_over_http(api: Api, algorithm: str) -> None:
    sent = np.zeros((2, 5000), np.float32)
    result = await api.infer(
        "add",
        {"x": sent},
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    np.testing.assert_array_equal(result.as_numpy("y"), sent + 2)


@HTTP
async def test_query_parameters_change_nothing(api: Api) -> None:
    query = {"a": "1", "b": ["2", "3"]}
    assert await api.call("is_server_live", query_params=query)
    result = await api.infer("add", {"x": ONES}, query_params=query)
    np.testing.assert_array_equal(result.as_numpy("y"), ONES + 2)


@pytest.mark.parametrize("kind", ["http"])
async def test_a_raw_body_is_the_only_input(api: Api) -> None:
    x = np.array([1, 2, 3], np.float32)
    headers = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
    reply = api.server.call("POST", "/v2/models/add/infer", x.tobytes(), headers)
    head = int(reply.headers["Inference-Header-Content-Length"])
    result = api.module.InferResult.from_response_body(reply.body, header_length=head)
    np.testing.assert_array_equal(result.as_numpy("y"), [x + 2])


# -- gRPC alone


@GRPC
@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_compression_over_grpc(api: Api, algorithm: str) -> None:
    sent = np.zeros((2, 5000), np.float32)
    result = await api.infer("add", {"x": sent}, compression_algorithm=algorithm)
    np.testing.assert_array_equal(result.as_numpy("y"), sent + 2)


@GRPC
async def test_a_deadline_ends_the_call_and_frees_the_server(api: Api) -> None:
    inputs = [api.tensor("INPUT0", ONES)]
    text = await api.refused(0, "DEADLINE_EXCEEDED", "infer", "slow", inputs, client_timeout=0.02)
    assert "Deadline Exceeded" in text
    result = await api.call("infer", "slow", inputs, client_timeout=30)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), ONES)


@GRPC
async def test_results_as_messages_and_as_json(api: Api) -> None:
    result = await api.infer("tell", {"x": ONES[0]}, parameters={"n": 1})
    assert plain(result.get_response().parameters)["n"] == 1
    assert result.get_response(as_json=True)["parameters"]["n"] == {"int64_param": "1"}
    assert result.get_output("y").datatype == "FP32"
    message = await api.call("get_model_metadata", "tell", as_json=False)
    assert [tensor.name for tensor in message.inputs] == ["x"]


@pytest.mark.parametrize("kind", ["http.aio", "grpc.aio"])
async def test_a_client_that_gives_up_leaves_the_server_well(api: Api) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(api.infer("slow", {"INPUT0": ONES}), 0.02)
    result = await api.infer("slow", {"INPUT0": ONES})
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), ONES)
