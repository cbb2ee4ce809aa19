"""Classification against a plain sort, its text form, labels, and what cannot be classified."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.core.classification import MAX_ELEMENTS, classify
from naiad_backends.api import Array, Tensor
from naiad_backends.datatypes import DATATYPES
from naiad_backends.errors import Code, NaiadError

INTEGERS = [name for name in DATATYPES if "INT" in name]


def texts(array: Array, count: int, labels: tuple[bytes, ...] = (), batched: bool = False) -> Array:
    return classify(Tensor.from_numpy("y", array), count, labels, batched).numpy()


def plainly(row: Sequence[float], count: int, form: str) -> list[bytes]:
    """Sorted as numbers are, and NaN, which has no order, behind them."""
    numbers = [i for i, value in enumerate(row) if not math.isnan(value)]
    order = sorted(numbers, key=lambda i: (-row[i], i))
    order += [i for i, value in enumerate(row) if math.isnan(value)]
    return [f"{row[i]:{form}}:{i}".encode() for i in order[:count]]


@given(
    st.lists(st.sampled_from([0.0, 1.5, -1.5, math.inf, -math.inf]) | st.floats(width=32)),
    st.integers(1, 12),
)
def test_floats_as_by_a_plain_sort(values: list[float], count: int) -> None:
    assert list(texts(np.array(values, np.float32), count)) == plainly(values, count, ".6f")


@given(st.data(), st.sampled_from(INTEGERS))
def test_batches_of_integers_as_by_a_plain_sort(data: st.DataObject, datatype: str) -> None:
    kind = DATATYPES[datatype].numpy
    limits = np.iinfo(kind.str)
    batch, size, count = (data.draw(st.integers(low, 5)) for low in (1, 0, 1))
    edges = st.sampled_from([limits.min, limits.max])
    row = st.lists(
        edges | st.integers(int(limits.min), int(limits.max)), min_size=size, max_size=size
    )
    rows = data.draw(st.lists(row, min_size=batch, max_size=batch))
    found = texts(np.array(rows, kind).reshape(batch, size), count, batched=True)
    assert found.shape == (batch, min(count, size))
    assert found.tolist() == [plainly(row, count, "d") for row in rows]


def test_the_form_of_a_class() -> None:
    labels = (b"cat", b"", "bär".encode())
    row = np.array([0.1, 0.4, 0.3, 0.2], np.float64)
    assert list(texts(row, 9, labels)) == [
        b"0.400000:1",
        "0.300000:2:bär".encode(),
        b"0.200000:3",
        b"0.100000:0:cat",
    ]


def test_an_item_is_all_that_is_no_batch() -> None:
    array = np.arange(12, dtype=np.int32).reshape(2, 2, 3)
    assert texts(array, 2).tolist() == [b"11:11", b"10:10"]
    assert texts(array, 2, batched=True).tolist() == [[b"5:5", b"4:4"], [b"11:5", b"10:4"]]
    assert texts(np.array(7, np.int8), 1).tolist() == [b"7:0"]


def test_the_result_is_bytes_under_the_same_name() -> None:
    tensor = classify(Tensor.from_numpy("y", np.zeros((1, 2), np.uint8)), 2**63, (), True)
    assert (tensor.name, tensor.datatype, tensor.shape) == ("y", "BYTES", (1, 2))


@pytest.mark.parametrize("datatype", ["BOOL", "FP16", "BF16", "BYTES"])
def test_datatypes_without_classes(datatype: str) -> None:
    tensor = Tensor.from_numpy("y", np.zeros(2, DATATYPES[datatype].numpy), datatype)
    with pytest.raises(NaiadError, match=f"'y' is {datatype}") as caught:
        classify(tensor, 1, (), False)
    assert caught.value.code is Code.INVALID_ARG


def test_the_most_elements_count_for_each_item() -> None:
    most = np.zeros((2, MAX_ELEMENTS), np.int8)
    assert texts(most, 1, batched=True).tolist() == [[b"0:0"], [b"0:0"]]
    with pytest.raises(NaiadError, match=f"has {2 * MAX_ELEMENTS} elements") as caught:
        texts(most, 1)
    assert caught.value.code is Code.INVALID_ARG
