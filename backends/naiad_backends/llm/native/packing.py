"""Which form each weight of a checkpoint takes in the native library, and its way there.

Quantized weights stay what they are: 4 bits in groups of 32, or 8 bits where the file has more than
4 or smaller groups. The others are kept as they are, or in what `dtype` says.
"""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from naiad_backends.errors import unavailable
from naiad_backends.llm.checkpoint.weights import Weight
from naiad_backends.llm.native.library import Library

GROUP = 32

TYPES = {
    **{"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12},
    **{"Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "BF16": 30},
}
"""GGUF's numbers of the types that the library reads; others it gets dequantized."""


class Kind(IntEnum):
    """Kind of src/linear.h."""

    Q4 = 0
    Q8 = 1
    BF16 = 2
    F16 = 3
    F32 = 4


PLAIN = {"float32": Kind.F32, "bfloat16": Kind.BF16, "float16": Kind.F16}
FOUR_BITS = ("Q4_0", "Q4_1", "Q4_K")


def kind_of(type_: str, dtype: str) -> Kind:
    """In what form a weight of that GGUF type is kept. With dtype float32 nothing is rounded."""
    if type_ in ("F32", "F16", "BF16", "F64"):
        own = {"F16": Kind.F16, "BF16": Kind.BF16}.get(type_, Kind.F32)
        return PLAIN.get(dtype, own)
    if dtype == "float32":
        return Kind.F32
    return Kind.Q4 if type_ in FOUR_BITS else Kind.Q8


def put_matrix(
    library: Library, model: int, layer: int, which: int, weight: Weight, dtype: str
) -> None:
    """Pack a matrix into its place. UNAVAILABLE if there is no memory."""
    outputs, inputs = weight.shape
    kind = kind_of(weight.type, dtype)
    rows, type_ = _rows(weight, kind)
    failed = library.naiad_matrix(
        *(model, layer, which, kind, outputs, inputs, TYPES[type_]),
        *(rows.ctypes.data, rows.strides[0]),
    )
    if failed:
        raise unavailable(f"there is no memory for a weight of shape {list(weight.shape)}")


def floats(weight: Weight) -> npt.NDArray[np.float32]:
    """A vector: a norm or a bias."""
    return np.ascontiguousarray(weight.float32(), np.float32)


def _rows(weight: Weight, kind: Kind) -> tuple[npt.NDArray[np.generic], str]:
    """What the library reads for a kind: rows, each one contiguous, and their type."""
    packed = weight.quantized and kind in (Kind.Q4, Kind.Q8) and weight.type in TYPES
    plain = weight.type in ("F32", "F16", "BF16") and kind not in (Kind.Q4, Kind.Q8)
    if packed or plain:
        rows = weight.data
        if rows.strides[1] == rows.itemsize and rows.strides[0] > 0:
            return rows, weight.type
        return np.ascontiguousarray(rows), weight.type
    numbers = np.ascontiguousarray(weight.float32(), np.float32)
    if kind in (Kind.Q4, Kind.Q8):  # Whole groups.
        numbers = np.pad(numbers, ((0, 0), (0, -numbers.shape[1] % GROUP)))
    return numbers, "F32"
