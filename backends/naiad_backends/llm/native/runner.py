"""Computes steps of a dense decoder on the CPU with the native library."""

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from naiad_backends.errors import NaiadError, internal, invalid, unavailable, unsupported
from naiad_backends.llm.checkpoint.architecture import Architecture
from naiad_backends.llm.checkpoint.weights import Checkpoint
from naiad_backends.llm.engine.cache import blocks_for
from naiad_backends.llm.engine.runner import Ints, Runner, Step
from naiad_backends.llm.engine.sampler import Logits, Sampler
from naiad_backends.llm.native import library as native
from naiad_backends.llm.native.packing import PLAIN, Kind, floats, put_matrix
from naiad_backends.llm.native.sampling import wishes
from naiad_backends.llm.options import Options
from naiad_backends.llm.sampling import Sampling

BLOCK_SIZES = (16, 32, 64, 128)
"""Divisors of the chunks of src/attention.h, and whole vectors."""

BLOCK_SIZE = 32
MAX_TOKENS = 256
GROUP_LIMIT = 48
"""Of query heads that share a KV head; QUERY_ROWS of src/attention.h."""

_UNFIT = 2
"""What the library answers where the arrays of a step do not belong together."""

NORMS = ("attn_norm", "post_attn_norm", "mlp_norm", "post_mlp_norm", "q_norm", "k_norm")
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
"""In the order of src/model.h."""

ACTIVATIONS = ("silu", "gelu_tanh", "gelu")


class NativeRunner(Runner):
    """checkpoint: of a decoder, limited to the length that the options ask for.  folder: where the
    library is built if there is none.

    UNSUPPORTED if there is no compiler or a shape that the kernels do not have; INVALID_ARG for
    options that do not fit.
    """

    def __init__(self, checkpoint: Checkpoint, options: Options, folder: Path) -> None:
        a = checkpoint.decoder
        _check(a, options)
        self._library = native.load(folder)
        self.vocab_size = a.vocab_size
        self.max_model_len = a.max_position
        self.block_size = options.block_size or BLOCK_SIZE
        self.max_tokens = options.max_num_batched_tokens or max(MAX_TOKENS, options.max_num_seqs)
        self.threads = options.threads or len(os.sched_getaffinity(0))
        cache = _cache_kind(checkpoint, options)
        self.blocks = blocks_for(options, a, self.block_size, _itemsize(cache))
        self._config = _config(a, self, cache)
        self._model = self._library.naiad_new(ctypes.byref(self._config))
        if not self._model:
            raise unavailable(
                f"there is no memory for a KV cache of {self.blocks} blocks",
                hint="set kv_cache_memory_bytes or max_model_len to less",
            )
        self._logits = np.empty((0, self.vocab_size), np.float32)
        try:
            _load(self._library, self._model, checkpoint, options.dtype)
        except BaseException:
            self.close()
            raise
        self.description = (
            f"native kernels ({self._library.naiad_isa().decode()}), {self.threads} threads, "
            f"{self.weight_bytes / 1e6:.0f} MB of weights, KV cache in {cache.name}"
        )

    @property
    def weight_bytes(self) -> int:
        """Of all packed matrices, which a step reads once each."""
        return int(self._library.naiad_weight_bytes(self._model))

    @property
    def token_bytes(self) -> int:
        """Of the cache for one token, all layers together."""
        c = self._config
        return int(2 * c.layers * c.kv_heads * c.head_dim * _itemsize(Kind(c.cache)))

    def forward(self, step: Step) -> Logits:
        """See Runner. INTERNAL if the arrays do not belong together."""
        if not self._model:
            raise internal("the runner is closed")
        arrays = _arrays(step)
        rows = len(step.rows)
        if len(self._logits) < rows:
            self._logits = np.empty((rows, self.vocab_size), np.float32)
        native_step = native.Step(
            *(len(step.tokens), len(step.lengths), step.blocks.shape[1], rows),
            *(a.ctypes.data for a in arrays),
        )
        failed = self._library.naiad_forward(
            self._model, ctypes.byref(native_step), self._logits.ctypes.data
        )
        if failed == _UNFIT:
            raise _unfit()
        if failed:
            raise unavailable("there is no memory for a step")
        return self._logits[:rows]

    def make_sampler(self) -> Sampler:
        return Sampler(self.vocab_size, self.choose)

    def choose(
        self, logits: Logits, samplings: Sequence[Sampling], indices: Sequence[int]
    ) -> Sequence[int]:
        """See `draws.choose`."""
        if not self._model:
            raise internal("the runner is closed")
        logits = np.ascontiguousarray(logits)
        asked = wishes(samplings, indices)
        tokens = np.empty(len(asked), np.int32)
        if self._library.naiad_choose(
            self._model,
            *(logits.ctypes.data, logits.shape[1], len(asked)),
            *(asked.ctypes.data, tokens.ctypes.data),
        ):
            raise unavailable("there is no memory to choose tokens")
        chosen: list[int] = tokens.tolist()
        return chosen

    def close(self) -> None:
        """See Runner."""
        model, self._model = self._model, None
        if model:
            self._library.naiad_delete(model)


def _check(a: Architecture, options: Options) -> None:
    if options.block_size and options.block_size not in BLOCK_SIZES:
        raise invalid(
            f"blocks have {', '.join(map(str, BLOCK_SIZES))} tokens on a CPU, "
            f"not {options.block_size}",
            field="block_size",
        )
    if a.num_heads % a.num_kv_heads:
        raise unsupported(f"{a.num_heads} heads cannot share {a.num_kv_heads} KV heads evenly")
    if a.num_heads // a.num_kv_heads > GROUP_LIMIT:
        raise unsupported(f"more than {GROUP_LIMIT} heads share a KV head")
    if a.head_dim > 1024:
        raise unsupported(f"heads have {a.head_dim} dimensions")


def _cache_kind(checkpoint: Checkpoint, options: Options) -> Kind:
    """Half floats, unless all is to be exact."""
    if options.kv_cache_dtype != "auto":
        return PLAIN[options.kv_cache_dtype]
    exact = options.dtype == "float32" or (
        options.dtype == "auto" and checkpoint.weight("layers.0.k").type == "F32"
    )
    return Kind.F32 if exact else Kind.F16


def _itemsize(kind: Kind) -> int:
    return 4 if kind == Kind.F32 else 2


def _config(a: Architecture, runner: NativeRunner, cache: Kind) -> native.Config:
    return native.Config(
        vocab=a.vocab_size,
        hidden=a.hidden_size,
        intermediate=a.intermediate_size,
        heads=a.num_heads,
        kv_heads=a.num_kv_heads,
        head_dim=a.head_dim,
        layers=len(a.layers),
        ropes=len(a.ropes),
        pre_norm=a.pre_norm,
        post_norm=a.post_norm,
        qk_norm=a.qk_norm,
        activation=ACTIVATIONS.index(a.activation),
        threads=runner.threads,
        max_tokens=runner.max_tokens,
        block_size=runner.block_size,
        blocks=runner.blocks,
        cache=cache,
        eps=a.norm_eps,
        attention_scale=a.attention_scale or a.head_dim**-0.5,
        score_softcap=a.score_softcap,
        logit_softcap=a.logit_softcap,
        embedding_scale=a.embedding_scale,
        residual_scale=a.residual_scale,
        logit_scale=a.logit_scale,
    )


def _load(library: native.Library, model: int, checkpoint: Checkpoint, dtype: str) -> None:
    """Everything of the checkpoint into the model."""
    a, names = checkpoint.decoder, set(checkpoint.names())

    def matrix(layer: int, which: int, name: str) -> None:
        put_matrix(library, model, layer, which, checkpoint.weight(name), dtype)
        if f"{name}.bias" in names:
            bias = floats(checkpoint.weight(f"{name}.bias"))
            library.naiad_bias(model, layer, which, bias.ctypes.data, len(bias))

    def norm(layer: int, which: int, name: str) -> None:
        if name in names:
            weight = floats(checkpoint.weight(name)) + np.float32(a.norm_offset)
            library.naiad_norm(model, layer, which, weight.ctypes.data, len(weight))

    matrix(-1, 0, "embed")
    if not a.tied:
        matrix(-1, 1, "head")
    norm(-1, 0, "norm")
    for i, rope in enumerate(a.ropes):
        frequencies = np.array(rope.inv_freq, np.float32)
        library.naiad_rope(
            *(model, i, rope.dimensions, rope.interleaved, rope.scale, frequencies.ctypes.data)
        )
    for i, layer in enumerate(a.layers):
        library.naiad_layer(model, i, layer.window, -1 if layer.rope is None else layer.rope)
        _each(NORMS, i, norm)
        _each(MATRICES, i, matrix)


def _each(names: tuple[str, ...], layer: int, put: Callable[[int, int, str], Any]) -> None:
    for which, name in enumerate(names):
        put(layer, which, f"layers.{layer}.{name}")


def _arrays(step: Step) -> list[Ints]:
    """What the library reads. It checks what is in them, once their shapes are right."""
    given = (step.tokens, step.positions, step.slots, step.starts, step.lengths, step.blocks)
    arrays = [np.ascontiguousarray(a, np.int32) for a in (*given, step.rows)]
    tokens, positions, slots, starts, lengths, blocks, rows = [a.shape for a in arrays]
    fits = (
        len(tokens) == len(rows) == 1
        and positions == slots == tokens
        and starts == (lengths[0] + 1,)
        and blocks == (lengths[0], *blocks[1:2])
    )
    if not fits:
        raise _unfit()
    return arrays


def _unfit() -> NaiadError:
    return internal("the arrays of a step do not belong together")
