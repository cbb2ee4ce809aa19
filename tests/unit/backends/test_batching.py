"""Gather and scatter are each other's inverse, and refuse what does not fit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad_backends.api import Array, Request, Tensor
from naiad_backends.batching import batch_sizes, gather, scatter, stackable, wanted_outputs
from naiad_backends.errors import Code, NaiadError

sizes = st.lists(st.integers(1, 4), min_size=1, max_size=5)
rests = st.lists(st.integers(0, 3), max_size=2).map(tuple)


def request(array: Array, encoded: bool = False, name: str = "x") -> Request:
    tensor = Tensor.from_numpy(name, array)
    if encoded:
        tensor = Tensor.from_wire(name, tensor.datatype, tensor.shape, bytes(tensor.wire()))
    return Request("m", inputs={name: tensor})


@given(sizes, rests, st.data())
def test_gather_then_scatter(sizes: list[int], rest: tuple[int, ...], data: st.DataObject) -> None:
    arrays = [np.random.default_rng(i).random((n, *rest)) for i, n in enumerate(sizes)]
    requests = [request(array, data.draw(st.booleans())) for array in arrays]
    assert stackable(requests)
    assert batch_sizes(requests) == sizes
    whole = gather(requests, "x")
    np.testing.assert_array_equal(whole, np.concatenate(arrays))
    for part, array in zip(scatter("y", whole, sizes), arrays, strict=True):
        np.testing.assert_array_equal(part, array)
        assert part.size == 0 or np.shares_memory(part, whole)


@given(st.lists(st.lists(st.binary(max_size=3), min_size=1, max_size=3), min_size=1, max_size=4))
def test_gather_bytes(rows: list[list[bytes]]) -> None:
    requests = [request(np.array(row, object), encoded=True) for row in rows]
    assert gather(requests, "x").tolist() == [element for row in rows for element in row]


def test_a_single_request_is_not_copied() -> None:
    array = np.zeros((2, 3))
    assert gather([request(array)], "x") is array


def test_what_cannot_be_stacked() -> None:
    base = request(np.zeros((1, 3)))
    assert not stackable([base, request(np.zeros((1, 4)))])
    assert not stackable([base, request(np.zeros((1, 3)), name="z")])
    assert not stackable([base, Request("m")])


@pytest.mark.parametrize("array", [np.zeros(()), np.zeros((4, 2)), np.zeros((2, 2))])
def test_an_output_without_the_batch_is_the_models_fault(array: Array) -> None:
    with pytest.raises(NaiadError, match=r"output 'y' .* holds 3 elements") as caught:
        scatter("y", array, [1, 2])
    assert caught.value.code is Code.INTERNAL


def test_wanted_outputs_is_the_union_in_the_models_order() -> None:
    names = ["a", "b", "c"]
    some = [Request("m", outputs=["c"]), Request("m", outputs=["a"])]
    assert wanted_outputs(some, names) == ["a", "c"]
    assert wanted_outputs([*some, Request("m")], names) == names
