"""Chooses tokens on the device, all rows at once, and nobody waits for it.

The rules and the random numbers are those of `naiad_backends.llm.engine.draws`: a race whose times
are hashed from (seed, index of the token in its text, token), so that a draw depends on nothing
else. No vocabulary is sorted. What top-k and top-p leave is everything above a value, and of the
tokens that have it the first ones; the value is found by halving an interval.

Three kernels: the bounds of each row, the winner of each part of a row, the winner of a row.
"""

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor

from naiad_backends.llm.engine import draws
from naiad_backends.llm.sampling import Sampling

NOT_FINITE = -1
FORBIDDEN = -2
"""What stands in place of a token that cannot be chosen."""

COLUMNS = 8
INDEX = 2
"""Of `parameters`, in which the index of the token in its text stands."""

_GAMMA = tl.constexpr(draws.GAMMA)
_MIX_1 = tl.constexpr(draws.MIX_1)
_MIX_2 = tl.constexpr(draws.MIX_2)
_PART = 4096
_INFINITY = tl.constexpr(float("inf"))


def parameters(sampling: Sampling) -> npt.NDArray[np.int32]:
    """A row for the kernels: seed (two halves), index, top_k; and as float32 temperature, top_p,
    min_p."""
    row = np.zeros(COLUMNS, np.int32)
    row[:2] = np.array([sampling.seed & (2**64 - 1)], np.uint64).view(np.int32)
    row[3] = min(max(sampling.top_k, 0), 2**31 - 1)
    row[4:7].view(np.float32)[:] = sampling.temperature, sampling.top_p, sampling.min_p
    return row


@triton.jit
def _mix(x: tl.tensor) -> tl.tensor:
    x = (x ^ (x >> 30)) * _MIX_1
    x = (x ^ (x >> 27)) * _MIX_2
    return x ^ (x >> 31)


@triton.jit
def _arrivals(key: tl.tensor, ids: tl.tensor) -> tl.tensor:
    """Times of rate 1 from 64-bit hashes, exact in float32 where they are small, which is where
    they matter."""
    hashed = _mix((ids + 1).to(tl.uint64) * _GAMMA + key) >> 11
    low = (hashed.to(tl.int64).to(tl.float32) + 0.5) * (2.0**-53)
    high = ((0x1FFFFFFFFFFFFF - hashed.to(tl.int64)).to(tl.float32) + 0.5) * (2.0**-53)
    # -log(1 - high) where 1 - high loses digits: what it loses is known.
    rest = 1.0 - high
    lost = tl.where(rest == 1.0, 1.0, 1.0 - rest)
    small = tl.where(rest == 1.0, high, -tl.log(tl.maximum(rest, 0.25)) * high / lost)
    return tl.where(low < 0.5, -tl.log(low), small)


@triton.jit
def _measure(
    row: tl.tensor,
    size: tl.tensor,
    bound: tl.tensor,
    best: tl.tensor,
    rate: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """How many logits reach a bound, and their weights together."""
    count = 0.0
    mass = 0.0
    for at in range(0, size, BLOCK):
        ids = at + tl.arange(0, BLOCK)
        x = tl.load(row + ids, mask=ids < size, other=-_INFINITY)
        reaches = x >= bound
        count += tl.sum(tl.where(reaches, 1.0, 0.0))
        mass += tl.sum(tl.where(reaches, tl.exp((x - best) * rate), 0.0))
    return count, mass


@triton.jit
def _search(
    row: tl.tensor,
    size: tl.tensor,
    low: tl.tensor,
    best: tl.tensor,
    rate: tl.tensor,
    wanted: tl.tensor,
    MASS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The largest logit such that those that reach it are `wanted` or more, by number or by weight,
    and what those above it are. Those that reach `low` are enough."""
    high = best + tl.maximum(tl.abs(best), 1.0)
    above = 0.0
    middle = low + (high - low) * 0.5
    while (low < middle) & (middle < high):
        total = 0.0
        up = _INFINITY
        down = -_INFINITY
        for at in range(0, size, BLOCK):
            ids = at + tl.arange(0, BLOCK)
            x = tl.load(row + ids, mask=ids < size, other=-_INFINITY)
            reaches = x >= middle
            each = tl.exp((x - best) * rate) if MASS else 1.0
            total += tl.sum(tl.where(reaches, each, 0.0))
            up = tl.minimum(up, tl.min(tl.where(reaches, x, _INFINITY)))
            down = tl.maximum(down, tl.max(tl.where(reaches, -_INFINITY, x)))
        if total >= wanted:
            low = up
        else:
            above = total
            # Nothing lies between: the search is over.
            high = tl.where(down <= low, low, middle)
        middle = low + (high - low) * 0.5
    return low, above


@triton.jit
def _bounds_kernel(
    bounds: tl.tensor,
    lasts: tl.tensor,
    logits: tl.tensor,
    rows: tl.tensor,
    size: tl.tensor,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """bounds: the best logit of a row, and the least one that may be chosen; of the tokens that
    have it, those up to `lasts`. Nothing for a greedy row."""
    number = tl.program_id(0).to(tl.int64)
    row = logits + number * size
    asked = rows + number * COLUMNS
    temperature = tl.load(asked + 4).to(tl.float32, bitcast=True)
    if temperature == 0:
        return
    best = -_INFINITY
    worst = _INFINITY
    for at in range(0, size, BLOCK):
        ids = at + tl.arange(0, BLOCK)
        x = tl.load(row + ids, mask=ids < size, other=-_INFINITY)
        best = tl.maximum(best, tl.max(x))
        worst = tl.minimum(worst, tl.min(tl.where(x > -_INFINITY, x, _INFINITY)))
    top_k = tl.load(asked + 3)
    top_p = tl.load(asked + 5).to(tl.float32, bitcast=True)
    min_p = tl.load(asked + 6).to(tl.float32, bitcast=True)
    rate = 1.0 / temperature
    pivot = -_INFINITY
    if min_p > 0:
        pivot = best + temperature * tl.log(tl.where(min_p > 0, min_p, 1.0))
    last = size
    finite = (best > -_INFINITY) & (best < _INFINITY)
    if finite & (((top_k > 0) & (top_k < size)) | (top_p < 1)):
        pivot = tl.maximum(pivot, worst)
        count, mass = _measure(row, size, pivot, best, rate, BLOCK)
        kept = count
        if (top_k > 0) & (top_k < count):
            pivot, above = _search(row, size, pivot, best, rate, top_k.to(tl.float32), False, BLOCK)
            kept = top_k - above
            count, mass = _measure(row, size, pivot, best, rate, BLOCK)
            mass -= (count - top_k) * tl.exp((pivot - best) * rate)
        if top_p < 1:
            wanted = tl.maximum(mass * top_p, 1e-30)
            nucleus, above = _search(row, size, pivot, best, rate, wanted, True, BLOCK)
            needed = tl.ceil((wanted - above) / tl.exp((nucleus - best) * rate))
            kept = tl.where(nucleus > pivot, needed, tl.minimum(kept, needed))
            kept = tl.maximum(kept, 1.0)
            pivot = nucleus
        seen = 0.0
        last = last * 0 - 1
        for at in range(0, size, BLOCK):
            ids = at + tl.arange(0, BLOCK)
            x = tl.load(row + ids, mask=ids < size, other=-_INFINITY)
            same = tl.where(x == pivot, 1.0, 0.0)
            place = seen + tl.cumsum(same)
            last = tl.maximum(last, tl.max(tl.where((same > 0) & (place <= kept), ids, -1)))
            seen += tl.sum(same)
    tl.store(bounds + number * 2, best)
    tl.store(bounds + number * 2 + 1, pivot)
    tl.store(lasts + number, last)


@triton.jit
def _race_kernel(
    values: tl.tensor,
    winners: tl.tensor,
    logits: tl.tensor,
    rows: tl.tensor,
    bounds: tl.tensor,
    lasts: tl.tensor,
    size: tl.tensor,
    parts: tl.tensor,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The best token of one part of a row, or the first in its race."""
    number = tl.program_id(0).to(tl.int64)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + number * size + ids, mask=ids < size, other=-_INFINITY)
    asked = rows + number * COLUMNS
    temperature = tl.load(asked + 4).to(tl.float32, bitcast=True)
    bad = tl.max(tl.where((x != x) | (x == _INFINITY), 1, 0))
    if temperature > 0:
        best = tl.load(bounds + number * 2)
        pivot = tl.load(bounds + number * 2 + 1)
        last = tl.load(lasts + number)
        low = tl.load(asked).to(tl.uint32, bitcast=True).to(tl.uint64)
        seed = tl.load(asked + 1).to(tl.uint32, bitcast=True).to(tl.uint64) << 32 | low
        key = _mix(_mix(seed) + tl.load(asked + 2).to(tl.uint64) * _GAMMA)
        chosen = ((x > pivot) | ((x == pivot) & (ids <= last))) & (x > -_INFINITY)
        away = (
            tl.where(chosen, x - tl.where(tl.abs(best) < _INFINITY, best, 0.0), 0.0) / temperature
        )
        x = tl.where(chosen, away - tl.log(_arrivals(key, ids)), -_INFINITY)
    value, place = tl.max(x, 0, return_indices=True)
    here = number * parts + tl.program_id(1)
    tl.store(values + here, tl.where(bad > 0, _INFINITY, value))
    tl.store(winners + here, tl.program_id(1) * BLOCK + place)


@triton.jit
def _finish_kernel(
    tokens: tl.tensor,
    values: tl.tensor,
    winners: tl.tensor,
    parts: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """The best of all parts."""
    number = tl.program_id(0)
    places = tl.arange(0, BLOCK)
    here = number.to(tl.int64) * parts + places
    value, place = tl.max(
        tl.load(values + here, mask=places < parts, other=-_INFINITY), 0, return_indices=True
    )
    token = tl.load(winners + number.to(tl.int64) * parts + place)
    token = tl.where(value == _INFINITY, -1, token)
    tl.store(tokens + number, tl.where(value == -_INFINITY, -2, token))


def choose(tokens: Tensor, logits: Tensor, rows: Tensor) -> None:
    """Write a token for each row of logits [R, V], float32, contiguous: NOT_FINITE or FORBIDDEN
    where there is none.

    tokens: [R] int32.  rows: [R, COLUMNS] int32, of `parameters`, with the index of each token.
    """
    count, size = logits.shape
    parts = triton.cdiv(size, _PART)
    floats = torch.empty(count * (2 + parts), device=logits.device)
    ints = torch.empty(count * (1 + parts), dtype=torch.int32, device=logits.device)
    bounds, values = floats[: 2 * count], floats[2 * count :]
    lasts, winners = ints[:count], ints[count:]
    _bounds_kernel[(count,)](
        bounds, lasts, logits, rows, size, COLUMNS=COLUMNS, BLOCK=_PART, num_warps=8
    )
    _race_kernel[(count, parts)](
        values,
        winners,
        logits,
        rows,
        bounds,
        lasts,
        size,
        parts,
        COLUMNS=COLUMNS,
        BLOCK=_PART,
        num_warps=4,
    )
    _finish_kernel[(count,)](
        tokens, values, winners, parts, BLOCK=triton.next_power_of_2(parts), num_warps=1
    )
