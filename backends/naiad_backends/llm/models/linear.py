"""Matrix products of a CPU without a compiler: which of torch's operators, chosen by the weights.

All take and give float32. A row of the answer does not depend on what is in other rows; its last
bits may on how many there are.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from naiad_backends.llm.checkpoint.weights import Weight
from naiad_backends.llm.models.decoder import Linear, MakeLinear

ops = torch.ops


def as_tensor(weight: Weight) -> Tensor:
    """A plain weight as it is, a view of its file; a quantized one in float32."""
    if weight.quantized or weight.type == "F64":
        return torch.from_numpy(np.ascontiguousarray(weight.float32()))
    tensor = torch.from_numpy(np.require(weight.data, requirements="A"))
    return tensor.view(torch.bfloat16) if weight.type == "BF16" else tensor


def kind_for(dtype: str) -> str:
    """Which of `LINEARS` a model gets. dtype: of `Options`; all but `float32` has weights of 16
    bits. There are none of 8 bits: torch's products of these have one scale for a whole row of
    activations, and that loses too much where a few are large (SmolLM2: 8 % of perplexity)."""
    if dtype == "float32":
        return dtype
    return "bfloat16" if ops.mkldnn._is_mkldnn_bf16_supported() else "float16"


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


LINEARS: Mapping[str, MakeLinear] = {
    "float32": float32,
    "bfloat16": bfloat16,
    "float16": float16,
}


def _stacked(weights: Sequence[Weight]) -> Tensor:
    """One below the other, in float32."""
    return torch.cat([as_tensor(weight).float() for weight in weights])


def _bias(biases: Sequence[Weight]) -> Tensor | None:
    return _stacked(biases) if biases else None
