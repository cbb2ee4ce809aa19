"""A program that compiles every kernel for a GPU that need not be there, as its launch would.

    python compiled.py        to Triton's intermediate code: seconds
    python compiled.py 90     to machine code of this compute capability: a minute

It calls what launches kernels, with tensors of the sizes and types of real models; instead of a
launch it compiles. `test_compile.py` runs it in a process without the interpreter.
"""

import inspect
import sys
from typing import Any

import numpy as np
import torch
import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from triton.runtime.jit import JITFunction, mangle_type

from naiad_backends.llm.engine.runner import Step
from naiad_backends.llm.gpu import activation, attention, norm, product, rope
from naiad_backends.llm.gpu.activation import gated
from naiad_backends.llm.gpu.attention import Decode, Shape, decode_tiles, extend, extend_tiles
from naiad_backends.llm.gpu.norm import add_rms_norm, rms_norm
from naiad_backends.llm.gpu.rope import HeadNorms, Rotation, rope_and_store
from naiad_backends.llm.gpu.sampling import COLUMNS, choose
from naiad_backends.llm.gpu.step import Inputs


def compile_for(capability: int, whole: bool) -> None:
    """From now on a launch compiles its kernel, to machine code if `whole`."""
    target = GPUTarget("cuda", capability, 32)

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        names = ("num_warps", "num_stages", "launch_pdl")
        options = {name: kwargs.pop(name) for name in names if name in kwargs}
        values = inspect.signature(self.fn).bind(*args, **kwargs).arguments
        constants = {p.name: values[p.name] for p in self.params if p.is_constexpr}
        signature = {
            name: "constexpr" if name in constants else mangle_type(value)
            for name, value in values.items()
        }
        # A launch knows that tensors are aligned; the code is quite another without.
        aligned = {
            (place,): [["tt.divisibility", 16]]
            for place, kind in enumerate(signature.values())
            if kind.startswith("*")
        }
        source = ASTSource(self, signature, constants, aligned)
        if whole:
            made = triton.compile(source, target=target, options=options)
            print(self.fn.__name__, "with", made.metadata.shared, "bytes shared", flush=True)
        else:
            intermediate(source, target, options)
            print(self.fn.__name__, flush=True)

    JITFunction.run = run
    # As a launch on such a GPU would have it.
    able = capability >= 90
    launch = {"CHAINED": able, "launch_pdl": able}
    for module in (activation, attention, norm, product, rope):
        setattr(module, "chained", lambda device: launch)  # noqa: B010  # no attribute for mypy


def intermediate(source: Any, target: Any, options: dict[str, Any]) -> None:
    """What a compiler does first; an error there is an error of ours."""
    backend = make_backend(target)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    parsed = backend.parse_options(options)
    functions = backend.get_codegen_implementation(parsed)
    source.make_ir(target, parsed, functions, backend.get_module_map(), context)


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
    product.product(x[:1], x, None)
    long = torch.empty(5, 14336, dtype=dtype)
    product.product(long[:1], long, long[0, :5])
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


def launch_the_rest() -> None:
    ints = torch.zeros(2, COLUMNS, dtype=torch.int32)
    choose(ints[0], torch.empty(2, 128_256), ints)
    two = np.zeros(2, np.int32)
    step = Step(two, two, two, np.arange(3, dtype=np.int32), two, np.zeros((2, 5), np.int32), two)
    Inputs(64, 8, 16, 16, 4, torch.device("cpu")).load(step)


def main() -> None:
    compile_for(int((sys.argv[1:] or ["90"])[0]), whole=len(sys.argv) > 1)
    bf16 = torch.bfloat16
    launch_others(bf16)
    launch_the_rest()
    launch_attention(Shape(32, 8, 128, 16, 0.1), 0, bf16)
    launch_attention(Shape(8, 4, 256, 16, 0.1, 50.0), 4096, bf16)


if __name__ == "__main__":
    main()
