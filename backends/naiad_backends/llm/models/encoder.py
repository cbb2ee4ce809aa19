"""Encoders of BERT's kind: many texts at once -> a vector of each. Knows no queue and no text.

Tokens of all texts lie one behind the other, so nothing is computed for padding. Only attention
looks at single texts: those of equal length together, without a mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from naiad_backends.llm.checkpoint.architecture import Encoder
from naiad_backends.llm.checkpoint.weights import Checkpoint
from naiad_backends.llm.options import Options

_TYPES = {
    "auto": torch.float32,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(slots=True)
class _Affine:
    """Of a matrix product or of a norm."""

    weight: Tensor
    bias: Tensor


@dataclass(slots=True)
class _Layer:
    qkv: _Affine
    o: _Affine
    attn_norm: _Affine
    up: _Affine
    down: _Affine
    mlp_norm: _Affine


class EncoderModel:
    """The weights, on a device, in numbers of one type."""

    def __init__(
        self, checkpoint: Checkpoint, encoder: Encoder, options: Options, device: str
    ) -> None:
        self._encoder = encoder
        self._device = device
        dtype = _TYPES[options.dtype]
        if options.threads:
            torch.set_num_threads(options.threads)
        self.description = f"torch, {str(dtype).removeprefix('torch.')}, {device}"

        def tensor(*names: str) -> Tensor:
            # Copies, as the file's own pages cannot be written to.
            parts = [torch.tensor(checkpoint.weight(name).float32()) for name in names]
            return torch.cat(parts).to(device, dtype)

        def affine(place: str, *names: str) -> _Affine:
            return _Affine(
                tensor(*(place + name for name in names)),
                tensor(*(f"{place}{name}.bias" for name in names)),
            )

        self._embed = tensor("embed")
        # The whole text is of the first type.
        self._positions = tensor("positions")[encoder.position_offset :] + tensor("token_types")[0]
        self._embed_norm = affine("", "embed_norm")
        self._layers = [
            _Layer(
                affine(place, "q", "k", "v"),
                affine(place, "o"),
                affine(place, "attn_norm"),
                affine(place, "up"),
                affine(place, "down"),
                affine(place, "mlp_norm"),
            )
            for place in (f"layers.{i}." for i in range(encoder.num_layers))
        ]

    @torch.inference_mode()
    def vectors(self, texts: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """[number of texts, hidden_size], of texts of 1 to `max_position` tokens each."""
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        lengths, counts = np.unique([len(text) for text in texts], return_counts=True)
        groups = list(zip(counts.tolist(), lengths.tolist(), strict=True))
        tokens = torch.tensor([token for number in order for token in texts[number]])
        x = self._embedded(tokens.to(self._device), groups)
        for layer in self._layers:
            x = self._norm(x + _linear(self._attend(x, layer, groups), layer.o), layer.attn_norm)
            middle = self._activated(_linear(x, layer.up))
            x = self._norm(x + _linear(middle, layer.down), layer.mlp_norm)
        parts = torch.split(x.float(), [count * length for count, length in groups])
        pooled = torch.cat(
            [
                self._pooled(part.view(count, length, -1))
                for part, (count, length) in zip(parts, groups, strict=True)
            ]
        )
        if self._encoder.normalize:
            pooled = functional.normalize(pooled, dim=-1)
        vectors = np.empty(pooled.shape, np.float32)
        vectors[order] = pooled.cpu().numpy()
        return vectors

    def _embedded(self, tokens: Tensor, groups: Sequence[tuple[int, int]]) -> Tensor:
        places = [self._positions[:length].repeat(count, 1) for count, length in groups]
        return self._norm(self._embed[tokens] + torch.cat(places), self._embed_norm)

    def _attend(self, x: Tensor, layer: _Layer, groups: Sequence[tuple[int, int]]) -> Tensor:
        """x: [T, hidden]; groups: (count, length) of texts that lie one behind the other."""
        heads, size = self._encoder.num_heads, x.shape[-1]
        attended = []
        sizes = [count * length for count, length in groups]
        parts = torch.split(_linear(x, layer.qkv), sizes)
        for part, (count, length) in zip(parts, groups, strict=True):
            queries, keys, values = part.view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
            out = functional.scaled_dot_product_attention(queries, keys, values)
            attended.append(out.transpose(1, 2).reshape(count * length, size))
        return torch.cat(attended)

    def _norm(self, x: Tensor, norm: _Affine) -> Tensor:
        return functional.layer_norm(
            x, x.shape[-1:], norm.weight, norm.bias, self._encoder.norm_eps
        )

    def _activated(self, x: Tensor) -> Tensor:
        match self._encoder.activation:
            case "relu":
                return functional.relu(x)
            case "gelu":
                return functional.gelu(x)
            case "gelu_tanh":
                return functional.gelu(x, approximate="tanh")

    def _pooled(self, hidden: Tensor) -> Tensor:
        """hidden: [texts, tokens, hidden_size]."""
        match self._encoder.pooling:
            case "mean":
                return hidden.mean(dim=1)
            case "cls":
                return hidden[:, 0]
            case "last":
                return hidden[:, -1]


def _linear(x: Tensor, matrix: _Affine) -> Tensor:
    return functional.linear(x, matrix.weight, matrix.bias)
