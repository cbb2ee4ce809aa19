"""Puts the weights of a checkpoint on a GPU, and says how its matrices are multiplied.

Those of plain types are products in the type of the step, of cuBLAS if there is more than one row;
quantized ones become such matrices when they are loaded.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from naiad_backends.llm.checkpoint.weights import Checkpoint, Weight
from naiad_backends.llm.gpu.product import product
from naiad_backends.llm.models.decoder import Linear
from naiad_backends.llm.models.linear import as_tensor

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def dtype_of(checkpoint: Checkpoint, asked: str) -> torch.dtype:
    """What flows between the layers: what was asked for, or `auto`: what the file has, BF16 for a
    quantized one."""
    if asked == "auto":
        return _PLAIN.get(checkpoint.weight("layers.0.q").type, torch.bfloat16)
    dtype: torch.dtype = getattr(torch, asked)
    return dtype


class Loader:
    """Makes what a `Decoder` asks for."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._embedding: tuple[Weight, Tensor] | None = None

    def tensor(self, weight: Weight) -> Tensor:
        """The embedding in the type of the step, a norm in float32."""
        if len(weight.shape) == 1:
            return as_tensor(weight).to(self._device, torch.float32)
        tensor = as_tensor(weight).to(self._device, self._dtype)
        self._embedding = weight, tensor
        return tensor

    def linear(self, weights: Sequence[Weight], biases: Sequence[Weight]) -> Linear:
        """The matrices one below the other; the embedding itself where the head is tied to it."""
        if len(weights) == 1 and self._embedding and _same(weights[0], self._embedding[0]):
            matrix = self._embedding[1]
        else:
            matrix = self._stack(weights)
        bias = self._stack(biases) if biases else None

        def linear(x: Tensor) -> Tensor:
            return product(x, matrix, bias) if len(x) == 1 else functional.linear(x, matrix, bias)

        return linear

    def _stack(self, weights: Sequence[Weight]) -> Tensor:
        shape = (sum(weight.shape[0] for weight in weights), *weights[0].shape[1:])
        whole = torch.empty(shape, dtype=self._dtype, device=self._device)
        parts = torch.split(whole, [weight.shape[0] for weight in weights])
        for part, weight in zip(parts, weights, strict=True):
            part.copy_(as_tensor(weight))
        return whole


def _same(one: Weight, other: Weight) -> bool:
    """Whether both are the same part of a file."""
    return one.shape == other.shape and one.data.ctypes.data == other.data.ctypes.data
