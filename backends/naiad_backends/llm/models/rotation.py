"""Rotates a decoder so that none of its activations has a few numbers far above all others, which a
row of 8 bits could not hold beside the rest.

What flows between the layers may be multiplied by an orthogonal matrix if whatever writes it and
whatever reads it are too; RMSNorm does not notice, once its weight is part of the matrices behind
it, and then only makes rows one long. So may the values of each head, between the projections
before and behind attention; both cost nothing in a step. What enters the last matrix of the MLP is
turned when it is computed, 64 numbers at a time. (QuaRot, Ashkboos et al. 2024, arXiv:2404.00456.)

Queries and keys get another order, too: pairs that the rotary embedding turns become neighbours,
which torch turns as complex numbers, in one call.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from naiad_backends.llm.checkpoint.architecture import Architecture
from naiad_backends.llm.checkpoint.weights import Checkpoint, Weight
from naiad_backends.llm.checkpoint.weights import Tensor as Source

MOST = 64
"""The size of a Hadamard matrix; larger ones are products of several."""


@dataclass(frozen=True, slots=True)
class Rotated:
    """checkpoint: the same function, with an output matrix of its own, all in float32; its norms,
    but those of heads, make rows one long.  middle: [n, n], by which each n numbers of the MLP have
    to be multiplied before its last matrix."""

    checkpoint: Checkpoint
    middle: Tensor


def can_rotate(a: Architecture) -> bool:
    """A norm behind a layer's part would have to be turned as well, and cannot be."""
    return a.pre_norm and not a.post_norm


def rotated(checkpoint: Checkpoint) -> Rotated:
    """Weights are computed when they are read, one by one."""
    a = checkpoint.decoder
    middle = hadamard(min(a.intermediate_size & -a.intermediate_size, MOST))
    turn = _Turn(checkpoint, middle)
    tensors = {
        name: Source(source.shape, _reader(turn, name))
        for name, source in checkpoint.tensors.items()
    }
    head = (a.vocab_size, a.hidden_size)
    tensors["head"] = Source(head, _reader(turn, "head"))
    ropes = tuple(replace(rope, interleaved=True) for rope in a.ropes)
    architecture = replace(a, ropes=ropes, norm_offset=0.0, tied=False)
    return Rotated(replace(checkpoint, architecture=architecture, tensors=tensors), middle)


def _reader(turn: "_Turn", name: str) -> Callable[[], Weight]:
    def read() -> Weight:
        array = turn.weight(name).contiguous().numpy()
        return Weight(array.shape, "F32", array)

    return read


class _Turn:
    """Reads weights of `checkpoint` and turns them."""

    def __init__(self, checkpoint: Checkpoint, middle: Tensor) -> None:
        self._checkpoint = checkpoint
        self._a = a = checkpoint.decoder
        self._stream = orthogonal(a.hidden_size)
        self._head = orthogonal(a.head_dim)
        self._middle = [middle]

    def weight(self, name: str) -> Tensor:
        """By its name in the checkpoint; `head` also of one that has none."""
        place, _, part = name.rpartition("layers.")[2].rpartition(".")
        if part == "bias":
            place, _, part = place.rpartition(".")
            return self._bias(f"layers.{place}.{part}", place, part)
        return self._matrix(name, place, part)

    def _matrix(self, name: str, place: str, part: str) -> Tensor:
        layer = f"layers.{place}."
        match part:
            case "embed":
                return apply(self._read(name), self._stream)
            case "head":
                matrix = self._read("embed" if self._a.tied else "head")
                return apply(matrix * self._norm("norm"), self._stream)
            case "q" | "k":
                matrix = apply(self._read(name) * self._norm(f"{layer}attn_norm"), self._stream)
                return self._neighbours(matrix, int(place))
            case "v":
                matrix = apply(self._read(name) * self._norm(f"{layer}attn_norm"), self._stream)
                return apply(matrix.T, self._head).T
            case "gate" | "up":
                return apply(self._read(name) * self._norm(f"{layer}mlp_norm"), self._stream)
            case "o" | "down":
                columns = self._head if part == "o" else self._middle
                return apply(apply(self._read(name), columns).T, self._stream).T
            case "q_norm" | "k_norm":
                return self._neighbours(self._read(name) + self._a.norm_offset, int(place))
            case _:
                return torch.full([self._a.hidden_size], 1 / math.sqrt(self._a.hidden_size))

    def _bias(self, name: str, place: str, part: str) -> Tensor:
        bias = self._read(f"{name}.bias")
        match part:
            case "q" | "k":
                return self._neighbours(bias, int(place))
            case "v":
                return apply(bias, self._head)
            case "o" | "down":
                return apply(bias, self._stream)
            case _:
                return bias

    def _neighbours(self, rows: Tensor, layer: int) -> Tensor:
        """Rows of heads, in another order where the layer turns halves against each other."""
        which = self._a.layers[layer].rope
        if which is None or self._a.ropes[which].interleaved:
            return rows
        dimensions = self._a.ropes[which].dimensions
        order = torch.arange(self._a.head_dim)
        order[:dimensions] = order[:dimensions].view(2, -1).T.reshape(-1)
        return rows.view(-1, self._a.head_dim, *rows.shape[1:])[:, order].reshape(rows.shape)

    def _norm(self, name: str) -> Tensor:
        """What is left for the matrices behind it."""
        return (self._read(name) + self._a.norm_offset) * math.sqrt(self._a.hidden_size)

    def _read(self, name: str) -> Tensor:
        return torch.tensor(self._checkpoint.weight(name).float32())


def apply(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """x [..., N] times the Kronecker product of the factors, over and over along its last axis."""
    out, rest = x, math.prod(map(len, factors))
    for factor in factors:
        out, rest = out.reshape(-1, rest), rest // len(factor)
        # The last factor stands behind rows, the others before rows of what is behind theirs.
        out = factor.T @ out.view(-1, len(factor), rest) if rest > 1 else out @ factor
    return out.reshape(x.shape)


def orthogonal(size: int) -> list[Tensor]:
    """Matrices whose Kronecker product is orthogonal, of this size, and has no small numbers."""
    power = size & -size
    odd = size // power
    factors = []
    if odd > 1:
        random = torch.randn(odd, odd, generator=torch.Generator().manual_seed(0))
        factors.append(torch.linalg.qr(random).Q.contiguous())
    while power > 1:
        factors.append(hadamard(min(power, MOST)))
        power //= len(factors[-1])
    return factors or [torch.ones(1, 1)]


def hadamard(size: int) -> Tensor:
    """The symmetric orthogonal matrix of a power of two whose numbers have all the same size."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix.mul_(size**-0.5)
