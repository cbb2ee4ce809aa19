"""RMSNorm, alone or after adding to the residual stream, in one pass over memory each."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _norm_kernel(
    out: tl.tensor,
    residual: tl.tensor,
    x: tl.tensor,
    weight: tl.tensor,
    eps: tl.tensor,
    offset: tl.tensor,
    scale: tl.tensor,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
) -> None:
    """One row."""
    columns = tl.arange(0, BLOCK)
    mask = columns < COLUMNS
    row = tl.program_id(0).to(tl.int64) * COLUMNS + columns
    values = tl.load(x + row, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        values = tl.load(residual + row, mask=mask, other=0.0).to(tl.float32) + values * scale
        # What is normed is what the next layer will find.
        rounded = values.to(residual.dtype.element_ty)
        tl.store(residual + row, rounded, mask=mask)
        values = rounded.to(tl.float32)
    factor = tl.rsqrt(tl.sum(values * values, 0) / COLUMNS + eps)
    weights = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32) + offset
    tl.store(out + row, (values * factor * weights).to(out.dtype.element_ty), mask=mask)


def _launch(out: Tensor, residual: Tensor, x: Tensor, weight: Tensor, **options: Any) -> Tensor:
    columns = x.shape[-1]
    block = triton.next_power_of_2(columns)
    _norm_kernel[(x.numel() // columns,)](
        out,
        residual,
        x,
        weight,
        COLUMNS=columns,
        BLOCK=block,
        num_warps=min(max(block // 512, 1), 16),
        **options,
    )
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * (weight + offset), computed in float32.

    x: [..., C], contiguous.  weight: [C].
    """
    out = torch.empty_like(x)
    return _launch(out, out, x, weight, eps=eps, offset=offset, scale=1.0, ADD=False)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float = 0.0, scale: float = 1.0
) -> Tensor:
    """Add scale * x to `residual`, in place, and return the norm of the sum. Shapes as above."""
    out = torch.empty_like(x)
    return _launch(out, residual, x, weight, eps=eps, offset=offset, scale=scale, ADD=True)
