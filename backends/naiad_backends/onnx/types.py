"""ONNX element types and v2 datatypes, and how strings cross between NumPy and onnxruntime.

Source of the type names: onnxruntime's `NodeArg.type`.
"""

import numpy as np

from naiad_backends.api import Array
from naiad_backends.errors import internal, invalid

DATATYPES: dict[str, str] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(bfloat16)": "BF16",
    "tensor(string)": "BYTES",
}

# TensorProto.DataType.BFLOAT16, which NumPy has no type for.
BFLOAT16 = 16


def to_text(name: str, array: Array) -> Array:
    """An object array of `bytes` as one of `str`, which is what ONNX strings are.

    Raises INVALID_ARG if an element is not UTF-8.
    """
    texts = np.empty(array.size, dtype=object)
    for i, element in enumerate(array.ravel()):
        try:
            texts[i] = element.decode()
        except UnicodeDecodeError as error:
            raise invalid(
                f"element {i} of input '{name}' is not UTF-8 ({error.reason} at byte"
                f" {error.start})",
                hint="ONNX strings are UTF-8 text; send binary data as UINT8",
            ) from error
    return texts.reshape(array.shape)


def from_text(name: str, array: Array) -> Array:
    """An object array of `str`, as onnxruntime gives it, as one of `bytes`."""
    elements = np.empty(array.size, dtype=object)
    for i, text in enumerate(array.ravel()):
        if not isinstance(text, str):
            raise internal(f"output '{name}' holds a {type(text).__name__} where text belongs")
        elements[i] = text.encode()
    return elements.reshape(array.shape)
