"""A program that compiles every kernel for a GPU that need not be there, as its launch would.

It calls what launches them, with tensors of the sizes and types of real models; instead of a launch
it compiles to machine code. `test_compile.py` runs it in a process without the interpreter.
"""

import inspect
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

from naiad_backends.llm.gpu.activation import gated
from naiad_backends.llm.gpu.attention import Decode, Shape, decode_tiles, extend, extend_tiles
from naiad_backends.llm.gpu.norm import add_rms_norm, rms_norm
from naiad_backends.llm.gpu.rope import HeadNorms, Rotation, rope_and_store

SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10}
"""Bytes that a block of threads may have."""


def compile_for(capability: int) -> None:
    """From now on a launch compiles its kernel."""

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        names = ("num_warps", "num_stages")
        options = {name: kwargs.pop(name) for name in names if name in kwargs}
        values = inspect.signature(self.fn).bind(*args, **kwargs).arguments
        constants = {p.name: values[p.name] for p in self.params if p.is_constexpr}
        signature = {
            name: "constexpr" if name in constants else mangle_type(value)
            for name, value in values.items()
        }
        source = ASTSource(self, signature, constants)
        kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert kernel.asm["cubin"]
        assert kernel.metadata.shared <= SHARED_MEMORY[capability], kernel.metadata
        print(self.fn.__name__, kernel.metadata.shared, flush=True)

    JITFunction.run = run


def launch_attention(shape: Shape, window: int, dtype: torch.dtype) -> None:
    cache = torch.empty(4, shape.kv_heads, shape.block_size, shape.head_dim, dtype=dtype)
    q = torch.empty(2, shape.heads, shape.head_dim, dtype=dtype)
    ints = torch.zeros(3, 2, dtype=torch.int32)
    tile = extend_tiles(shape, dtype)
    starts, lengths = ints[0], ints[0, :2]
    extend(shape, q, q, cache, cache, ints, starts, lengths, ints, window, tile)
    decode = Decode(shape, [window], 2, 64, q.device, decode_tiles(shape, dtype))
    decode.plan(lengths)
    decode(q, q, cache, cache, ints, lengths, window)


def launch_others(dtype: torch.dtype) -> None:
    x = torch.empty(2, 4096, dtype=dtype)
    rms_norm(x, x[0], 1e-6)
    add_rms_norm(x, x, x[0], 1e-6)
    for kind in ("silu", "gelu_tanh", "gelu"):
        gated(x, kind)
    cache = torch.empty(4, 8, 16, 128, dtype=dtype)
    qkv = torch.empty(2, 48 * 128, dtype=dtype)
    ints = torch.zeros(2, dtype=torch.int32)
    for interleaved in (False, True):
        rotation = Rotation(torch.empty(64), 1.0, interleaved)
        rope_and_store(qkv, cache, cache, ints, ints, 32, rotation, None)
    norms = HeadNorms(x[0, :128], x[0, :128], 1e-6)
    rope_and_store(qkv, cache, cache, ints, ints, 32, Rotation(torch.empty(32)), norms)


def main() -> None:
    compile_for(int(sys.argv[1]))
    bf16 = torch.bfloat16
    launch_others(bf16)
    launch_attention(Shape(32, 8, 128, 16, 0.1), 0, bf16)
    launch_attention(Shape(8, 4, 256, 16, 0.1, 50.0), 4096, bf16)


if __name__ == "__main__":
    main()
