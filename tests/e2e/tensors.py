"""One array of each v2 datatype, with the values that are the hardest to carry."""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_INTEGERS = ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")


def _integers(name: str) -> Array:
    kind = np.dtype(name.lower())
    limits = np.iinfo(kind)
    return np.array([[limits.min, limits.max, 0], [1, 2, 3]], kind)


SAMPLES: Mapping[str, Array] = {
    "BOOL": np.array([[True, False, True], [False, False, True]]),
    **{name: _integers(name) for name in _INTEGERS},
    "FP16": np.array([[0.1, -65504, np.nan], [6e-8, np.inf, -0.0]], np.float16),
    "FP32": np.array([[0.1, -3.4e38, np.nan], [1e-45, np.inf, -np.inf]], np.float32),
    "FP64": np.array([[0.1, -1.7e308, np.nan], [5e-324, np.inf, -np.inf]], np.float64),
    "BF16": np.array([[1.5, -3.0e38, np.nan], [2.0, np.inf, -0.0]], ml_dtypes.bfloat16),
    "BYTES": np.array(
        [[b"", "Gr\u00fc\u00dfe \U0001f30a".encode(), b"a"], [b"x" * 1000, b'"', b"\n"]], object
    ),
}
