"""The v2 protocol's datatypes: wire name, configuration name, bytes per element, NumPy type.

Source: KServe v2 protocol, "Tensor Data Types", plus Triton's BF16. All data is little-endian.
NumPy has no bfloat16, so a BF16 tensor is an array of uint16 bit patterns.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Datatype:
    """One row of the table. `size` is in bytes per element; 0 marks BYTES, whose size varies."""

    name: str
    config_name: str
    size: int
    numpy: np.dtype[np.generic]


_ROWS = (
    ("BOOL", "TYPE_BOOL", "?"),
    ("UINT8", "TYPE_UINT8", "u1"),
    ("UINT16", "TYPE_UINT16", "<u2"),
    ("UINT32", "TYPE_UINT32", "<u4"),
    ("UINT64", "TYPE_UINT64", "<u8"),
    ("INT8", "TYPE_INT8", "i1"),
    ("INT16", "TYPE_INT16", "<i2"),
    ("INT32", "TYPE_INT32", "<i4"),
    ("INT64", "TYPE_INT64", "<i8"),
    ("FP16", "TYPE_FP16", "<f2"),
    ("FP32", "TYPE_FP32", "<f4"),
    ("FP64", "TYPE_FP64", "<f8"),
    ("BF16", "TYPE_BF16", "<u2"),
)

DATATYPES: dict[str, Datatype] = {
    name: Datatype(name, config_name, np.dtype(code).itemsize, np.dtype(code))
    for name, config_name, code in _ROWS
} | {"BYTES": Datatype("BYTES", "TYPE_STRING", 0, np.dtype(object))}

BY_CONFIG_NAME: dict[str, Datatype] = {d.config_name: d for d in DATATYPES.values()}

# The wire name that an array has when nobody says otherwise (uint16 is never guessed to be BF16).
BY_NUMPY: dict[np.dtype[np.generic], Datatype] = {
    d.numpy: d for d in DATATYPES.values() if d.name != "BF16"
}
