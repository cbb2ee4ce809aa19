"""How tokens are chosen from logits on a CPU, in NumPy. Knows what rows ask for, but no texts.

Rows are NumPy arrays and computed one by one: a row of any vocabulary fits a core's cache, no
threads have to meet, and what one row draws cannot depend on another. No vocabulary is sorted; what
cannot be among the chosen tokens is left out first, by bounds that are exact.

The draw is a race: token i arrives after a time drawn from an exponential distribution whose rate
is its weight, so that it is first with the probability of its weight. The times come from a hash of
(seed, index of the token in its text, i). So a draw needs no state and no neighbours, and logits
that differ a little, as after a preemption, hardly ever change it.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from naiad_backends.llm.sampling import Sampling

Row = npt.NDArray[np.float32]
Ids = npt.NDArray[np.intp]

_BLOCK = 64
_MASK = (1 << 64) - 1
# SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
GAMMA = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB


NOT_FINITE = "the model computed logits that are not finite"
FORBIDDEN = "what was asked of the sampling forbids every token"
FAILURES = {-1: NOT_FINITE, -2: FORBIDDEN}
"""What stands in place of a token that cannot be chosen, and why."""


class BadLogits(Exception):
    """No token can be chosen from the logits of a row. code: of FAILURES."""

    def __init__(self, code: int) -> None:
        super().__init__(FAILURES[code])
        self.code = code


def choose(
    logits: npt.NDArray[np.float32], samplings: Sequence[Sampling], indices: Sequence[int]
) -> Sequence[int]:
    """A token for each row of float32 logits [R, V]: number `indices[r]` of its text. One of
    FAILURES where there is none."""
    return [
        _choose(row, sampling, index)
        for row, sampling, index in zip(logits, samplings, indices, strict=True)
    ]


def _choose(row: Row, sampling: Sampling, index: int) -> int:
    try:
        if sampling.greedy:
            return greedy(row)
        key = key_of(sampling.seed, index)
        return draw(row, key, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    except BadLogits as error:
        return error.code


def greedy(row: Row) -> int:
    """The token with the largest logit, the lowest of several; `BadLogits` for none."""
    token = int(row.argmax())
    check(row[token])
    return token


def draw(
    row: Row, key: int, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> int:
    """A token of softmax(row / temperature), of those that `candidates` leaves. `BadLogits` if no
    logit is a number."""
    check(row.max())
    if not 0 < top_k < len(row) and top_p >= 1 and min_p <= 0:
        return _race_in_blocks(_weights(row, row.max(), temperature), key)
    ids, weights = candidates(row, temperature, top_k, top_p, min_p)
    return int(ids[_race(weights, ids, key)])


def candidates(
    row: Row, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[Ids, Row]:
    """The tokens that `min_p`, then `top_k`, then `top_p` leave, of equal ones the lowest, with
    their probabilities, but for a factor."""
    best = row.max()
    if 0 < top_k < len(row) or min_p > 0:
        floor = best + temperature * math.log(min_p) if min_p > 0 else -np.inf
        ids = largest(row, top_k or len(row), floor)
        weights = _weights(row[ids], best, temperature)
    else:
        ids = np.arange(len(row))
        weights = _weights(row, best, temperature)
    if top_p < 1:
        kept = _nucleus(weights, top_p)
        ids, weights = ids[kept], weights[kept]
    return ids, weights


def largest(row: Row, count: int, floor: float = -np.inf) -> Ids:
    """The tokens with the `count` largest logits of those that reach `floor`, largest first, of
    equal ones the lowest first."""
    groups = len(row) // _BLOCK
    if count <= groups:
        # Each of the `count` best groups has one value at least as large as this. Their members lie
        # apart, as that is how NumPy compares rows quickest.
        tops = row[: groups * _BLOCK].reshape(_BLOCK, groups).max(axis=0)
        floor = max(floor, np.partition(tops, groups - count)[groups - count])
    ids = np.flatnonzero(row >= floor)
    return ids[np.argsort(-row[ids], kind="stable")[:count]]


def key_of(seed: int, index: int) -> int:
    """What makes the draw of the token number `index` of a text its own: 64 bits."""
    return _mix((_mix(seed & _MASK) + index * GAMMA) & _MASK)


def uniforms(key: int, numbers: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """A number in (0, 1) for each of `numbers`."""
    x = numbers.astype(np.uint64)
    x += np.uint64(1)
    x *= np.uint64(GAMMA)
    x += np.uint64(key)
    x ^= x >> np.uint64(30)
    x *= np.uint64(MIX_1)
    x ^= x >> np.uint64(27)
    x *= np.uint64(MIX_2)
    x ^= x >> np.uint64(31)
    return ((x >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * MIX_1) & _MASK
    x = ((x ^ (x >> 27)) * MIX_2) & _MASK
    return x ^ (x >> 31)


def check(best: Any) -> None:
    """`BadLogits` if the largest logit of a row is no number that can be chosen."""
    if np.isnan(best) or best == np.inf:
        raise BadLogits(-1)
    if best == -np.inf:
        raise BadLogits(-2)


def _weights(row: Row, best: Any, temperature: float) -> Row:
    """Probabilities, but for a factor: 1 for the best."""
    weights: Row = row - best
    weights *= np.float32(1 / temperature)
    np.exp(weights, out=weights)
    return weights


def _nucleus(weights: Row, top_p: float) -> Ids:
    """Where the fewest weights stand that together make up `top_p` of all, of equal ones the first;
    ascending."""
    enough = top_p * float(weights.sum())
    # Those that are smaller than the last bound make up less than 1 - top_p together. Mostly the
    # first one leaves enough already; the fewer it leaves, the fewer there are to sort.
    ids: Ids
    for bound in (0.02, 0.001, 0.00005, (1 - top_p) / top_p * enough / len(weights)):
        ids = np.flatnonzero(weights >= bound)
        left = weights[ids]
        if left.sum() >= enough:
            break
    falling = -np.sort(-left)
    reached = np.searchsorted(np.cumsum(falling, dtype=np.float64), enough)
    last = falling[min(int(reached), len(falling) - 1)]
    above = left > last
    ties = np.flatnonzero(left == last)[: int(reached) + 1 - np.count_nonzero(above)]
    above[ties] = True
    kept: Ids = ids[above]
    return kept


def _race(weights: Row, ids: Ids, key: int) -> int:
    """Where the first one to arrive stands."""
    with np.errstate(divide="ignore"):
        return int((-np.log(uniforms(key, ids)) / weights).argmin())


def _race_in_blocks(weights: Row, key: int) -> int:
    """A race of blocks of neighbours, then one in the block that won: fewer numbers to hash."""
    blocks = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK))
    start = _race(blocks, np.arange(len(blocks)), _mix(key)) * _BLOCK
    block = weights[start : start + _BLOCK]
    return start + _race(block, np.arange(start, start + len(block)), key)
