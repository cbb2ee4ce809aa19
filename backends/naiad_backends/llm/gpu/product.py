"""The product of one row with a matrix: a decode step of one sequence is little else.

cuBLAS computes it in tiles that are meant for several rows, some of them in two kernels. Here a
program reads whole rows of the matrix, the first part of them while the kernel before is ending.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from naiad_backends.llm.gpu.chain import chained


@triton.jit
def _product_kernel(
    out: tl.tensor,
    x: tl.tensor,
    matrix: tl.tensor,
    bias: tl.tensor,
    rows: tl.tensor,
    COLUMNS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
    BIAS: tl.constexpr,
    CHAINED: tl.constexpr,
) -> None:
    """BLOCK_R rows of the matrix, BLOCK_C of their columns at a time."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_C)
    there = row < rows
    source = matrix + row.to(tl.int64)[:, None] * COLUMNS + column[None, :]
    EVEN: tl.constexpr = COLUMNS % BLOCK_C == 0
    if CHAINED:
        gdc_launch_dependents()
    inside = column < COLUMNS
    first = tl.load(source, mask=there[:, None] & inside[None, :], other=0.0)
    if CHAINED:
        gdc_wait()
    acc = first.to(tl.float32) * tl.load(x + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    for at in tl.range(BLOCK_C, COLUMNS, BLOCK_C, num_stages=STAGES):
        if EVEN:
            part = tl.load(source + at, mask=there[:, None], other=0.0)
            values = tl.load(x + at + column)
        else:
            inside = at + column < COLUMNS
            part = tl.load(source + at, mask=there[:, None] & inside[None, :], other=0.0)
            values = tl.load(x + at + column, mask=inside, other=0.0)
        acc += part.to(tl.float32) * values.to(tl.float32)[None, :]
    result = tl.sum(acc, 1)
    if BIAS:
        result += tl.load(bias + row, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row, result.to(out.dtype.element_ty), mask=there)


def product(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """x: [1, C].  matrix: [R, C], contiguous.  bias: [R].  The answer: [1, R], summed in FP32."""
    rows, columns = matrix.shape
    out = torch.empty(1, rows, dtype=x.dtype, device=x.device)
    # Measured on an H100: short rows four at a time, long ones by programs that read ahead.
    block_c = 2048 if columns % 2048 == 0 else min(1024, triton.next_power_of_2(columns))
    block_r, stages = (4, 1) if columns <= 1024 else (1, 1) if columns <= 8192 else (2, 3)
    _product_kernel[(triton.cdiv(rows, block_r),)](
        out,
        x,
        matrix,
        matrix if bias is None else bias,
        rows,
        COLUMNS=columns,
        BLOCK_R=block_r,
        BLOCK_C=block_c,
        STAGES=stages,
        BIAS=bias is not None,
        num_warps=4,
        **chained(x.device),
    )
    return out
