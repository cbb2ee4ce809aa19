"""How tokens are drawn on a device: by the same rules and with the same numbers as in `draws`, but
for all rows at once and without waiting for the device.

It uses PyTorch's operators only, and sorts where rows ask for min_p, top-k or top-p.
"""

from collections.abc import Iterable, Sequence

import torch

from naiad_backends.llm.engine.draws import FORBIDDEN, GAMMA, MIX_1, MIX_2, NOT_FINITE, key_of
from naiad_backends.llm.sampling import Sampling

FAILURES = {-1: NOT_FINITE, -2: FORBIDDEN}
"""What stands in place of a token that cannot be chosen, and why."""


def choose(
    logits: torch.Tensor, samplings: Sequence[Sampling], indices: Iterable[int]
) -> torch.Tensor:
    """A token for each row of float32 logits [R, V], int64 [R]: number `indices[r]` of its text.

    One of FAILURES where there is none.
    """
    best, tokens = logits.max(dim=-1)
    if not all(sampling.greedy for sampling in samplings):
        tokens = torch.where(
            _column([sampling.greedy for sampling in samplings], logits),
            tokens,
            _draw(logits - best[:, None], samplings, indices),
        )
    tokens = tokens.where(best > -torch.inf, -2)
    return tokens.where(best < torch.inf, -1).where(~best.isnan(), -1)


def _draw(
    logits: torch.Tensor, samplings: Sequence[Sampling], indices: Iterable[int]
) -> torch.Tensor:
    """logits: 0 for the best of each row."""
    temperature = _column([sampling.temperature or 1.0 for sampling in samplings], logits)
    weights = (logits / temperature[:, None]).exp()
    ids = torch.arange(logits.shape[-1], device=logits.device).expand_as(logits)
    if any(s.top_k > 0 or s.top_p < 1 or s.min_p > 0 for s in samplings):
        weights, ids = weights.sort(dim=-1, descending=True, stable=True)
        weights = _filter(weights, samplings)
    pairs = zip(samplings, indices, strict=True)
    keys = _column([_signed(key_of(sampling.seed, index)) for sampling, index in pairs], logits)
    arrivals = -_uniforms(keys[:, None], ids).log() / weights
    return ids.gather(-1, arrivals.argmin(dim=-1, keepdim=True))[:, 0]


def _filter(weights: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """min_p, then top-k, then top-p of falling weights; 0 for what they leave out."""
    size = weights.shape[-1]
    floor = _column([sampling.min_p for sampling in samplings], weights)
    count = _column([sampling.top_k or size for sampling in samplings], weights)
    place = torch.arange(size, device=weights.device)
    weights = weights * ((weights >= floor[:, None]) & (place < count[:, None]))
    share = _column([s.top_p if s.top_p < 1 else 2.0 for s in samplings], weights, torch.float64)
    sums = weights.cumsum(dim=-1, dtype=torch.float64)
    return weights * (sums - weights < (share * sums[:, -1])[:, None])


def _column(
    values: Sequence[float], like: torch.Tensor, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """One value for each row."""
    return torch.tensor(values, dtype=dtype).to(like.device, non_blocking=True)


def _uniforms(keys: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """`draws.uniforms`, in integers that have a sign."""
    x = (numbers + 1) * _signed(GAMMA) + keys
    x = (x ^ _shifted(x, 30)) * _signed(MIX_1)
    x = (x ^ _shifted(x, 27)) * _signed(MIX_2)
    x = x ^ _shifted(x, 31)
    return (_shifted(x, 11).double() + 0.5) * 2.0**-53


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """To the right, with zeros from the left."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x
