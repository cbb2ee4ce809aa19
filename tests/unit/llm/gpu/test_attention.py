"""Paged attention against attention written out in float32."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from naiad_backends.llm.gpu.attention import (
    Decode,
    Shape,
    Tiles,
    decode_tiles,
    extend,
    extend_table,
    extend_tiles,
)

SHAPE = Shape(heads=2, kv_heads=1, head_dim=16, block_size=16, scale=0.25)
TILES = Tiles(16, 32, 4, 2)
"""Small, so that short sequences have several."""


class Pages:
    """A cache in which every position that no sequence has is NaN."""

    def __init__(
        self, shape: Shape, lengths: list[int], random: torch.Generator, dtype: torch.dtype
    ) -> None:
        device = random.device
        self.shape, self.random, self.dtype = shape, random, dtype
        size = shape.block_size
        needed = [math.ceil(length / size) for length in lengths]
        count = sum(needed) + 3
        self.keys = torch.full(
            [count, shape.kv_heads, size, shape.head_dim], math.nan, dtype=dtype, device=device
        )
        self.values = self.keys.clone()
        self.blocks = torch.zeros(len(lengths), max(needed) + 2, dtype=torch.int32, device=device)
        self.lengths = torch.tensor(lengths, dtype=torch.int32, device=device)
        # Neighbours in a sequence are not neighbours in memory.
        free = list(torch.randperm(count - 1, device=device, generator=random) + 1)
        self.plain: list[tuple[Tensor, Tensor]] = []
        for row, length in enumerate(lengths):
            pair = self.rand(length, shape.kv_heads), self.rand(length, shape.kv_heads)
            self.plain.append(pair)
            for start in range(0, length, size):
                block = int(free.pop())
                self.blocks[row, start // size] = block
                for cache, values in zip((self.keys, self.values), pair, strict=True):
                    part = values[start : start + size].transpose(0, 1)
                    cache[block, :, : part.shape[1]] = part

    def rand(self, length: int, heads: int) -> Tensor:
        size = (length, heads, self.shape.head_dim)
        return torch.randn(size, generator=self.random, device=self.random.device).to(self.dtype)

    def forget(self, window: int, counts: list[int]) -> None:
        """Give the blocks back that no new token sees."""
        for row, count in enumerate(counts):
            gone = max(int(self.lengths[row]) - count - window + 1, 0) // self.shape.block_size
            self.blocks[row, :gone] = 0


def reference(shape: Shape, q: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
    """Attention of the last len(q) tokens of one sequence."""
    q, k, v = (
        (each.double() if each is q else each.double().repeat_interleave(shape.group, 1))
        for each in (q, keys, values)
    )
    scores = torch.einsum("qhd,khd->hqk", q, k) * shape.scale
    if shape.softcap:
        scores = shape.softcap * torch.tanh(scores / shape.softcap)
    own = torch.arange(len(k) - len(q), len(k), device=q.device)[:, None]
    other = torch.arange(len(k), device=q.device)[None]
    seen = other <= own
    if window:
        seen &= other > own - window
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


def close(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    """Within the rounding of a type; in float32 only the order of sums differs."""
    tolerance = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(got.double(), want, atol=tolerance, rtol=tolerance)


def check_extend(
    shape: Shape,
    lengths: list[int],
    counts: list[int],
    random: torch.Generator,
    window: int = 0,
    tile: Tiles = TILES,
    dtype: torch.dtype = torch.float32,
) -> None:
    pages = Pages(shape, lengths, random, dtype)
    if window:
        pages.forget(window, counts)
    q = pages.rand(sum(counts), shape.heads)
    out = torch.zeros_like(q)
    starts = [sum(counts[:i]) for i in range(len(counts) + 1)]
    whole = {"dtype": torch.int32, "device": q.device}
    table = extend_table(starts, 0, tile.rows // shape.group)
    extend(
        shape,
        out,
        q,
        pages.keys,
        pages.values,
        pages.blocks,
        torch.tensor(starts, **whole),  # type: ignore[arg-type]  # a dict of options
        pages.lengths,
        torch.tensor(table, **whole),  # type: ignore[arg-type]
        window,
        tile,
    )
    for row, (keys, values) in enumerate(pages.plain):
        here = slice(starts[row], starts[row + 1])
        close(out[here], reference(shape, q[here], keys, values, window), dtype)


def check_decode(
    shape: Shape,
    lengths: list[int],
    random: torch.Generator,
    window: int = 0,
    programs: int = 8,
    tile: Tiles = TILES,
    dtype: torch.dtype = torch.float32,
) -> None:
    pages = Pages(shape, lengths, random, dtype)
    if window:
        pages.forget(window, [1] * len(lengths))
    q = pages.rand(len(lengths), shape.heads)
    out = torch.full_like(q, math.nan)
    decode = Decode(shape, [window], len(lengths) + 3, programs, q.device, tile)
    decode.plan(pages.lengths)
    decode(out, q, pages.keys, pages.values, pages.blocks, pages.lengths, window)
    for row, (keys, values) in enumerate(pages.plain):
        want = reference(shape, q[row : row + 1], keys, values, window)
        close(out[row : row + 1], want if lengths[row] else torch.zeros_like(want), dtype)


def test_decode_lengths_around_blocks_and_tiles(random: torch.Generator) -> None:
    check_decode(SHAPE, [1, 15, 16, 17, 31, 32, 33, 0, 70], random)


def test_decode_several_kv_heads(random: torch.Generator) -> None:
    check_decode(replace(SHAPE, heads=6, kv_heads=3), [40, 5], random, programs=9)


@pytest.mark.parametrize("programs", [1, 2, 6, 40])
def test_decode_splits(random: torch.Generator, programs: int) -> None:
    check_decode(SHAPE, [200, 1, 64, 0, 33], random, programs=programs)


def test_decode_many_splits_of_one_sequence(random: torch.Generator) -> None:
    """More parts than the combine kernel takes at once."""
    check_decode(SHAPE, [550], random, programs=20)


SHAPES = [(64, 1), (64, 16), (80, 3), (96, 4), (128, 1), (128, 7), (256, 2)]
"""Dimensions of a head, and heads of a group."""


@pytest.mark.parametrize(("head_dim", "group"), SHAPES)
def test_decode_shapes(random: torch.Generator, head_dim: int, group: int) -> None:
    shape = replace(SHAPE, heads=group, kv_heads=1, head_dim=head_dim)
    check_decode(shape, [40, 7], random, programs=3)


@pytest.mark.parametrize("window", [1, 16, 17, 90])
def test_decode_window(random: torch.Generator, window: int) -> None:
    check_decode(SHAPE, [1, 16, 17, 70, 33], random, window)


@pytest.mark.parametrize("block_size", [16, 32, 128])
def test_decode_block_sizes(random: torch.Generator, block_size: int) -> None:
    check_decode(replace(SHAPE, block_size=block_size), [1, 31, 65], random)


@pytest.mark.parametrize("programs", [2, 20])
def test_decode_softcap(random: torch.Generator, programs: int) -> None:
    check_decode(replace(SHAPE, scale=3.0, softcap=20.0), [70, 3], random, programs=programs)


def test_decode_types_with_their_own_tiles(random: torch.Generator, dtype: torch.dtype) -> None:
    check_decode(SHAPE, [130, 17], random, dtype=dtype, tile=decode_tiles(SHAPE, dtype))


def test_extend_several_kv_heads(random: torch.Generator) -> None:
    check_extend(replace(SHAPE, heads=6, kv_heads=3), [20], [20], random)


def test_extend_prompts(random: torch.Generator) -> None:
    lengths = [1, 15, 16, 17, 33]
    check_extend(SHAPE, lengths, lengths, random)


def test_extend_chunks_behind_a_prefix(random: torch.Generator) -> None:
    check_extend(SHAPE, [20, 48, 33, 65, 70], [4, 17, 1, 16, 9], random)


def test_extend_skips_sequences_without_tokens(random: torch.Generator) -> None:
    check_extend(SHAPE, [5, 30, 0, 9], [5, 0, 0, 2], random)


@pytest.mark.parametrize(("head_dim", "group"), SHAPES)
def test_extend_shapes(random: torch.Generator, head_dim: int, group: int) -> None:
    shape = replace(SHAPE, heads=group, kv_heads=1, head_dim=head_dim)
    check_extend(shape, [35, 3], [6, 3], random)


@pytest.mark.parametrize("window", [1, 16, 21])
def test_extend_window(random: torch.Generator, window: int) -> None:
    check_extend(SHAPE, [17, 70, 40], [17, 20, 2], random, window)


def test_extend_softcap(random: torch.Generator) -> None:
    check_extend(replace(SHAPE, scale=3.0, softcap=20.0), [40, 9], [12, 9], random)


def test_extend_types_with_their_own_tiles(random: torch.Generator, dtype: torch.dtype) -> None:
    check_extend(SHAPE, [150, 70], [150, 3], random, dtype=dtype, tile=extend_tiles(SHAPE, dtype))


def test_tiles_cover_every_query_once() -> None:
    assert extend_table([0, 1, 1, 6, 8], 1, 2) == [(2, 0), (2, 2), (2, 4), (3, 0)]


def test_a_large_group_has_room() -> None:
    shape = replace(SHAPE, heads=71, kv_heads=1)
    assert decode_tiles(shape, torch.bfloat16).rows == 128
    assert all(
        extend_tiles(shape, dtype).rows >= shape.group for dtype in (torch.float32, torch.float16)
    )
