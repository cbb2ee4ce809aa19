"""When requests of an open loop are due. Pure: rates in, times out."""

import math

import numpy as np

from benchmarks.workloads import Array

CLOSED = "closed"
"""No times at all: each client sends anew when it was answered."""
PATTERNS = (CLOSED, "poisson", "bursts")
BURST = 16
"""Requests of a burst, which are due at the same moment."""


def times(pattern: str, rate: float, seconds: float, seed: int) -> Array:
    """Seconds from the start at which requests are due, in order; `rate` a second on average.

    pattern: poisson: each by itself, gaps of exponential length. bursts: BURST at once, and gaps of
    exponential length between bursts.
    seed: equal seeds, rates and seconds give equal times.
    """
    random = np.random.default_rng(seed)
    size = BURST if pattern == "bursts" else 1
    groups = max(1, math.ceil(rate * seconds / size))
    moments: Array = np.repeat(random.exponential(size / rate, groups).cumsum(), size)
    return moments
