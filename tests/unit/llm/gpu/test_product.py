"""One row times a matrix against the same in float64."""

import pytest
import torch
from torch import Tensor

from naiad_backends.llm.gpu.product import product


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 40), (5, 2049), (3, 4096), (9, 9000)])
def test_product(
    random: torch.Generator, dtype: torch.dtype, rows: int, columns: int, biased: bool
) -> None:
    def rand(*size: int) -> Tensor:
        return torch.randn(size, generator=random, device=random.device).to(dtype)

    x, matrix = rand(1, columns), rand(rows, columns) / columns**0.5
    bias = rand(rows) if biased else None
    wanted = x.double() @ matrix.double().T
    if bias is not None:
        wanted += bias.double()
    found = product(x, matrix, bias)
    assert found.dtype == dtype
    tolerance = max(torch.finfo(dtype).eps, 4e-6)
    torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=tolerance)
