"""Sentence embeddings by the formulas of BERT in plain NumPy, from a safetensors file.

A reference for tests: one text at a time, no padding, double precision. Knows nothing of ONNX.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tests.e2e.tensors import Array

_PARTS = ("query", "key", "value")


class Bert:
    """The encoder of Devlin et al., 2018, with mean pooling and embeddings of length 1."""

    def __init__(self, path: Path, heads: int = 12) -> None:
        """path: a safetensors file with BERT's names."""
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        self._heads = heads
        self._weights = {
            name: np.frombuffer(content[start + begin : start + end], "<f4")
            .reshape(described["shape"])
            .astype(float)
            for name, described in json.loads(content[8:start]).items()
            if described.get("dtype") == "F32"
            for begin, end in [described["data_offsets"]]
        }
        self._layers = len({name for name in self._weights if "intermediate.dense.bias" in name})

    def embed(self, ids: Sequence[int]) -> Array:
        """The embedding of the tokens of one text."""
        w = self._weights
        x = w["embeddings.word_embeddings.weight"][list(ids)]
        x = x + w["embeddings.position_embeddings.weight"][: len(ids)]
        x = x + w["embeddings.token_type_embeddings.weight"][0]
        x = self._normalised(x, "embeddings.LayerNorm")
        for layer in range(self._layers):
            name = f"encoder.layer.{layer}"
            attended = self._linear(self._attention(x, name), f"{name}.attention.output.dense")
            x = self._normalised(x + attended, f"{name}.attention.output.LayerNorm")
            wide = self._linear(x, f"{name}.intermediate.dense")
            wide = wide * 0.5 * (1 + _erf(wide / math.sqrt(2)))
            x = self._normalised(
                x + self._linear(wide, f"{name}.output.dense"), f"{name}.output.LayerNorm"
            )
        mean = x.mean(axis=0)
        return np.asarray(mean / np.linalg.norm(mean))

    def _attention(self, x: Array, name: str) -> Array:
        parts = [self._linear(x, f"{name}.attention.self.{part}") for part in _PARTS]
        mixed = []
        for query, key, value in zip(
            *(np.split(part, self._heads, axis=1) for part in parts), strict=True
        ):
            scores = query @ key.T / math.sqrt(query.shape[1])
            powers = np.exp(scores - scores.max(axis=1, keepdims=True))
            mixed.append(powers / powers.sum(axis=1, keepdims=True) @ value)
        return np.concatenate(mixed, axis=1)

    def _linear(self, x: Array, name: str) -> Array:
        return np.asarray(x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"])

    def _normalised(self, x: Array, name: str) -> Array:
        centred = x - x.mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-12)
        return np.asarray(scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"])


def _erf(x: Array) -> Array:
    """The error function to 1.5e-7 (Abramowitz and Stegun, 7.1.26); NumPy has none."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    terms = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592, 0)
    return np.asarray(np.sign(x) * (1 - np.polyval(terms, t) * np.exp(-(x**2))))
