"""Remembered JSON parts: a request read from memory is the request that `v2` would read."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.core.shared_memory import NO_REGIONS
from naiad.http import v2
from naiad.http.remembered import Decoder, Encoder
from naiad_backends.api import Request, Response, Tensor
from naiad_backends.errors import NaiadError

LIMIT = 1 << 20


def body(document: dict[str, Any], *arrays: np.ndarray[Any, Any]) -> tuple[bytes, int]:
    head = json.dumps(document).encode()
    return head + b"".join(array.tobytes() for array in arrays), len(head)


def asked(*shapes: tuple[int, ...], **rest: Any) -> dict[str, Any]:
    inputs = [
        {
            "name": f"x{number}",
            "datatype": "FP32",
            "shape": list(shape),
            "parameters": {"binary_data_size": 4 * int(np.prod(shape))},
        }
        for number, shape in enumerate(shapes)
    ]
    return {"inputs": inputs, **rest}


def same(left: Request, right: Request) -> None:
    assert replace(left, inputs={}) == replace(right, inputs={})
    assert list(left.inputs) == list(right.inputs)
    for name, tensor in left.inputs.items():
        other = right.inputs[name]
        assert (tensor.datatype, tensor.shape) == (other.datatype, other.shape)
        np.testing.assert_array_equal(tensor.numpy(), other.numpy())


FLAT: dict[str, Any] = {"binary_data_output": True, "priority": 3, "timeout": 7, "own": 1.5}
SHAPES = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=3)


@given(
    SHAPES,
    st.dictionaries(st.sampled_from(sorted(FLAT)), st.none(), max_size=4),
    st.sampled_from(
        [
            None,
            [],
            [{"name": "y", "parameters": {"binary_data": True}}],
            [{"name": "y", "parameters": {"classification": 2}}],
        ]
    ),
    st.sampled_from(["", "id"]),
)
def test_it_reads_what_v2_reads(
    shapes: list[tuple[int, int]], names: dict[str, None], outputs: Any, identifier: str
) -> None:
    document = asked(*shapes, parameters={name: FLAT[name] for name in names}, outputs=outputs)
    if identifier:
        document["id"] = identifier
    decoder = Decoder(LIMIT)
    for model in ("m", "other"):
        arrays = [np.random.default_rng().random(shape, np.float32) for shape in shapes]
        data, length = body(document, *arrays)
        request, form = decoder.decode(model, "1", data, length, NO_REGIONS)
        expected, expected_form = v2.decode(model, "1", data, length, LIMIT)
        same(request, expected)
        assert (form.binary, form.by_name) == (expected_form.binary, expected_form.by_name)


def test_what_comes_again_is_not_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(LIMIT)
    data, length = body(asked((1, 2)), np.ones((1, 2), np.float32))
    decoder.decode("m", "", data, length, NO_REGIONS)
    monkeypatch.delattr(v2, "decode")
    request, _ = decoder.decode("m", "", data, length, NO_REGIONS)
    assert request.inputs["x0"].numpy().tolist() == [[1, 1]]


@pytest.mark.parametrize("cut", [-4, 4])
def test_the_bytes_behind_it_are_counted_each_time(cut: int) -> None:
    decoder = Decoder(LIMIT)
    data, length = body(asked((1, 2)), np.ones((1, 2), np.float32))
    decoder.decode("m", "", data, length, NO_REGIONS)
    wrong = data[:cut] if cut < 0 else data + b"\0" * cut
    with pytest.raises(NaiadError, match="body"):
        decoder.decode("m", "", wrong, length, NO_REGIONS)


def test_strings_are_looked_at_each_time() -> None:
    tensor = {"name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}
    head = json.dumps({"inputs": [tensor]}).encode()
    decoder = Decoder(LIMIT)
    decoder.decode("m", "", head + b"\1\0\0\0a", len(head), NO_REGIONS)
    with pytest.raises(NaiadError, match="cut off"):
        decoder.decode("m", "", head + b"\2\0\0\0a", len(head), NO_REGIONS)


RESPONSES = st.lists(
    st.tuples(st.sampled_from(["FP32", "BYTES"]), st.lists(st.integers(0, 3), max_size=3)),
    max_size=3,
)


def answer(kinds: list[tuple[str, list[int]]], model: str) -> Response:
    tensors = []
    for number, (datatype, shape) in enumerate(kinds):
        array = np.random.default_rng().random(shape, np.float32)
        if datatype == "BYTES":
            array = np.array([b"%f" % value for value in array.ravel()], object).reshape(shape)
        tensors.append(Tensor.from_numpy(f"y{number}", array, datatype))
    return Response(tensors, model_name=model, model_version="1")


@given(st.lists(RESPONSES, min_size=1, max_size=4), st.booleans(), st.sampled_from(["", "id"]))
def test_it_writes_what_v2_writes(
    answers: list[list[tuple[str, list[int]]]], binary: bool, identifier: str
) -> None:
    encoder = Encoder()
    form = v2.OutputForm(binary, {"y1": True})
    for kinds in answers * 2:
        for model in ("m", "other"):
            response, request = answer(kinds, model), Request(model, id=identifier)
            head, parts = encoder.encode(request, response, form)
            expected, expected_parts = v2.encode(request, response, form)
            assert head == expected
            assert list(map(bytes, parts)) == list(map(bytes, expected_parts))


def test_memory_is_bounded() -> None:
    decoder = Decoder(LIMIT)
    for number in range(2000):
        data, length = body(asked((1, 1), parameters={"n": number}), np.ones((1, 1), np.float32))
        decoder.decode("m", "", data, length, NO_REGIONS)
    assert len(decoder._known) <= 512
