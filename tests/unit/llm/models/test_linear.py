"""The products of weights on a CPU: close to float32's, and rows that do not know each other."""

import numpy as np
import pytest
import torch

from naiad_backends.llm.checkpoint.weights import Weight
from naiad_backends.llm.models import linear
from naiad_backends.llm.models.decoder import MakeLinear

BFLOAT16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (linear.Float32, 1e-6),
        (linear.Float16, 1e-3),
        pytest.param(
            linear.Bfloat16,
            1e-2,
            marks=pytest.mark.skipif(not BFLOAT16, reason="this CPU has no bfloat16"),
        ),
        (linear.Int8, 3e-2),
    ],
)
def test_products(make: MakeLinear, most: float) -> None:
    random = np.random.default_rng(0)
    first, second, bias = (
        random.standard_normal(shape, np.float32) for shape in ((24, 40), (8, 40), (8,))
    )
    weights = [Weight(matrix.shape, "F32", matrix) for matrix in (first, second)]
    biases = [Weight((24,), "F32", np.ones(24, np.float32)), Weight((8,), "F32", bias)]
    x = random.standard_normal((5, 40), np.float32)
    # One row is far larger than its neighbours, another is nothing but one large number.
    x[2] *= 1000
    x[3] = 0
    x[3, 7] = 1e6

    product = make(weights, biases)(torch.from_numpy(x)).numpy()

    expected = x @ np.concatenate((first, second)).T + np.concatenate((np.ones(24), bias))
    error = np.abs(product - expected).max(1) / np.abs(expected).max(1)
    assert error.max() < most


def test_a_row_of_8_bits_does_not_know_its_neighbours() -> None:
    random = np.random.default_rng(0)
    weight = Weight((24, 40), "F32", random.standard_normal((24, 40), np.float32))
    x = torch.from_numpy(random.standard_normal((7, 40), np.float32))
    x[3] *= 1000
    product = linear.Int8([weight], [])

    together = product(x)

    for row in range(len(x)):
        assert torch.equal(product(x[row : row + 1])[0], together[row])
