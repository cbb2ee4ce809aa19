"""What happens to queries, keys and values between projection and attention, in one kernel: the
norm of each head, the rotation, and the way into the paged cache.

Angles are computed where they are used, from positions and frequencies in float32, as the reference
does; a table of them would be as large as some models.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from naiad_backends.llm.gpu.chain import chained, take_turn


@dataclass(frozen=True, slots=True)
class Rotation:
    """inv_freq: [dimensions / 2] float32, on the device; `dimensions` of each head rotate, in pairs
    of neighbours or of halves. scale: of cosine and sine."""

    inv_freq: Tensor
    scale: float = 1.0
    interleaved: bool = False


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMSNorm of each head of queries and of keys. q, k: weights [head_dim], of any type."""

    q: Tensor
    k: Tensor
    eps: float


@triton.jit
def _turn(
    source: tl.tensor,
    mask: tl.tensor,
    weight: tl.tensor,
    inv_freq: tl.tensor,
    position: tl.tensor,
    scale: tl.tensor,
    eps: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROTARY: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NORM: tl.constexpr,
) -> tl.tensor:
    """Norm and rotate heads [H, BLOCK_D], whose first elements `source` [H, 1] points at."""
    dims = tl.arange(0, BLOCK_D)
    HALF: tl.constexpr = ROTARY // 2
    rotates = dims < ROTARY
    if INTERLEAVED:
        pair = dims // 2
        first = dims % 2 == 0
        other = tl.where(first, dims + 1, dims - 1)
    else:
        pair = dims % HALF if HALF else dims
        first = dims < HALF
        other = tl.where(first, dims + HALF, dims - HALF)
    other = tl.where(rotates, other, dims)
    x = tl.load(source + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    if ROTARY:
        y = tl.load(source + other[None, :], mask=mask, other=0.0).to(tl.float32)
    if NORM:
        factor = tl.rsqrt(tl.sum(x * x, 1) / HEAD_DIM + eps)[:, None]
        inside = dims < HEAD_DIM
        w = tl.load(weight + dims, mask=inside, other=0.0).to(tl.float32)
        x *= factor * w[None, :]
        if ROTARY:
            w = tl.load(weight + other, mask=inside, other=0.0).to(tl.float32)
            y *= factor * w[None, :]
    if ROTARY:
        angle = position.to(tl.float32) * tl.load(inv_freq + pair, mask=rotates, other=0.0)
        cosine = tl.where(rotates, tl.cos(angle) * scale, 1.0)
        sine = tl.where(rotates, tl.sin(angle) * scale, 0.0)
        x = x * cosine[None, :] + y * tl.where(first, -sine, sine)[None, :]
    return x


@triton.jit
def _rope_kernel(
    out: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    qkv: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    q_norm: tl.tensor,
    k_norm: tl.tensor,
    inv_freq: tl.tensor,
    scale: tl.tensor,
    eps: tl.tensor,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    ROTARY: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NORM: tl.constexpr,
    CHAINED: tl.constexpr,
) -> None:
    """Some heads of one token: BLOCK_H of the queries, or of keys and values."""
    take_turn(CHAINED)
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    position = tl.load(positions + token)
    dims = tl.arange(0, BLOCK_D)
    row = qkv + token * (HEADS + 2 * KV_HEADS) * HEAD_DIM
    QUERIES: tl.constexpr = (HEADS + BLOCK_H - 1) // BLOCK_H
    if part < QUERIES:
        heads = part * BLOCK_H + tl.arange(0, BLOCK_H)
        mask = (heads < HEADS)[:, None] & (dims < HEAD_DIM)[None, :]
        q = _turn(
            row + heads[:, None] * HEAD_DIM, mask, q_norm, inv_freq, position, scale, eps,
            HEAD_DIM, BLOCK_D, ROTARY, INTERLEAVED, NORM,
        )  # fmt: skip
        here = (token * HEADS + heads)[:, None] * HEAD_DIM + dims[None, :]
        tl.store(out + here, q.to(out.dtype.element_ty), mask=mask)
    else:
        heads = (part - QUERIES) * BLOCK_H + tl.arange(0, BLOCK_H)
        mask = (heads < KV_HEADS)[:, None] & (dims < HEAD_DIM)[None, :]
        source = row + (HEADS + heads)[:, None] * HEAD_DIM
        k = _turn(
            source, mask, k_norm, inv_freq, position, scale, eps,
            HEAD_DIM, BLOCK_D, ROTARY, INTERLEAVED, NORM,
        )  # fmt: skip
        v = tl.load(source + KV_HEADS * HEAD_DIM + dims[None, :], mask=mask, other=0.0)
        slot = tl.load(slots + token).to(tl.int64)
        place = (slot // BLOCK_SIZE * KV_HEADS + heads) * BLOCK_SIZE + slot % BLOCK_SIZE
        here = place[:, None] * HEAD_DIM + dims[None, :]
        tl.store(keys + here, k.to(keys.dtype.element_ty), mask=mask)
        tl.store(values + here, v.to(values.dtype.element_ty), mask=mask)


def rope_and_store(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    slots: Tensor,
    heads: int,
    rotation: Rotation | None,
    norms: HeadNorms | None,
) -> Tensor:
    """The queries [T, heads, head_dim], ready for attention; keys and values are in the cache then.

    qkv: [T, (heads + 2 * kv_heads) * head_dim], contiguous.  keys, values: a layer's cache [blocks,
    kv_heads, block_size, head_dim].  positions, slots: [T] int32, as in a `Step`.
    """
    tokens = len(qkv)
    _, kv_heads, block_size, head_dim = keys.shape
    out = torch.empty(tokens, heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    block_h = 8
    parts = triton.cdiv(heads, block_h) + triton.cdiv(kv_heads, block_h)
    _rope_kernel[(tokens, parts)](
        out,
        keys,
        values,
        qkv,
        positions,
        slots,
        norms.q if norms else out,
        norms.k if norms else out,
        rotation.inv_freq if rotation else out,
        rotation.scale if rotation else 1.0,
        norms.eps if norms else 0.0,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        BLOCK_D=triton.next_power_of_2(head_dim),
        BLOCK_H=block_h,
        ROTARY=2 * len(rotation.inv_freq) if rotation else 0,
        INTERLEAVED=bool(rotation and rotation.interleaved),
        NORM=norms is not None,
        num_warps=4,
        **chained(qkv.device),
    )
    return out
