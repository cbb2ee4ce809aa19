"""Rotary embeddings: what a checkpoint says about them -> frequencies.

The formulas are those of the papers on each way to stretch a model's context; the names of fields
are Hugging Face's.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from naiad_backends.errors import unsupported
from naiad_backends.llm.checkpoint.architecture import Rope
from naiad_backends.llm.checkpoint.fields import Fields

Frequencies = npt.NDArray[np.float64]


def plain(theta: float, dimensions: int) -> Frequencies:
    """[dimensions / 2] frequencies, the fastest first."""
    return theta ** (-np.arange(0, dimensions, 2, dtype=np.float64) / dimensions)


def rope_of(scaling: Fields, theta: float, dimensions: int, max_position: int) -> Rope:
    """What `rope_scaling` or `rope_parameters` asks for.

    theta: if `scaling` has none.  max_position: of the model, stretched.
    """
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    base = plain(scaling.number("rope_theta", theta, above=1), dimensions)
    # Dynamic scaling changes nothing up to the length that the model was trained for, which is its
    # `max_position_embeddings`, and no sequence grows longer than that.
    if kind in ("default", "dynamic", "none"):
        return _rope(base)
    if kind == "linear":
        return _rope(base / scaling.number("factor", above=0))
    if kind == "llama3":
        return _rope(_llama3(base, scaling, max_position))
    if kind == "yarn":
        return _yarn(base, scaling, scaling.number("rope_theta", theta, above=1), max_position)
    if kind in ("longrope", "su"):
        return _longrope(base, scaling, max_position)
    raise unsupported(f"rotary embeddings of the type '{kind}'", field=scaling.source)


def divided(theta: float, dimensions: int, factors: npt.NDArray[np.float32]) -> Rope:
    """Frequencies divided by factors that a file gives one by one."""
    return _rope(plain(theta, dimensions) / factors)


def longrope(
    base: Frequencies,
    short: Sequence[float],
    long: Sequence[float],
    original: int,
    scale: float,
) -> Rope:
    """Factors for contexts up to `original` tokens, and for longer ones."""
    return Rope(
        dimensions=2 * len(base),
        inv_freq=tuple((base / np.asarray(short)).tolist()),
        scale=scale,
        long_inv_freq=tuple((base / np.asarray(long)).tolist()),
        long_from=original,
    )


def _rope(inv_freq: Frequencies, scale: float = 1.0) -> Rope:
    return Rope(dimensions=2 * len(inv_freq), inv_freq=tuple(inv_freq.tolist()), scale=scale)


def _llama3(base: Frequencies, scaling: Fields, max_position: int) -> Frequencies:
    """Slow frequencies are divided by the factor, fast ones stay, a slope joins them."""
    factor = scaling.number("factor", above=0)
    low = scaling.number("low_freq_factor")
    high = scaling.number("high_freq_factor", above=low)
    original = scaling.integer("original_max_position_embeddings", max_position)
    turns = original * base / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return base * (kept + (1 - kept) / factor)


def _yarn(base: Frequencies, scaling: Fields, theta: float, max_position: int) -> Rope:
    """As `llama3`, but the slope is between dimensions, and cosine and sine grow a little."""
    dimensions = 2 * len(base)
    original = scaling.integer("original_max_position_embeddings", max_position)
    factor = scaling.number("factor", max_position / original, above=0)

    def dimension(turns: float) -> float:
        return dimensions * math.log(original / (2 * math.pi * turns)) / (2 * math.log(theta))

    low = dimension(scaling.number("beta_fast", 32.0, above=0))
    high = dimension(scaling.number("beta_slow", 1.0, above=0))
    if scaling.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dimensions - 1)
    slope = (np.arange(len(base)) - low) / max(high - low, 0.001)
    kept = 1 - np.clip(slope, 0, 1)
    return _rope(base * (kept + (1 - kept) / factor), _yarn_scale(scaling, factor))


def _yarn_scale(scaling: Fields, factor: float) -> float:
    def grown(by: float) -> float:
        return 0.1 * by * math.log(factor) + 1 if factor > 1 else 1.0

    mscale, mscale_all = scaling.number("mscale", 0.0), scaling.number("mscale_all_dim", 0.0)
    usual = grown(mscale) / grown(mscale_all) if mscale and mscale_all else grown(1.0)
    return scaling.number("attention_factor", usual)


def _longrope(base: Frequencies, scaling: Fields, max_position: int) -> Rope:
    short, long = scaling.numbers("short_factor"), scaling.numbers("long_factor")
    for name, factors in (("short_factor", short), ("long_factor", long)):
        if len(factors) != len(base):
            raise scaling.wrong(name, f"a list of {len(base)} numbers", factors)
    original = scaling.integer("original_max_position_embeddings", max_position, least=2)
    factor = scaling.number("factor", max_position / original, above=0)
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return longrope(base, short, long, original, scaling.number("attention_factor", usual))
