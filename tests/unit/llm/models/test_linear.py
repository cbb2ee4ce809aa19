"""The products of weights on a CPU: close to float32's, and rows that do not know each other."""

import numpy as np
import pytest
import torch

from naiad_backends.llm.checkpoint.weights import Weight
from naiad_backends.llm.models.linear import LINEARS

BFLOAT16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
KINDS = [
    "float32",
    "float16",
    pytest.param("bfloat16", marks=pytest.mark.skipif(not BFLOAT16, reason="not on this CPU")),
]


@pytest.mark.parametrize("kind", KINDS)
def test_products(kind: str) -> None:
    random = np.random.default_rng(0)
    first, second, bias = (
        random.standard_normal(shape, np.float32) for shape in ((24, 40), (8, 40), (8,))
    )
    weights = [Weight(matrix.shape, "F32", matrix) for matrix in (first, second)]
    biases = [Weight((24,), "F32", np.ones(24, np.float32)), Weight((8,), "F32", bias)]
    x = random.standard_normal((5, 40), np.float32)
    # One row is far larger than its neighbours.
    x[2] *= 1000

    product = LINEARS[kind](weights, biases)(torch.from_numpy(x)).numpy()

    expected = x @ np.concatenate((first, second)).T + np.concatenate((np.ones(24), bias))
    error = np.abs(product - expected).max(1) / np.abs(expected).max(1)
    assert error.max() < {"float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}[kind]
