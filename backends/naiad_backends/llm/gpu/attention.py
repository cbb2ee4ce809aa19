"""Attention over the paged KV cache: one kernel for several tokens of a sequence, three for one.

A cache of keys or values is [blocks, kv_heads, block_size, head_dim]; a sequence's row of `blocks`
says where its tokens lie. All query heads of one KV head are rows of one tile, so that its keys are
read once. Positions that nobody sees are masked before they are multiplied: whatever lies in unused
pages, NaN too, stays there.

Single tokens are split along their keys, so that a few long sequences fill the GPU as well as many
short ones. How, is computed on the device (`Decode.plan`), so a CUDA graph can hold all of it: the
grid is as large as the parts can ever be, and the parts that are not needed end at once.

Knows nothing of models, steps or projections.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from naiad_backends.llm.gpu.chain import chained, take_turn

LOG2_E = tl.constexpr(math.log2(math.e))


@dataclass(frozen=True, slots=True)
class Shape:
    """What all layers share. scale: of the scores.  softcap: c in c * tanh(s / c), 0 for none."""

    heads: int
    kv_heads: int
    head_dim: int
    block_size: int
    scale: float
    softcap: float = 0.0

    @property
    def group(self) -> int:
        """Query heads for each KV head."""
        return self.heads // self.kv_heads

    @property
    def constants(self) -> dict[str, Any]:
        """As the kernels want it."""
        return {
            "scale": self.scale,
            "softcap": self.softcap,
            "KV_HEADS": self.kv_heads,
            "GROUP": self.group,
            "HEAD_DIM": self.head_dim,
            "BLOCK_SIZE": self.block_size,
            "BLOCK_D": triton.next_power_of_2(self.head_dim),
            "SOFTCAP": self.softcap > 0,
        }


class Tiles(NamedTuple):
    """rows: queries of a tile, times their heads.  keys: of a tile.  Both powers of two, 16 or
    more.  stages: three, since keys are found through a table, whose entries come a tile sooner."""

    rows: int
    keys: int
    warps: int
    stages: int


def extend_tiles(shape: Shape, dtype: torch.dtype) -> Tiles:
    """Tiles that fit the shared memory of sm_80 and later."""
    if dtype == torch.float32:
        return Tiles(max(32, _rows(shape.group)), 32, 4, 1)
    if shape.head_dim > 128:
        return Tiles(max(64, _rows(shape.group)), 32, 8, 3)
    return Tiles(max(128, _rows(shape.group)), 64, 8 if shape.head_dim > 64 else 4, 3)


def decode_tiles(shape: Shape, dtype: torch.dtype) -> Tiles:
    """The same for single tokens: a row for each head of a group, and what tensor cores want."""
    small = dtype == torch.float32 or shape.head_dim > 128
    return Tiles(_rows(shape.group), 32 if small else 64, 4, 3)


def _rows(group: int) -> int:
    return max(16, int(triton.next_power_of_2(group)))


@triton.jit
def _attend(
    q: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    table: tl.tensor,
    kv_head: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    peak: tl.tensor,
    total: tl.tensor,
    acc: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SOFTCAP: tl.constexpr,
    EDGE: tl.constexpr,
) -> tl.tensor:
    """Take the keys at [start, start + BLOCK_N) into an online softmax of base 2.

    Row i sees low[i] <= position <= high[i], and no row sees one below min(low) or from `end` on;
    without EDGE all rows see all.
    """
    positions = start + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    there = (positions >= tl.min(low, 0)) & (positions < end) if EDGE else positions >= 0
    pages = tl.load(table + positions // BLOCK_SIZE, mask=there, other=0).to(tl.int64)
    places = (pages * KV_HEADS + kv_head) * BLOCK_SIZE + positions % BLOCK_SIZE
    offsets = places[:, None] * HEAD_DIM + dims[None, :]
    mask = there[:, None] & (dims < HEAD_DIM)[None, :]
    k = tl.load(keys + offsets, mask=mask, other=0.0).to(q.dtype)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if SOFTCAP:
        scores = softcap * (1 - 2 / (tl.exp(2 * scores / softcap) + 1))
    scores *= LOG2_E
    if EDGE:
        seen = (positions[None, :] >= low[:, None]) & (positions[None, :] <= high[:, None])
        scores = tl.where(seen, scores, float("-inf"))
    highest = tl.maximum(peak, tl.max(scores, 1))
    # A row that has seen nothing yet has -inf here, and -inf - -inf is no number.
    base = tl.where(highest == float("-inf"), 0.0, highest)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(peak - base)
    v = tl.load(values + offsets, mask=mask, other=0.0).to(q.dtype)
    acc = acc * shrink[:, None] + tl.dot(weights.to(q.dtype), v, input_precision="ieee")
    return highest, total * shrink + tl.sum(weights, 1), acc


@triton.jit
def _extend_kernel(
    out: tl.tensor,
    q: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    blocks: tl.tensor,
    starts: tl.tensor,
    lengths: tl.tensor,
    tiles: tl.tensor,
    width: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    WINDOW: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SOFTCAP: tl.constexpr,
) -> None:
    """One tile of queries of one sequence with one KV head. Row r is the query r // GROUP of the
    tile with the head r % GROUP of the group."""
    sequence = tl.load(tiles + 2 * tl.program_id(0))
    first = tl.load(tiles + 2 * tl.program_id(0) + 1)
    kv_head = tl.program_id(1)
    start = tl.load(starts + sequence)
    count = tl.load(starts + sequence + 1) - start
    before = tl.load(lengths + sequence) - count
    QUERIES: tl.constexpr = BLOCK_M // GROUP
    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    token = first + rows // GROUP
    live = (rows < QUERIES * GROUP) & (token < count)
    heads = KV_HEADS * GROUP
    offsets = (start + token).to(tl.int64) * heads + kv_head * GROUP + rows % GROUP
    offsets = offsets[:, None] * HEAD_DIM + dims[None, :]
    mask = live[:, None] & (dims < HEAD_DIM)[None, :]
    query = tl.load(q + offsets, mask=mask, other=0.0)

    high = before + tl.minimum(token, count - 1)
    low = tl.maximum(high - WINDOW + 1, 0) if WINDOW else high * 0
    end = before + tl.minimum(first + QUERIES, count)
    begin = tl.min(low, 0) // BLOCK_N * BLOCK_N
    # All rows see whatever lies before the first of them, unless a window slides over it.
    plain = begin if WINDOW else (before + first + 1) // BLOCK_N * BLOCK_N
    table = blocks + sequence.to(tl.int64) * width
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for at in range(begin, plain, BLOCK_N):
        peak, total, acc = _attend(
            query, keys, values, table, kv_head, at, end, low, high, peak, total, acc, scale,
            softcap, KV_HEADS, HEAD_DIM, BLOCK_SIZE, BLOCK_D, BLOCK_N, SOFTCAP, False,
        )  # fmt: skip
    for at in range(plain, end, BLOCK_N):
        peak, total, acc = _attend(
            query, keys, values, table, kv_head, at, end, low, high, peak, total, acc, scale,
            softcap, KV_HEADS, HEAD_DIM, BLOCK_SIZE, BLOCK_D, BLOCK_N, SOFTCAP, True,
        )  # fmt: skip
    tl.store(out + offsets, (acc / total[:, None]).to(out.dtype.element_ty), mask=mask)


def extend_table(starts: Iterable[int], first: int, queries: int) -> list[tuple[int, int]]:
    """The tiles of the sequences from `first` on: (sequence, the first query in it)."""
    starts = list(starts)
    return [
        (sequence, query)
        for sequence in range(first, len(starts) - 1)
        for query in range(0, starts[sequence + 1] - starts[sequence], queries)
    ]


def extend(
    shape: Shape,
    out: Tensor,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    blocks: Tensor,
    starts: Tensor,
    lengths: Tensor,
    tiles: Tensor,
    window: int,
    tile: Tiles,
) -> None:
    """Attention of the last tokens of sequences, whose keys are in the cache already.

    out, q: [T, heads, head_dim].  keys, values: a layer's cache.  blocks: [B, width] int32.
    starts: [B + 1], lengths: [B] int32, as in a `Step`.  tiles: [N, 2] int32 of `extend_table`;
    tokens in no tile are left alone.  window: 0, or how many tokens back, itself included, a token
    sees.
    """
    _extend_kernel[(len(tiles), shape.kv_heads)](
        out,
        q,
        keys,
        values,
        blocks,
        starts,
        lengths,
        tiles,
        blocks.stride(0),
        WINDOW=window,
        BLOCK_M=tile.rows,
        BLOCK_N=tile.keys,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **shape.constants,
    )


@triton.jit
def _plan_kernel(
    quota: tl.tensor,
    firsts: tl.tensor,
    items: tl.tensor,
    lengths: tl.tensor,
    sequences: tl.tensor,
    parts: tl.tensor,
    WINDOW: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
) -> None:
    """Deal out the tiles of all sequences: every part gets `quota` of one sequence, about `parts`
    in all. Sequence i has the parts from firsts[i] to firsts[i + 1]; items: part -> sequence."""
    n = tl.arange(0, BLOCK_B)
    length = tl.load(lengths + n, mask=n < sequences, other=0)
    tiles = tl.cdiv(length, BLOCK_N)
    if WINDOW:
        tiles -= tl.maximum(length - WINDOW, 0) // BLOCK_N
    each = tl.maximum(tl.cdiv(tl.sum(tiles), parts), 1)
    splits = tl.cdiv(tiles, each)
    begins = tl.cumsum(splits) - splits
    tl.store(quota, each)
    tl.store(firsts + n, begins, mask=n <= sequences)
    for split in range(tl.max(splits)):
        tl.store(items + begins + split, n, mask=split < splits)


@triton.jit
def _decode_kernel(
    out: tl.tensor,
    sums: tl.tensor,
    tops: tl.tensor,
    q: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    blocks: tl.tensor,
    lengths: tl.tensor,
    quota: tl.tensor,
    firsts: tl.tensor,
    items: tl.tensor,
    sequences: tl.tensor,
    width: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    WINDOW: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SOFTCAP: tl.constexpr,
    CHAINED: tl.constexpr,
) -> None:
    """One part of one sequence with one KV head. The only part of a sequence writes `out`; several
    write their unscaled sums, and peak and total, for `_combine_kernel`."""
    take_turn(CHAINED)
    item = tl.program_id(0)
    if item >= tl.load(firsts + sequences):
        return
    kv_head = tl.program_id(1)
    sequence = tl.load(items + item)
    first = tl.load(firsts + sequence)
    splits = tl.load(firsts + sequence + 1) - first
    length = tl.load(lengths + sequence)
    span = tl.load(quota) * BLOCK_N
    lowest = tl.maximum(length - WINDOW, 0) if WINDOW else length * 0
    begin = lowest // BLOCK_N * BLOCK_N + (item - first) * span
    end = tl.minimum(begin + span, length)

    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    heads = KV_HEADS * GROUP
    head = kv_head * GROUP + rows
    live = rows < GROUP
    mask = live[:, None] & (dims < HEAD_DIM)[None, :]
    here = (sequence.to(tl.int64) * heads + head)[:, None] * HEAD_DIM + dims[None, :]
    query = tl.load(q + here, mask=mask, other=0.0)
    high = tl.full([BLOCK_M], 0, tl.int32) + length - 1
    low = tl.full([BLOCK_M], 0, tl.int32) + lowest
    table = blocks + sequence.to(tl.int64) * width
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for at in range(begin, end, BLOCK_N):
        peak, total, acc = _attend(
            query, keys, values, table, kv_head, at, end, low, high, peak, total, acc, scale,
            softcap, KV_HEADS, HEAD_DIM, BLOCK_SIZE, BLOCK_D, BLOCK_N, SOFTCAP, True,
        )  # fmt: skip
    if splits == 1:
        tl.store(out + here, (acc / total[:, None]).to(out.dtype.element_ty), mask=mask)
    else:
        place = item.to(tl.int64) * heads + head
        tl.store(sums + place[:, None] * HEAD_DIM + dims[None, :], acc, mask=mask)
        tl.store(tops + place * 2, peak, mask=live)
        tl.store(tops + place * 2 + 1, total, mask=live)


@triton.jit
def _combine_kernel(
    out: tl.tensor,
    sums: tl.tensor,
    tops: tl.tensor,
    firsts: tl.tensor,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CHAINED: tl.constexpr,
) -> None:
    """Join the parts of one sequence and head; zeros if there are none."""
    take_turn(CHAINED)
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    first = tl.load(firsts + sequence)
    last = tl.load(firsts + sequence + 1)
    if last - first == 1:
        return
    dims = tl.arange(0, BLOCK_D)
    peak = float("-inf")
    total = 0.0
    acc = tl.zeros([BLOCK_D], tl.float32)
    for at in range(first, last, BLOCK_S):
        parts = at + tl.arange(0, BLOCK_S)
        there = parts < last
        place = parts.to(tl.int64) * HEADS + head
        tops_here = tl.load(tops + place * 2, mask=there, other=float("-inf"))
        totals = tl.load(tops + place * 2 + 1, mask=there, other=0.0)
        mask = there[:, None] & (dims < HEAD_DIM)[None, :]
        parts_acc = tl.load(sums + place[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0.0)
        highest = tl.maximum(peak, tl.max(tops_here, 0))
        shrink = tl.exp2(peak - highest)
        weights = tl.exp2(tops_here - highest)
        acc = acc * shrink + tl.sum(parts_acc * weights[:, None], 0)
        total = total * shrink + tl.sum(totals * weights, 0)
        peak = highest
    result = acc / tl.where(total > 0, total, 1.0)
    offsets = (sequence.to(tl.int64) * HEADS + head) * HEAD_DIM + dims
    tl.store(out + offsets, result.to(out.dtype.element_ty), mask=dims < HEAD_DIM)


class Decode:
    """Attention of sequences with one new token each, with the memory that it needs.

    windows: of the layers; each has a plan of its own.  sequences: the most of a step.
    programs: how many the GPU should have to do at once.
    """

    def __init__(
        self,
        shape: Shape,
        windows: Iterable[int],
        sequences: int,
        programs: int,
        device: torch.device,
        tile: Tiles,
    ) -> None:
        self._shape = shape
        self._tile = tile
        self._parts = max(1, programs // shape.kv_heads)
        items = self._parts + sequences
        self._sums = torch.empty(items, shape.heads, shape.head_dim, device=device)
        self._tops = torch.empty(items, shape.heads, 2, device=device)
        # Of each window: quota, firsts and items, as `_plan_kernel` has them.
        self._plans = {
            window: torch.split(
                torch.zeros(2 + sequences + items, dtype=torch.int32, device=device),
                [1, sequences + 1, items],
            )
            for window in sorted(set(windows))
        }

    def plan(self, lengths: Tensor) -> None:
        """Divide the work of a step: lengths [B] int32; 0 where there is no sequence."""
        for window, (quota, firsts, items) in self._plans.items():
            _plan_kernel[(1,)](
                quota,
                firsts,
                items,
                lengths,
                len(lengths),
                self._parts,
                WINDOW=window,
                BLOCK_N=self._tile.keys,
                BLOCK_B=triton.next_power_of_2(len(lengths) + 1),
            )

    def __call__(
        self,
        out: Tensor,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        blocks: Tensor,
        lengths: Tensor,
        window: int,
    ) -> None:
        """One layer of the step that was planned. out, q: [B, heads, head_dim]; the others as in
        `extend`. A sequence of length 0 gets zeros."""
        shape, count = self._shape, len(lengths)
        quota, firsts, items = self._plans[window]
        _decode_kernel[(self._parts + count, shape.kv_heads)](
            out,
            self._sums,
            self._tops,
            q,
            keys,
            values,
            blocks,
            lengths,
            quota,
            firsts,
            items,
            count,
            blocks.stride(0),
            WINDOW=window,
            BLOCK_M=self._tile.rows,
            BLOCK_N=self._tile.keys,
            num_warps=self._tile.warps,
            num_stages=self._tile.stages,
            **shape.constants,
            **chained(q.device),
        )
        _combine_kernel[(count, shape.heads)](
            out,
            self._sums,
            self._tops,
            firsts,
            HEADS=shape.heads,
            HEAD_DIM=shape.head_dim,
            BLOCK_D=triton.next_power_of_2(shape.head_dim),
            BLOCK_S=16,
            num_warps=2,
            **chained(q.device),
        )
