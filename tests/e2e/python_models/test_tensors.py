"""Tensors in and out of models: every type, texts, batches, large ones, DLPack."""

import asyncio
import subprocess
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc.aio
from tests.e2e.process import ServerProcess
from tests.e2e.python_models.client import Client, Failed, Models
from tests.e2e.tensors import SAMPLES, Array


def test_add_sub(models: Models, kind: str, either_client: Client) -> None:
    a, b = np.arange(4, dtype=np.float32), np.full(4, 0.5, np.float32)
    result = either_client.infer(models.get("add_sub", kind), {"INPUT0": a, "INPUT1": b})
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), a + b)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), a - b)


def test_curl(models: Models, kind: str, python_server: ServerProcess) -> None:
    name = models.get("add_sub", kind)
    body = (
        '{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1],"data":[2]},'
        '{"name":"INPUT1","datatype":"FP32","shape":[1],"data":[5]}],"outputs":[{"name":"OUTPUT1"}]}'
    )
    url = f"http://{python_server.http}/v2/models/{name}/infer"
    done = subprocess.run(["curl", "-sS", url, "-d", body], capture_output=True, check=True)
    assert b'"data":[-3.0]' in done.stdout and b"OUTPUT0" not in done.stdout


def test_only_the_wanted_outputs(models: Models, kind: str, either_client: Client) -> None:
    x = np.ones(2, np.float32)
    name = models.get("add_sub", kind)
    result = either_client.infer(name, {"INPUT0": x, "INPUT1": x}, ["OUTPUT1"])
    assert either_client.names(result) == ["OUTPUT1"]


def same_bits(a: Array, b: Array) -> bool:
    return a.tobytes() == b.tobytes()


@pytest.mark.parametrize("datatype", SAMPLES)
def test_every_type(models: Models, kind: str, either_client: Client, datatype: str) -> None:
    """Also that optional inputs which are not given are absent."""
    sample = SAMPLES[datatype]
    result = either_client.infer(models.get("every_type", kind), {f"IN_{datatype}": sample})
    assert either_client.names(result) == [f"OUT_{datatype}"]
    found = result.as_numpy(f"OUT_{datatype}")
    assert (found.dtype, found.shape) == (sample.dtype, sample.shape)
    # Bit by bit, because a NaN is not equal to itself.
    assert found.tolist() == sample.tolist() if datatype == "BYTES" else same_bits(found, sample)


def test_many_types_at_once(models: Models, kind: str, either_client: Client) -> None:
    name = models.get("every_type", kind)
    inputs = {f"IN_{t}": SAMPLES[t] for t in ("BYTES", "FP16", "BOOL", "INT64")}
    result = either_client.infer(name, inputs)
    for given, array in inputs.items():
        output = given.replace("IN_", "OUT_")
        np.testing.assert_array_equal(result.as_numpy(output), array)


def test_tensors_without_elements(models: Models, kind: str, either_client: Client) -> None:
    name = models.get("every_type", kind)
    for datatype in ("FP32", "BYTES"):
        empty = np.zeros((0, 3), SAMPLES[datatype].dtype)
        found = either_client.infer(name, {f"IN_{datatype}": empty}).as_numpy(f"OUT_{datatype}")
        assert found.shape == (0, 3)


@pytest.mark.parametrize("form", ["str", "bytes", "bytes_"])
def test_texts(models: Models, kind: str, either_client: Client, form: str) -> None:
    texts = ["gr\u00fc\u00df", "", "\u4f60\u597d", "plain", "a longer one", "x"]
    array = np.array([t.encode() for t in texts], object).reshape(2, 3)
    result = either_client.infer(
        models.get("strings", kind), {"text": array}, parameters={"form": form}
    )
    expected = np.array([t.upper().encode() for t in texts], object).reshape(2, 3)
    np.testing.assert_array_equal(result.as_numpy("upper"), expected)


def test_numpy_texts_are_refused(models: Models, kind: str, client: Client) -> None:
    text = np.array([[b"a"]], object)
    with pytest.raises(Failed, match=r"<U1.*use dtype object or bytes_"):
        client.infer(models.get("strings", kind), {"text": text}, parameters={"form": "unicode"})


async def rows(server: ServerProcess, name: str, values: list[Array]) -> list[Any]:
    async with tritonclient.grpc.aio.InferenceServerClient(server.grpc) as client:

        async def one(array: Array) -> Any:
            tensor = tritonclient.grpc.aio.InferInput("x", list(array.shape), "FP32")
            return await client.infer(name, [tensor.set_data_from_numpy(array)])

        return await asyncio.gather(*map(one, values), return_exceptions=True)


def test_a_batch_of_several_requests(
    models: Models, kind: str, python_server: ServerProcess
) -> None:
    """They come together, each gets its own rows, and what is wrong with one is its own."""
    name = models.get("batched", kind)
    values = [np.full((n, 2), v, np.float32) for v, n in ((1, 1), (2, 3), (-1, 2), (3, 2))]
    results = asyncio.run(rows(python_server, name, values))
    for value, result in zip(values, results, strict=True):
        if value[0, 0] < 0:
            assert isinstance(result, Failed)
            assert (result.message(), result.status()) == (
                "negative",
                "StatusCode.INVALID_ARGUMENT",
            )
            continue
        np.testing.assert_array_equal(result.as_numpy("y"), 2 * value)
        np.testing.assert_array_equal(result.as_numpy("requests"), np.full((len(value), 1), 4))


def test_large_tensors(models: Models, kind: str, either_client: Client) -> None:
    """16 MB each, twice in and twice out, and once more, so that memory is used again."""
    a = np.arange(4 << 20, dtype=np.float32)
    name = models.get("add_sub", kind)
    for number in range(2):
        b = np.full_like(a, number)
        result = either_client.infer(name, {"INPUT0": a, "INPUT1": b})
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), a + b)
        np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), a - b)


def test_torch(models: Models, either_client: Client) -> None:
    """PyTorch computes on what came and its tensors go out, with BF16, by DLPack both ways."""
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    name = models.get("with_torch")
    result = either_client.infer(name, {"x": x})
    assert either_client.names(result) == ["y"]
    np.testing.assert_array_equal(result.as_numpy("y"), 2 * x)
    half = (x + 0.5).astype(ml_dtypes.bfloat16)
    result = either_client.infer(name, {"x": x, "half": half})
    np.testing.assert_array_equal(result.as_numpy("y"), 2 * x)
    np.testing.assert_array_equal(result.as_numpy("half_y"), 2 * half)
