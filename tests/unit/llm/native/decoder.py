"""A decoder in NumPy with 64-bit floats, and random checkpoints for it: the kernels' reference.

It sees whole sequences, without a cache, and follows the text of `Architecture` only.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from naiad_backends.llm.checkpoint.architecture import Architecture, Defaults, Layer, Rope
from naiad_backends.llm.checkpoint.weights import Checkpoint, Tensor, Weight, decoder_shapes

Doubles = npt.NDArray[np.float64]

ROPE = Rope(16, tuple(float(np.float32(10000.0 ** (-i / 8))) for i in range(8)))

TINY = Architecture(
    vocab_size=100,
    hidden_size=64,
    intermediate_size=96,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    layers=(Layer(), Layer()),
    ropes=(ROPE,),
    max_position=512,
)


def checkpoint(
    architecture: Architecture, type_: str = "F32", types: Mapping[str, str] | None = None
) -> Checkpoint:
    """Random weights; matrices of a GGUF type, or by their last name of one of `types`."""
    random = np.random.default_rng(7)
    tensors = {}
    for name, shape in decoder_shapes(architecture).items():
        numbers = random.standard_normal(shape).astype(np.float32) * (
            0.5 if len(shape) == 1 else 0.15
        )
        last = name.rsplit(".", 1)[-1]
        kind = (types or {}).get(last, type_) if len(shape) == 2 else "F32"
        tensors[name] = Tensor.of(pack(numbers, kind))
    return Checkpoint(architecture, Defaults(), Path("."), None, tensors)


def pack(numbers: npt.NDArray[np.float32], type_: str) -> Weight:
    """A matrix in one of GGUF's types."""
    if type_ == "BF16":
        return Weight(numbers.shape, type_, (numbers.view(np.uint32) >> 16).astype(np.uint16))
    if type_ in ("F32", "F16"):
        return Weight(numbers.shape, type_, numbers.astype({"F32": "f4", "F16": "f2"}[type_]))
    kind = gguf.GGMLQuantizationType[type_]
    try:
        data = gguf.quantize(numbers, kind)
    except NotImplementedError:
        data = _random_blocks(numbers.shape, kind)
    return Weight(numbers.shape, type_, data)


SCALES = {
    **{"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)},
    "IQ4_NL": (0,),
}
"""Where in a block its half floats are."""


def _random_blocks(shape: tuple[int, ...], kind: Any) -> npt.NDArray[np.uint8]:
    """Types that gguf reads but does not write: random bytes, and scales in reason."""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(3)
    blocks = random.integers(0, 256, (shape[0], shape[1] // elements, size), np.uint8)
    scales = random.uniform(0.0005, 0.001, blocks.shape[:2]).astype(np.float16)
    for place in SCALES[kind.name]:
        blocks[..., place : place + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(shape[0], -1)


def logits(point: Checkpoint, tokens: list[int], rounded: bool = False) -> Doubles:
    """[tokens, vocab]. rounded: activations that meet quantized weights are rounded to 8 bits in
    groups of 32, as the kernels do it."""
    a = point.architecture
    assert isinstance(a, Architecture)
    return _Forward(point, a, rounded)(tokens)


class _Forward:
    def __init__(self, point: Checkpoint, a: Architecture, rounded: bool) -> None:
        self.point, self.a, self.rounded = point, a, rounded

    def weight(self, name: str) -> Doubles:
        return self.point.weight(name).float32().astype(np.float64)

    def linear(self, x: Doubles, name: str) -> Doubles:
        weight = self.point.weight(name)
        if self.rounded and weight.quantized:
            x = round_to_bytes(x)
        y = x @ self.weight(name).T
        return y + self.weight(f"{name}.bias") if f"{name}.bias" in self.point.names() else y

    def norm(self, x: Doubles, name: str) -> Doubles:
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + self.a.norm_eps)
        return np.asarray(x / scale * (self.weight(name) + self.a.norm_offset))

    def __call__(self, tokens: list[int]) -> Doubles:
        a = self.a
        x = self.weight("embed")[tokens] * a.embedding_scale
        for i, layer in enumerate(a.layers):
            p = f"layers.{i}."
            y = self.attention(self.norm(x, p + "attn_norm") if a.pre_norm else x, p, layer)
            x = x + a.residual_scale * (self.norm(y, p + "post_attn_norm") if a.post_norm else y)
            y = self.mlp(self.norm(x, p + "mlp_norm") if a.pre_norm else x, p)
            x = x + a.residual_scale * (self.norm(y, p + "post_mlp_norm") if a.post_norm else y)
        y = self.linear(self.norm(x, "norm"), "embed" if a.tied else "head") * a.logit_scale
        return np.asarray(a.logit_softcap * np.tanh(y / a.logit_softcap) if a.logit_softcap else y)

    def mlp(self, x: Doubles, p: str) -> Doubles:
        return self.linear(
            activate(self.linear(x, p + "gate"), self.a.activation) * self.linear(x, p + "up"),
            p + "down",
        )

    def attention(self, x: Doubles, p: str, layer: Layer) -> Doubles:
        a, n = self.a, len(x)
        q = self.linear(x, p + "q").reshape(n, a.num_heads, a.head_dim)
        k = self.linear(x, p + "k").reshape(n, a.num_kv_heads, a.head_dim)
        v = self.linear(x, p + "v").reshape(n, a.num_kv_heads, a.head_dim)
        if a.qk_norm:
            q, k = self.norm(q, p + "q_norm"), self.norm(k, p + "k_norm")
        if layer.rope is not None:
            q, k = rotate(q, a.ropes[layer.rope]), rotate(k, a.ropes[layer.rope])
        group = a.num_heads // a.num_kv_heads
        k, v = k.repeat(group, 1), v.repeat(group, 1)
        scores = np.einsum("qhd,khd->hqk", q, k) * (a.attention_scale or a.head_dim**-0.5)
        if a.score_softcap:
            scores = a.score_softcap * np.tanh(scores / a.score_softcap)
        age = np.arange(n)[:, None] - np.arange(n)[None]
        seen = (age >= 0) & ((age < layer.window) if layer.window else True)
        scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return self.linear(np.einsum("hqk,khd->qhd", weights, v).reshape(n, -1), p + "o")


def rotate(x: Doubles, rope: Rope) -> Doubles:
    """[tokens, heads, head_dim] at positions 0, 1, ..."""
    angles = (
        np.arange(len(x), dtype=np.float32)[:, None] * np.array(rope.inv_freq, np.float32)[None]
    )
    cos = np.cos(angles.astype(np.float64))[:, None] * rope.scale
    sin = np.sin(angles.astype(np.float64))[:, None] * rope.scale
    half, out = rope.dimensions // 2, x.copy()
    first: tuple[Any, ...]
    second: tuple[Any, ...]
    if rope.interleaved:
        first, second = np.s_[..., : rope.dimensions : 2], np.s_[..., 1 : rope.dimensions : 2]
    else:
        first, second = np.s_[..., :half], np.s_[..., half : rope.dimensions]
    out[first] = x[first] * cos - x[second] * sin
    out[second] = x[second] * cos + x[first] * sin
    return out


def activate(x: Doubles, name: str) -> Doubles:
    if name == "silu":
        return np.asarray(x / (1 + np.exp(-x)))
    if name == "gelu_tanh":
        return np.asarray(x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return np.asarray(x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))


def round_to_bytes(x: Doubles) -> Doubles:
    rows, columns = x.shape
    groups = np.pad(x, ((0, 0), (0, -columns % 32))).reshape(rows, -1, 32)
    scales = np.abs(groups).max(-1, keepdims=True) / 127
    steps = np.rint(groups / np.where(scales > 0, scales, 1))
    return np.asarray((steps * scales).reshape(rows, -1)[:, :columns])


def variant(**changes: Any) -> Architecture:
    """The tiny decoder with other switches."""
    return replace(TINY, **changes)
