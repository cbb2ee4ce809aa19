"""Matrix products of a CPU without a compiler: which of torch's operators, chosen by the weights.

All take and give float32. A row of the answer does not depend on what is in other rows; its last
bits may on how many there are.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module, functional

from naiad_backends.llm.checkpoint.weights import Weight
from naiad_backends.llm.models.decoder import MakeLinear

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
    """How to make the products of a model. dtype: of `Options`; all but `float32` has 16 bits,
    where torch has such products for the CPU."""
    if dtype == "float32":
        return Float32
    if ops.mkldnn._is_mkldnn_bf16_supported():
        return Bfloat16
    return Float16 if has_fbgemm() else Float32


def has_fbgemm() -> bool:
    """The library behind `Float16` and `Int8`, for x86."""
    return "fbgemm" in torch.backends.quantized.supported_engines


class Float32(Module):
    """Exact."""

    def __init__(self, weights: Sequence[Weight], biases: Sequence[Weight]) -> None:
        super().__init__()
        self.matrix, self.bias = _stacked(weights), _bias(biases)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.matrix, self.bias)


class Bfloat16(Module):
    """Weights and activations of 16 bits, where the CPU has instructions for them."""

    dtype = torch.bfloat16

    def __init__(self, weights: Sequence[Weight], biases: Sequence[Weight]) -> None:
        super().__init__()
        self.matrix = ops.mkldnn._reorder_linear_weight(_stacked(weights).to(self.dtype), None)
        bias = _bias(biases)
        self.bias = None if bias is None else bias.to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        product = ops.mkldnn._linear_pointwise.default
        out: Tensor = product(x.to(self.dtype), self.matrix, self.bias, "none", [], "")
        return out.float()


class Float16(Module):
    """Weights of 16 bits, for any CPU."""

    def __init__(self, weights: Sequence[Weight], biases: Sequence[Weight]) -> None:
        super().__init__()
        self.packed = ops.quantized.linear_prepack_fp16(_stacked(weights), _bias(biases))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = ops.quantized.linear_dynamic_fp16.default(x, self.packed)
        return out


class Int8(Module):
    """Weights of 8 bits with a scale for each row of the matrix, activations with one for each row.

    For a decoder that is `rotated`: beside a few numbers far above the others, the others vanish.
    """

    def __init__(self, weights: Sequence[Weight], biases: Sequence[Weight]) -> None:
        super().__init__()
        # Without VNNI two products are added in 16 bits: 2 * (2 * 83 + 1) * 97 < 2^15.
        steps, most_steps = (127, 127) if torch.cpu._is_vnni_supported() else (83, 97)
        self.scale, self.zero = 1 / steps, steps + 1
        self.packed = _packed(_stacked(weights), most_steps)
        self.bias = _bias(biases)

    def forward(self, x: Tensor) -> Tensor:
        product = ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
        # Many times faster than a norm of infinite order, which torch does not vectorize.
        most = x.abs().amax(-1, keepdim=True).clamp_(min=TINY)
        out: Tensor = product(x / most, self.scale, self.zero, self.packed).mul_(most)
        return out if self.bias is None else out.add_(self.bias)


def _packed(matrix: Tensor, steps: int) -> torch.ScriptObject:
    """Numbers from -steps to steps, whose scale is that of their row."""
    scales = matrix.abs().amax(1).clamp_(min=TINY).div_(steps).double()
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    with warnings.catch_warnings():
        # Torch says that these tensors will go one day; the operators know no others.
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_channel(matrix, scales, zeros, 0, torch.qint8)
    packed: torch.ScriptObject = ops.quantized.linear_prepack(quantized, None)
    return packed


def _stacked(weights: Sequence[Weight]) -> Tensor:
    """One below the other, in float32."""
    return torch.cat([as_tensor(weight).float() for weight in weights])


def _bias(biases: Sequence[Weight]) -> Tensor | None:
    return _stacked(biases) if biases else None
