"""An opened checkpoint: its shape, what its author recommends, and its weights by canonical names.

`embed`, `norm`, `head` (absent if tied), and for each layer `layers.{i}.` + `attn_norm, q, k, v, o,
q_norm, k_norm, post_attn_norm, mlp_norm, gate, up, down, post_mlp_norm`; a bias has `.bias` behind
its weight's name. An encoder has `embed, positions, token_types, embed_norm` and for each layer
`q, k, v, o, attn_norm, up, down, mlp_norm`, all but the first three with biases. NumPy only.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from naiad_backends.errors import internal, invalid, unsupported
from naiad_backends.llm.checkpoint.architecture import Architecture, Defaults, Encoder

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

PLAIN = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "F64": np.float64}
"""Types whose elements are stored one by one. NumPy has no bfloat16: its bits stand for it."""


TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
}
"""GGUF's types by their numbers: name, numbers of a block, bytes of a block."""

CHUNK = 1 << 12
"""Blocks that are unpacked at once: their numbers fit into a cache."""


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor as its file has it.

    shape: of the numbers, rows (outputs) first.  type: GGUF's name, such as `F32`, `BF16`, `Q4_K`.
    data: of a plain type an array of `shape`; else uint8 [rows, bytes of a row].
    """

    shape: tuple[int, ...]
    type: str
    data: Array

    @property
    def quantized(self) -> bool:
        """Its rows are packed."""
        return self.type not in PLAIN

    def rows(self, which: slice | npt.NDArray[np.intp]) -> "Weight":
        """Some of its rows, packed as they are; a view if `which` is a slice."""
        data = self.data[which]
        return Weight((len(data), *self.shape[1:]), self.type, data)

    def float32(self) -> Floats:
        """Its numbers, of `shape`; a view of the file if they are stored so."""
        if self.type == "BF16":
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        if not self.quantized:
            return self.data.astype(np.float32, copy=False)
        return _unpacked(self.data, self.type).reshape(self.shape)


def _unpacked(data: Array, kind: str) -> Floats:
    """By the formulas of the format's own library, but many blocks at once."""
    # Only here: the server's process opens checkpoints and never needs it.
    from gguf import quants

    formulas = getattr(quants, kind)
    formulas.init_grid()
    _, numbers, size = next(entry for entry in TYPES.values() if entry[0] == kind)
    blocks = data.reshape(-1, size)
    out = np.empty((len(blocks), numbers), np.float32)
    for start in range(0, len(blocks), CHUNK):
        part = slice(start, start + CHUNK)
        out[part] = formulas.dequantize_blocks(blocks[part])
    return out


@dataclass(frozen=True, slots=True)
class Tensor:
    """A weight that can be had: its shape, and how."""

    shape: tuple[int, ...]
    read: Callable[[], Weight]

    @classmethod
    def of(cls, weight: Weight) -> "Tensor":
        """One whose data is mapped already."""
        return cls(weight.shape, lambda: weight)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """folder: where its files are.  metadata: all keys and values of a GGUF file; None otherwise.
    tensors: by canonical name."""

    architecture: Architecture | Encoder
    defaults: Defaults
    folder: Path
    metadata: Mapping[str, Any] | None
    tensors: Mapping[str, Tensor]

    @property
    def decoder(self) -> Architecture:
        """Its architecture; UNSUPPORTED if it does not write text."""
        if isinstance(self.architecture, Encoder):
            raise unsupported("text from an encoder", field=str(self.folder))
        return self.architecture

    @property
    def encoder(self) -> Encoder:
        """Its architecture; UNSUPPORTED if it makes no vectors."""
        if not isinstance(self.architecture, Encoder):
            raise unsupported("vectors from a decoder", field=str(self.folder))
        return self.architecture

    def names(self) -> Iterable[str]:
        """All weights that it has."""
        return self.tensors.keys()

    def weight(self, name: str) -> Weight:
        """One of them. Its data is read from the disk when it is used."""
        try:
            return self.tensors[name].read()
        except KeyError:
            raise internal(f"the checkpoint in {self.folder} has no weight '{name}'") from None


def check(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], source: Path
) -> dict[str, Tensor]:
    """Those of `tensors` that a model needs; INVALID_ARG if one is missing or has another shape."""
    for name, shape in wanted.items():
        if name not in tensors:
            raise invalid(f"the weight '{name}' is missing", field=str(source))
        if tensors[name].shape != shape:
            raise invalid(
                f"the weight '{name}' has shape {list(tensors[name].shape)}, "
                f"and the model needs {list(shape)}",
                field=str(source),
            )
    return {name: tensors[name] for name in wanted}


def decoder_shapes(a: Architecture) -> dict[str, tuple[int, ...]]:
    """Every weight of a decoder."""
    queries, keys = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    layer: dict[str, tuple[int, ...]] = {}
    if a.pre_norm:
        layer |= {"attn_norm": (a.hidden_size,), "mlp_norm": (a.hidden_size,)}
    if a.post_norm:
        layer |= {"post_attn_norm": (a.hidden_size,), "post_mlp_norm": (a.hidden_size,)}
    if a.qk_norm:
        layer |= {"q_norm": (a.head_dim,), "k_norm": (a.head_dim,)}
    linears = {
        "q": (queries, a.hidden_size, a.qkv_bias),
        "k": (keys, a.hidden_size, a.qkv_bias),
        "v": (keys, a.hidden_size, a.qkv_bias),
        "o": (a.hidden_size, queries, a.output_bias),
        "gate": (a.intermediate_size, a.hidden_size, a.mlp_bias),
        "up": (a.intermediate_size, a.hidden_size, a.mlp_bias),
        "down": (a.hidden_size, a.intermediate_size, a.mlp_bias),
    }
    for name, (rows, columns, biased) in linears.items():
        layer[name] = (rows, columns)
        if biased:
            layer[f"{name}.bias"] = (rows,)
    ends = {"embed": (a.vocab_size, a.hidden_size), "norm": (a.hidden_size,)}
    if not a.tied:
        ends["head"] = (a.vocab_size, a.hidden_size)
    return ends | _each_layer(layer, len(a.layers))


def encoder_shapes(e: Encoder) -> dict[str, tuple[int, ...]]:
    """Every weight of an encoder."""
    hidden, middle = e.hidden_size, e.intermediate_size
    ends = {
        "embed": (e.vocab_size, hidden),
        "positions": (e.max_position + e.position_offset, hidden),
        "token_types": (e.token_types, hidden),
        "embed_norm": (hidden,),
        "embed_norm.bias": (hidden,),
    }
    linears = {name: (hidden, hidden) for name in ("q", "k", "v", "o")}
    linears |= {"up": (middle, hidden), "down": (hidden, middle)}
    layer: dict[str, tuple[int, ...]] = dict(linears)
    layer |= {f"{name}.bias": shape[:1] for name, shape in linears.items()}
    layer |= {
        f"{norm}{end}": (hidden,) for norm in ("attn_norm", "mlp_norm") for end in ("", ".bias")
    }
    return ends | _each_layer(layer, e.num_layers)


def _each_layer(shapes: Mapping[str, tuple[int, ...]], count: int) -> dict[str, tuple[int, ...]]:
    return {f"layers.{i}.{name}": shape for i in range(count) for name, shape in shapes.items()}


def size_of(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers."""
    return sum(map(prod, shapes.values()))


def split(
    place: str, parts: tuple[tuple[str, int], ...], end: str, tensor: Tensor
) -> dict[str, Tensor]:
    """Weights whose rows lie one behind the other in one tensor."""
    tensors, start = {}, 0
    for name, count in parts:
        rows = slice(start, min(start + count, tensor.shape[0]))
        shape = (max(rows.stop - rows.start, 0), *tensor.shape[1:])

        def read(rows: slice = rows) -> Weight:
            return tensor.read().rows(rows)

        tensors[f"{place}{name}{end}"] = Tensor(shape, read)
        start += count
    return tensors
