"""What rows ask for when they choose tokens, as the native library takes it."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from naiad_backends.llm.engine.draws import key_of
from naiad_backends.llm.sampling import Sampling

# Wish of src/sampling.h.
_WISH = np.dtype(
    [
        ("key", np.uint64),
        ("top_p", np.float64),
        ("temperature", np.float32),
        ("reach", np.float32),
        ("top_k", np.int32),
    ],
    align=True,
)


def wishes(samplings: Sequence[Sampling], indices: Sequence[int]) -> npt.NDArray[np.void]:
    """One for each row."""
    return np.array([_wish(*pair) for pair in zip(samplings, indices, strict=True)], _WISH)


def _wish(sampling: Sampling, index: int) -> tuple[int, float, float, float, int]:
    if sampling.greedy:
        return 0, 1.0, 0.0, math.inf, 0
    least = sampling.min_p
    reach = -math.log(least) * sampling.temperature if least > 0 else math.inf
    key = key_of(sampling.seed, index)
    return key, sampling.top_p, sampling.temperature, reach, sampling.top_k
