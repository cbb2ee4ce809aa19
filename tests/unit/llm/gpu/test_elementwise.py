"""Norms, activations and the rotation against the same in plain torch."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from naiad_backends.llm.gpu.activation import gated
from naiad_backends.llm.gpu.norm import add_rms_norm, rms_norm
from naiad_backends.llm.gpu.rope import HeadNorms, Rotation, rope_and_store

# What is infinite on a GPU is infinite and a warning in the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")

BLOCK_SIZE = 16


def rand(random: torch.Generator, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, generator=random, device=random.device).to(dtype)


def close(got: Tensor, want: Tensor) -> None:
    """Within half a unit of the last place that the type has, and a little."""
    tolerance = max(torch.finfo(got.dtype).eps, 4e-6)
    torch.testing.assert_close(got.double(), want.double(), atol=tolerance, rtol=tolerance)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x.double(), x.shape[-1:], weight.double(), 1e-5)


@pytest.mark.parametrize("columns", [1, 33, 576])
def test_norm(random: torch.Generator, dtype: torch.dtype, columns: int) -> None:
    x = rand(random, 3, columns, dtype=dtype)
    weight = rand(random, columns)
    close(rms_norm(x, weight, 1e-5), norm(x, weight))


def test_norm_after_addition(random: torch.Generator, dtype: torch.dtype) -> None:
    x, residual = (rand(random, 2, 40, dtype=dtype) for _ in range(2))
    weight = rand(random, 40, dtype=dtype)
    total = (residual.float() + x.float()).to(dtype)
    result = add_rms_norm(x, residual, weight, 1e-5)
    torch.testing.assert_close(residual, total, rtol=0, atol=0)
    close(result, norm(total, weight))


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "gelu"])
@pytest.mark.parametrize("columns", [5, 1030])
def test_gate(random: torch.Generator, kind: str, columns: int) -> None:
    both = rand(random, 2, 2 * columns) * 4
    gate, up = torch.split(both.double(), columns, 1)
    active = {
        "silu": functional.silu(gate),
        "gelu_tanh": functional.gelu(gate, approximate="tanh"),
        "gelu": functional.gelu(gate),
    }[kind]
    close(gated(both, kind), active * up)


def test_gate_of_extremes(device: torch.device) -> None:
    """No overflow inside becomes NaN."""
    both = torch.tensor([[-1e4, 1e4, 1.0, 1.0]], device=device)
    for kind in ("silu", "gelu_tanh", "gelu"):
        assert gated(both, kind).tolist() == [[0, 1e4]]


def rotate(x: Tensor, positions: Tensor, rotation: Rotation) -> Tensor:
    """x: [T, H, D]."""
    half = len(rotation.inv_freq)
    angle = positions.float()[:, None] * rotation.inv_freq
    cos, sin = (f(angle)[:, None] * rotation.scale for f in (torch.cos, torch.sin))
    result = x.clone()
    if rotation.interleaved:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    else:
        first, second = slice(0, half), slice(half, 2 * half)
    result[..., first] = x[..., first] * cos - x[..., second] * sin
    result[..., second] = x[..., second] * cos + x[..., first] * sin
    return result


def check_rope(
    random: torch.Generator,
    heads: int,
    kv_heads: int,
    head_dim: int,
    rotary: int,
    interleaved: bool = False,
    normed: bool = False,
) -> None:
    device = random.device
    positions = torch.tensor([0, 1, 77, 30_000], dtype=torch.int32, device=device)
    slots = torch.tensor([16, 63, 47, 33], dtype=torch.int32, device=device)
    qkv = rand(random, len(positions), (heads + 2 * kv_heads) * head_dim)
    cache = torch.full([2, 4, kv_heads, BLOCK_SIZE, head_dim], math.nan, device=device)
    rotation = norms = None
    if rotary:
        powers = torch.arange(0, rotary, 2, dtype=torch.float32, device=device) / rotary
        rotation = Rotation(10_000.0**-powers, 1.25, interleaved)
    if normed:
        norms = HeadNorms(rand(random, head_dim), rand(random, head_dim), 1e-5)
    got = rope_and_store(qkv, cache[0], cache[1], positions, slots, heads, rotation, norms)

    split = [heads, kv_heads, kv_heads]
    q, k, v = torch.split(qkv.view(len(positions), -1, head_dim), split, 1)
    if norms:
        q, k = norm(q, norms.q).float(), norm(k, norms.k).float()
    if rotation:
        q, k = (rotate(each, positions, rotation) for each in (q, k))
    # Sine and cosine of large angles are a little different on each device.
    torch.testing.assert_close(got, q, atol=5e-5, rtol=5e-5)
    for stored, want in zip(cache, (k, v), strict=True):
        flat = stored.transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(flat[slots.long()], want, atol=5e-5, rtol=5e-5)
        assert flat.isnan().any(-1).any(-1).sum() == len(flat) - len(slots)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (9, 3), (12, 12)])
def test_rope_heads(random: torch.Generator, heads: int, kv_heads: int) -> None:
    check_rope(random, heads, kv_heads, 16, 16)


@pytest.mark.parametrize(("head_dim", "rotary"), [(80, 80), (96, 96), (80, 32), (64, 16), (16, 0)])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("normed", [False, True])
def test_rope_kinds(
    random: torch.Generator, head_dim: int, rotary: int, interleaved: bool, normed: bool
) -> None:
    check_rope(random, 3, 1, head_dim, rotary, interleaved, normed)


def test_rope_leaves_the_projection_alone(random: torch.Generator) -> None:
    qkv = rand(random, 1, 3 * 16)
    before = qkv.clone()
    cache = torch.zeros(2, 1, 1, BLOCK_SIZE, 16, device=random.device)
    zero = torch.zeros(1, dtype=torch.int32, device=random.device)
    rope_and_store(qkv, cache[0], cache[1], zero, zero, 1, None, None)
    assert torch.equal(qkv, before)
