"""Ragged batches: the examples of the configuration's reference, and parts that add up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad_backends.api import BatchInput, BatchInputKind, Request, Tensor, TensorSpec
from naiad_backends.errors import NaiadError
from naiad_backends.ragged import batch_input, flatten, split

Shape = tuple[int, ...]


def asked(*shapes: Shape) -> list[Request]:
    """Requests whose input x has these shapes, counting up over all of them."""
    requests, at = [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        array = np.arange(at, at + size, dtype=np.float32).reshape(shape)
        requests.append(Request("m", inputs={"x": Tensor.from_numpy("x", array)}))
        at += size
    return requests


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("BATCH_ELEMENT_COUNT", [2, 3, 1]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT", [2, 5, 6]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", [0, 2, 5, 6]),
    ],
)
@pytest.mark.parametrize(("datatype", "dtype"), [("INT32", np.int32), ("FP32", np.float32)])
def test_counts(kind: str, expected: list[int], datatype: str, dtype: type) -> None:
    made = BatchInput(BatchInputKind(kind), ("n",), datatype, "x")
    array = batch_input(made, asked((1, 2), (1, 3), (1, 1)), True)
    assert array.tolist() == expected and array.dtype == dtype


def test_the_largest_count_is_a_shape() -> None:
    made = BatchInput(BatchInputKind.MAX_ELEMENT_COUNT_AS_SHAPE, ("n",), "FP32", "x")
    assert batch_input(made, asked((1, 2), (1, 3), (1, 1)), True).shape == (3,)


def test_shapes_of_items() -> None:
    requests = asked((2, 3, 1), (1, 2, 2))
    made = BatchInput(BatchInputKind.ITEM_SHAPE, ("n",), "INT32", "x")
    assert batch_input(made, requests, True).tolist() == [[3, 1], [3, 1], [2, 2]]
    made = BatchInput(BatchInputKind.ITEM_SHAPE_FLATTEN, ("n",), "INT32", "x")
    assert batch_input(made, requests, True).tolist() == [3, 1, 3, 1, 2, 2]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5)), min_size=1, max_size=5))
def test_what_is_put_together_comes_apart_again(shapes: list[tuple[int, int]]) -> None:
    requests = asked(*shapes)
    flat = flatten(requests, "x")
    assert flat.tolist() == list(range(flat.size))
    parts = split(TensorSpec("y", "FP32", (-1,)), flat, requests, "x", True)
    for part, request in zip(parts, requests, strict=True):
        np.testing.assert_array_equal(part, request.inputs["x"].numpy())


def test_an_output_of_another_size_is_an_error() -> None:
    output = TensorSpec("y", "FP32", (-1,))
    with pytest.raises(NaiadError, match=r"has 4 elements.* need 5"):
        split(output, np.zeros(4, np.float32), asked((1, 2), (1, 3)), "x", True)
    with pytest.raises(NaiadError, match="has 2 dimensions"):
        split(output, np.zeros(4, np.float32), asked((1, 2, 2)), "x", True)
