"""What a device computes in a way of its own: the contract between the decoder and a runner.

All else of the decoder is matrix products (`linear`) and sums.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Activation = Literal["silu", "gelu_tanh", "gelu"]


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """What the attention of one layer needs.

    index: of the layer, and of its part of the KV cache.  rope: which of `Architecture.ropes`; None
    for no rotation.  window: tokens back, itself included; 0 for all.  q_norm, k_norm: weights
    [head_dim], offset added; None for no norm.
    """

    index: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: int | None
    window: int
    scale: float
    softcap: float
    eps: float
    q_norm: Tensor | None
    k_norm: Tensor | None


class Operators(ABC):
    """A runner has one, and tells it of each step before the decoder computes it."""

    @abstractmethod
    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMSNorm of the rows of x [T, hidden] in float32. weight: [hidden], offset added."""

    @abstractmethod
    def add_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and x + residual; may change both arguments."""

    @abstractmethod
    def gate(self, x: Tensor, activation: Activation) -> Tensor:
        """x: [T, 2 * middle], gates and then the rest: activation(gates) * rest [T, middle]."""

    @abstractmethod
    def attention(self, qkv: Tensor, layer: AttentionLayer) -> Tensor:
        """Norm and rotate queries and keys, put keys and values into the cache, attend.

        qkv: [T, (num_heads + 2 * num_kv_heads) * head_dim], queries, keys, values; may be changed.
        The answer: [T, num_heads * head_dim].
        """
