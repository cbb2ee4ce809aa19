"""Matrix products of a CPU without a compiler: which of torch's operators, chosen by the weights.

All take and give float32. A row of the answer does not depend on what is in other rows; its last
bits may on how many there are.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from naiad_backends.llm.checkpoint.weights import Weight
from naiad_backends.llm.models.decoder import Linear, MakeLinear

ops = torch.ops

TINY = 1e-12
"""Scales of rows of zeros."""


def as_tensor(weight: Weight) -> Tensor:
    """A plain weight as it is, a view of its file; a quantized one in float32."""
    if weight.quantized or weight.type == "F64":
        return torch.from_numpy(np.ascontiguousarray(weight.float32()))
    tensor = torch.from_numpy(np.require(weight.data, requirements="A"))
    return tensor.view(torch.bfloat16) if weight.type == "BF16" else tensor


def linear_for(dtype: str) -> MakeLinear:
    """How to make the products of a model. dtype: of `Options`; `auto` has 8 bits for what the file
    has packed where the CPU has instructions for them, without which 16 bits are faster from one
    row on; all else but `float32` has 16."""
    halves = bfloat16 if ops.mkldnn._is_mkldnn_bf16_supported() else float16

    def auto(weights: Sequence[Weight], biases: Sequence[Weight]) -> Linear:
        packed = all(weight.quantized for weight in weights)
        return (int8 if packed else halves)(weights, biases)

    if dtype == "auto":
        return auto if torch.cpu._is_vnni_supported() else halves
    return float32 if dtype == "float32" else halves


def float32(weights: Sequence[Weight], biases: Sequence[Weight]) -> Linear:
    """Exact."""
    matrix, bias = _stacked(weights), _bias(biases)
    return lambda x: functional.linear(x, matrix, bias)


def bfloat16(weights: Sequence[Weight], biases: Sequence[Weight]) -> Linear:
    """Weights and activations of 16 bits, where the CPU has instructions for them."""
    matrix = ops.mkldnn._reorder_linear_weight(_stacked(weights).bfloat16(), None)
    bias = _bias(biases)
    bias = None if bias is None else bias.bfloat16()
    product = ops.mkldnn._linear_pointwise.default

    def linear(x: Tensor) -> Tensor:
        out: Tensor = product(x.bfloat16(), matrix, bias, "none", [], "")
        return out.float()

    return linear


def float16(weights: Sequence[Weight], biases: Sequence[Weight]) -> Linear:
    """Weights of 16 bits, for any CPU."""
    packed = ops.quantized.linear_prepack_fp16(_stacked(weights), _bias(biases))
    product = ops.quantized.linear_dynamic_fp16.default

    def linear(x: Tensor) -> Tensor:
        out: Tensor = product(x, packed)
        return out

    return linear


def int8(weights: Sequence[Weight], biases: Sequence[Weight]) -> Linear:
    """Weights of 8 bits with a scale for each row of the matrix.

    Activations are rounded to the same number of steps with a scale for each row of x, and what
    that loses to as many steps again: a few of them are so large that the others would vanish. Both
    are rows of one product, which reads the weights once.
    """
    matrix, bias = _stacked(weights), _bias(biases)
    scales = matrix.abs().amax(1).clamp_(min=TINY).div_(127)
    with warnings.catch_warnings():
        # Torch says that these tensors will go one day; the operators know no others.
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_channel(
            matrix, scales.double(), torch.zeros(len(scales), dtype=torch.int64), 0, torch.qint8
        )
    packed = ops.quantized.linear_prepack(quantized, None)
    product = ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
    # Without VNNI two products are added in 16 bits, which overflow if activations have 8. Such a
    # CPU has better, but is where this is tested too.
    steps, zero = (127, 128) if torch.cpu._is_vnni_supported() else (63, 64)

    def linear(x: Tensor) -> Tensor:
        # Many times faster than a norm of infinite order, which torch does not vectorize.
        scale = x.abs().amax(-1, keepdim=True).clamp_(min=TINY).div_(steps)
        scaled = x / scale
        rows = torch.empty(2, *x.shape)
        torch.round(scaled, out=rows[0])
        torch.sub(scaled, rows[0], out=rows[1]).mul_(2 * steps)
        coarse, fine = product(rows.view(-1, x.shape[-1]), 1.0, zero, packed).chunk(2)
        out = torch.add(coarse, fine, alpha=0.5 / steps).mul_(scale)
        return out if bias is None else out.add_(bias)

    return linear


def _stacked(weights: Sequence[Weight]) -> Tensor:
    """One below the other, in float32."""
    return torch.cat([as_tensor(weight).float() for weight in weights])


def _bias(biases: Sequence[Weight]) -> Tensor | None:
    return _stacked(biases) if biases else None
