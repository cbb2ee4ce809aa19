"""Matrix products of a CPU without a compiler: which of torch's operators, chosen by the weights.

All take and give float32, and a row of the answer never depends on other rows.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from naiad_backends.llm.checkpoint.weights import Weight
from naiad_backends.llm.models.decoder import Linear


def as_tensor(weight: Weight) -> Tensor:
    """A plain weight as it is, a view of its file; a quantized one in float32."""
    if weight.quantized or weight.type == "F64":
        return torch.from_numpy(np.ascontiguousarray(weight.float32()))
    tensor = torch.from_numpy(np.require(weight.data, requirements="A"))
    return tensor.view(torch.bfloat16) if weight.type == "BF16" else tensor


def float32_linear(weights: Sequence[Weight], biases: Sequence[Weight]) -> Linear:
    """Exact."""
    matrix = torch.cat([as_tensor(weight).float() for weight in weights])
    bias = torch.cat([as_tensor(bias).float() for bias in biases]) if biases else None
    return lambda x: functional.linear(x, matrix, bias)
