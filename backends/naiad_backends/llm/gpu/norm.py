"""RMSNorm, alone or after adding to the residual stream, in one pass over memory each."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from naiad_backends.llm.gpu.chain import chained, take_turn


@triton.jit
def _norm_kernel(
    out: tl.tensor,
    residual: tl.tensor,
    x: tl.tensor,
    weight: tl.tensor,
    eps: tl.tensor,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    CHAINED: tl.constexpr,
) -> None:
    """One row."""
    take_turn(CHAINED)
    columns = tl.arange(0, BLOCK)
    mask = columns < COLUMNS
    row = tl.program_id(0).to(tl.int64) * COLUMNS + columns
    values = tl.load(x + row, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        values = tl.load(residual + row, mask=mask, other=0.0).to(tl.float32) + values
        # What is normed is what the next layer will find.
        rounded = values.to(residual.dtype.element_ty)
        tl.store(residual + row, rounded, mask=mask)
        values = rounded.to(tl.float32)
    factor = tl.rsqrt(tl.sum(values * values, 0) / COLUMNS + eps)
    weights = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row, (values * factor * weights).to(out.dtype.element_ty), mask=mask)


def _launch(
    out: Tensor, residual: Tensor, x: Tensor, weight: Tensor, eps: float, add: bool
) -> None:
    columns = x.shape[-1]
    block = triton.next_power_of_2(columns)
    _norm_kernel[(x.numel() // columns,)](
        out,
        residual,
        x,
        weight,
        eps,
        COLUMNS=columns,
        BLOCK=block,
        ADD=add,
        num_warps=min(max(block // 512, 1), 16),
        **chained(x.device),
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, computed in float32.

    x: [..., C], contiguous.  weight: [C], of any type.
    """
    out = torch.empty_like(x)
    _launch(out, out, x, weight, eps, add=False)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add x to `residual`, in place, and return the norm of the sum. Shapes as above."""
    out = torch.empty_like(x)
    _launch(out, residual, x, weight, eps, add=True)
    return out
