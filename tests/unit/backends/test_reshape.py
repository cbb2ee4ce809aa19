"""The configuration's reshape, there and back."""

import numpy as np
import pytest

from naiad_backends.api import TensorSpec
from naiad_backends.errors import Code, NaiadError
from naiad_backends.reshape import to_client, to_model

Shape = tuple[int, ...]


@pytest.mark.parametrize(
    ("dims", "reshape", "batched", "client", "model"),
    [
        ((1,), (), True, (3, 1), (3,)),
        ((1,), (), False, (1,), ()),
        ((4,), (2, 2), True, (5, 4), (5, 2, 2)),
        ((-1, 4), (-1, 2, 2), False, (3, 4), (3, 2, 2)),
        ((-1, 4, -1), (2, -1, 2, -1), True, (1, 3, 4, 5), (1, 2, 3, 2, 5)),
        ((-1, 2), (2, -1), False, (0, 2), (2, 0)),
    ],
)
def test_there_and_back(
    dims: Shape, reshape: Shape, batched: bool, client: Shape, model: Shape
) -> None:
    spec = TensorSpec("t", "FP32", dims, reshape)
    array = np.arange(np.prod(client, dtype=int), dtype=np.float32).reshape(client)
    seen = to_model(array, spec, batched)
    assert seen.shape == model
    back = to_client(seen, spec, batched)
    np.testing.assert_array_equal(back, array)
    assert np.shares_memory(back, array) or array.size == 0


@pytest.mark.parametrize(("shape", "batched"), [((2, 3), True), ((2,), False), ((2,), True)])
def test_an_unexpected_output_is_the_models_fault(shape: Shape, batched: bool) -> None:
    spec = TensorSpec("t", "FP32", (4,), (2, 2))
    with pytest.raises(NaiadError, match=r"promises \[.*2, 2\]") as caught:
        to_client(np.zeros(shape, np.float32), spec, batched)
    assert caught.value.code is Code.INTERNAL
