"""The decoder's operators in plain torch, for a CPU: float32 between the layers."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from naiad_backends.llm.checkpoint.architecture import Architecture, Rope
from naiad_backends.llm.engine.runner import Step
from naiad_backends.llm.models.attention import PagedAttention
from naiad_backends.llm.models.operators import Activation, AttentionLayer, Operators


class CpuOperators(Operators):
    """paged: the cache.  middle: of a model that is `Rotated`."""

    def __init__(
        self, a: Architecture, paged: PagedAttention, middle: Tensor | None = None
    ) -> None:
        self.hidden_size = a.hidden_size
        self.ropes = [Rotation(rope) for rope in a.ropes]
        self.turns = [torch.empty(0) for _ in a.ropes]
        self.paged = paged
        self.middle = middle

    def begin(self, step: Step) -> None:
        """Tell of the step that is computed next."""
        self.paged.begin(step)
        self.turns = [rope.turns(step.positions) for rope in self.ropes]

    @property
    def tensors(self) -> list[Tensor]:
        """All that a step depends on beside its tokens, if its sequences have one token each."""
        return [*self.turns, *self.paged.tensors]

    @tensors.setter
    def tensors(self, tensors: Sequence[Tensor]) -> None:
        count = len(self.ropes)
        self.turns, self.paged.tensors = list(tensors[:count]), list(tensors[count:])

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if self.middle is None:
            return _norm(x, self.hidden_size, weight, eps)
        # The norms of a rotated model have no weights of their own: they make rows one long.
        return x / _longer(torch.linalg.vector_norm(x, 2, -1, True), eps * self.hidden_size)

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
        return torch.mm(out.view(-1, self.middle.shape[0]), self.middle).view(out.shape)

    def attention(self, qkv: Tensor, layer: AttentionLayer) -> Tensor:
        heads, kv_heads = layer.num_heads, layer.num_kv_heads
        parts = qkv.view(-1, heads + 2 * kv_heads, layer.head_dim)
        queries, keys = parts[:, :heads], parts[:, heads : heads + kv_heads]
        if layer.q_norm is not None and layer.k_norm is not None:
            queries.copy_(_norm(queries, layer.head_dim, layer.q_norm, layer.eps))
            keys.copy_(_norm(keys, layer.head_dim, layer.k_norm, layer.eps))
        if layer.rope is not None:
            self.ropes[layer.rope].turn(parts[:, : heads + kv_heads], self.turns[layer.rope])
        self.paged.write(layer.index, parts[:, heads:])
        return self.paged.attend(queries, layer).reshape(-1, heads * layer.head_dim)


def _norm(x: Tensor, size: int, weight: Tensor, eps: float) -> Tensor:
    """size: of rows, which torch cannot record as a number."""
    # Fewer and cheaper calls than torch's own: x / sqrt(|x|^2 / n + eps) * weight.
    length = torch.linalg.vector_norm(x, 2, -1, True).mul_(size**-0.5)
    return (x / _longer(length, eps)).mul_(weight)


def _longer(length: Tensor, eps: float) -> Tensor:
    """sqrt(length^2 + eps)."""
    return torch.hypot(length, torch.full((), eps**0.5))


class Rotation:
    """Rotary embeddings of one kind."""

    def __init__(self, rope: Rope) -> None:
        self.rope = rope
        # As in the references: angles in float32.
        self.inv_freq = np.asarray(rope.inv_freq, np.float32)

    def turns(self, positions: np.ndarray[tuple[int], np.dtype[np.int32]]) -> Tensor:
        """[2, T, 1, dimensions]: cosines, and sines with the sign that turns halves around; or, if
        neighbours are pairs, [T, 1, dimensions / 2] of complex numbers."""
        angles = positions.astype(np.float32)[:, None, None] * self.inv_freq
        cos, sin = np.cos(angles) * self.rope.scale, np.sin(angles) * self.rope.scale
        if self.rope.interleaved:
            return torch.complex(torch.from_numpy(cos), torch.from_numpy(sin))
        halves = np.concatenate((cos, cos), -1), np.concatenate((-sin, sin), -1)
        return torch.from_numpy(np.stack(halves))

    def turn(self, x: Tensor, turns: Tensor) -> None:
        """In place. x: [T, heads, head_dim]."""
        turning = x[..., : self.rope.dimensions]
        if self.rope.interleaved:
            pairs = turning.view(*turning.shape[:-1], -1, 2)
            torch.view_as_complex(pairs).mul_(turns)
        else:
            swapped = turning.reshape(*turning.shape[:-1], 2, -1).flip(-2).flatten(-2)
            turning.mul_(turns[0]).addcmul_(swapped, turns[1])
