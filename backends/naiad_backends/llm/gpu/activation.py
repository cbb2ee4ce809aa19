"""The activation of the gate times the other half, in one pass over memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from naiad_backends.llm.gpu.chain import chained, take_turn

KINDS = {"silu": 0, "gelu_tanh": 1, "gelu": 2}


@triton.jit
def _gated_kernel(
    out: tl.tensor,
    both: tl.tensor,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    CHAINED: tl.constexpr,
) -> None:
    """One piece of one row."""
    take_turn(CHAINED)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < COLUMNS
    gate = tl.load(both + row * 2 * COLUMNS + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(both + (row * 2 + 1) * COLUMNS + columns, mask=mask, other=0.0).to(tl.float32)
    if KIND == 0:
        active = gate * tl.sigmoid(gate)
    elif KIND == 1:
        # x * (1 + tanh(y)) / 2 is x * sigmoid(2 * y).
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        active = gate * tl.sigmoid(2 * inner)
    else:
        active = 0.5 * gate * (1 + tl.erf(gate * 0.7071067811865476))
    tl.store(out + row * COLUMNS + columns, (active * up).to(out.dtype.element_ty), mask=mask)


def gated(both: Tensor, kind: str) -> Tensor:
    """activation(both[:, :C]) * both[:, C:].

    both: [T, 2 * C], contiguous.  kind: an `Architecture.activation`.
    """
    rows, columns = both.shape[0], both.shape[1] // 2
    out = torch.empty(rows, columns, dtype=both.dtype, device=both.device)
    block = min(triton.next_power_of_2(columns), 1024)
    _gated_kernel[(rows, triton.cdiv(columns, block))](
        out,
        both,
        COLUMNS=columns,
        BLOCK=block,
        KIND=KINDS[kind],
        num_warps=4,
        **chained(both.device),
    )
    return out
