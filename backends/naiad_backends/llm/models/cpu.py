"""The decoder's operators in plain torch, for a CPU: float32 between the layers."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from naiad_backends.llm.checkpoint.architecture import Rope
from naiad_backends.llm.engine.runner import Step
from naiad_backends.llm.models.attention import PagedAttention
from naiad_backends.llm.models.operators import Activation, AttentionLayer, Operators


class CpuOperators(Operators):
    """ropes: of the architecture.  paged: the cache.  middle: of a model that is `Rotated`."""

    def __init__(
        self, ropes: Sequence[Rope], paged: PagedAttention, middle: Tensor | None = None
    ) -> None:
        self.ropes = [Rotation(rope) for rope in ropes]
        self.paged = paged
        self.middle = middle
        self.roots: dict[tuple[float, int], Tensor] = {}

    def begin(self, step: Step) -> None:
        """Tell of the step that is computed next."""
        self.paged.begin(step)
        for rope in self.ropes:
            rope.begin(step.positions)

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if self.middle is None:
            return self._norm(x, weight, eps)
        # The norms of a rotated model have no weights of their own: they make rows one long.
        length = torch.linalg.vector_norm(x, 2, -1, keepdim=True)
        return x / torch.hypot(length, self._root(eps, x.shape[-1]))

    def _norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        # Fewer and cheaper calls than torch's own: x / sqrt(|x|^2 / n + eps) * weight.
        length = torch.linalg.vector_norm(x, 2, -1, keepdim=True)
        divisor = torch.hypot(length.mul_(x.shape[-1] ** -0.5), self._root(eps, 1))
        return (x / divisor).mul_(weight)

    def add_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        residual = residual.add_(x)
        return self.norm(residual, weight, eps), residual

    def gate(self, x: Tensor, activation: Activation) -> Tensor:
        gates, rest = x.chunk(2, -1)
        if activation == "silu":
            out = functional.silu(gates).mul_(rest)
        else:
            approximate = "tanh" if activation == "gelu_tanh" else "none"
            out = functional.gelu(gates, approximate=approximate).mul_(rest)
        if self.middle is None:
            return out
        return torch.mm(out.view(-1, len(self.middle)), self.middle).view(out.shape)

    def attention(self, qkv: Tensor, layer: AttentionLayer) -> Tensor:
        heads, kv_heads = layer.num_heads, layer.num_kv_heads
        parts = qkv.view(len(qkv), heads + 2 * kv_heads, layer.head_dim)
        queries, keys = parts[:, :heads], parts[:, heads : heads + kv_heads]
        if layer.q_norm is not None and layer.k_norm is not None:
            queries.copy_(self._norm(queries, layer.q_norm, layer.eps))
            keys.copy_(self._norm(keys, layer.k_norm, layer.eps))
        if layer.rope is not None:
            self.ropes[layer.rope].turn(parts[:, : heads + kv_heads])
        self.paged.write(layer.index, parts[:, heads:])
        return self.paged.attend(queries, layer).reshape(len(qkv), -1)

    def _root(self, eps: float, times: int) -> Tensor:
        if (eps, times) not in self.roots:
            self.roots[eps, times] = torch.tensor((eps * times) ** 0.5)
        return self.roots[eps, times]


class Rotation:
    """Rotary embeddings of one kind."""

    def __init__(self, rope: Rope) -> None:
        self.rope = rope
        # As in the references: angles in float32.
        self.inv_freq = np.asarray(rope.inv_freq, np.float32)
        self.cos = self.sin = self.turns = torch.empty(0)

    def begin(self, positions: np.ndarray[tuple[int], np.dtype[np.int32]]) -> None:
        """[T, 1, dimensions] of cosines, and of sines with the sign that turns halves around; or,
        if neighbours are pairs, [T, 1, dimensions / 2] of complex numbers."""
        angles = positions.astype(np.float32)[:, None, None] * self.inv_freq
        cos, sin = np.cos(angles) * self.rope.scale, np.sin(angles) * self.rope.scale
        if self.rope.interleaved:
            self.turns = torch.complex(torch.from_numpy(cos), torch.from_numpy(sin))
        else:
            self.cos = torch.from_numpy(np.concatenate((cos, cos), -1))
            self.sin = torch.from_numpy(np.concatenate((-sin, sin), -1))

    def turn(self, x: Tensor) -> None:
        """In place. x: [T, heads, head_dim]."""
        turning = x[..., : self.rope.dimensions]
        if self.rope.interleaved:
            pairs = turning.view(*turning.shape[:-1], -1, 2)
            torch.view_as_complex(pairs).mul_(self.turns)
        else:
            swapped = turning.reshape(*turning.shape[:-1], 2, -1).flip(-2).flatten(-2)
            turning.mul_(self.cos).addcmul_(swapped, self.sin)
