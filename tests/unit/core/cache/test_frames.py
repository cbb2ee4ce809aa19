"""Frames give back every answer as it was, and nothing else is taken for one."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.e2e.tensors import SAMPLES

from naiad.core.cache.frames import BrokenFrame, read, write
from naiad_backends.api import Parameter, Response, Tensor

KEY = bytes(range(32))

parameters = st.dictionaries(
    st.text(), st.one_of(st.booleans(), st.integers(), st.floats(), st.text())
)


def answer(**more: Parameter) -> Response:
    outputs = [
        Tensor.from_numpy(name, np.array(array), "BF16" if name == "BF16" else None)
        for name, array in SAMPLES.items()
        if name != "BF16"
    ]
    bits = SAMPLES["BF16"].view(np.uint16)
    return Response([*outputs, Tensor.from_numpy("BF16", bits, "BF16")], more)


def test_all_datatypes_come_back() -> None:
    given = answer()
    found = read(KEY, write(KEY, given))
    for old, new in zip(given.outputs, found.outputs, strict=True):
        assert (old.name, old.datatype, old.shape) == (new.name, new.datatype, new.shape)
        assert bytes(old.wire()) == bytes(new.wire())


@given(parameters)
def test_parameters_come_back_with_their_types(values: dict[str, Parameter]) -> None:
    found = read(KEY, write(KEY, Response([], values))).parameters
    assert repr(found) == repr(values)


def test_nothing_but_the_whole_is_a_frame() -> None:
    frame = write(KEY, answer(number=math.inf))
    for size in range(0, len(frame), 7):
        with pytest.raises(BrokenFrame):
            read(KEY, frame[:size])
    with pytest.raises(BrokenFrame):
        read(KEY, frame + b"\0")


@given(st.binary(), st.booleans())
def test_garbage_is_no_frame(data: bytes, marked: bool) -> None:
    with pytest.raises(BrokenFrame):
        read(KEY, b"NRC1" + data if marked else data)


def test_a_frame_is_for_one_key() -> None:
    with pytest.raises(BrokenFrame, match="another request"):
        read(bytes(32), write(KEY, answer()))


@pytest.mark.parametrize(
    ("outputs", "values"),
    [
        ([["a", "FP32", [2], 4]], {}),
        ([["a", "FP32", [-1], 4]], {}),
        ([["a", "FP32", [1.0], 4]], {}),
        ([["a", "FP32", 1, 4]], {}),
        ([["a", "FP31", [1], 4]], {}),
        ([["a", ["FP32"], [1], 4]], {}),
        ([[1, "FP32", [1], 4]], {}),
        ([["a", "FP32", [1]]], {}),
        ([["a", "BYTES", [1], 4]], {}),
        ([["a", "FP32", [1], "4"]], {}),
        ([], {}),
        ([["a", "FP32", [1], 4]], []),
        ([["a", "FP32", [1], 4]], {"a": None}),
        ([["a", "FP32", [1], 4]], {"a": [1]}),
        (None, {}),
    ],
)
def test_a_head_that_does_not_fit_is_refused(outputs: Any, values: Any) -> None:
    head = json.dumps({"key": KEY.hex(), "outputs": outputs, "parameters": values}).encode()
    frame = b"NRC1" + len(head).to_bytes(4, "little") + head + b"\1\2\3\4"
    with pytest.raises(BrokenFrame):
        read(KEY, frame)
