"""What models look up: tensors and their configuration by name, data types, strings as bytes.

Works without a server. Source: Triton's Python backend.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from naiad_backends.api import Array, Buffer
from naiad_backends.datatypes import DATATYPES
from naiad_backends.python.runtime.errors import TritonModelException
from naiad_backends.python.runtime.tensor import TYPE_NUMBERS, Tensor

if TYPE_CHECKING:
    from naiad_backends.python.runtime.request import InferenceRequest
    from naiad_backends.python.runtime.response import InferenceResponse


# Where these give None, a model that knows its names to be right needs no check: hence Any.


def get_input_tensor_by_name(inference_request: "InferenceRequest", name: str) -> Tensor | Any:
    """The input of a request with that name; None if the request came without it."""
    return _named(inference_request.inputs(), name)


def get_output_tensor_by_name(inference_response: "InferenceResponse", name: str) -> Tensor | Any:
    """The output of a response with that name; None if the response has none."""
    return _named(inference_response.output_tensors(), name)


def _named(tensors: Sequence[Tensor], name: str) -> Tensor | None:
    return next((tensor for tensor in tensors if tensor.name() == name), None)


def get_input_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | Any:
    """The part of a configuration about an input; None if there is none of that name.

    model_config: `json.loads(args["model_config"])`.
    """
    return _config(model_config.get("input", ()), name)


def get_output_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | Any:
    """The part of a configuration about an output; None if there is none of that name.

    model_config: `json.loads(args["model_config"])`.
    """
    return _config(model_config.get("output", ()), name)


def _config(tensors: Sequence[dict[str, Any]], name: str) -> dict[str, Any] | None:
    return next((tensor for tensor in tensors if tensor["name"] == name), None)


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    """Whether requests to the model may have any number of responses.

    model_config: `json.loads(args["model_config"])`.
    """
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))


# -- data types

_KINDS: dict[str, type[Any]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}
"""Wire name -> NumPy type; BF16 has none."""

_NUMBERS = {name: number for number, name in enumerate(TYPE_NUMBERS, 1)}
_BY_NUMBER = {_NUMBERS[name]: kind for name, kind in _KINDS.items()}
_BY_DTYPE = {np.dtype(kind): _NUMBERS[name] for name, kind in _KINDS.items()}

TRITON_STRING_TO_NUMPY: dict[str, type[Any]] = {
    DATATYPES[name].config_name: kind for name, kind in _KINDS.items()
} | {"TYPE_BOOL": bool}
"""Name in a configuration -> NumPy type. As in Triton, TYPE_BOOL is Python's own."""


def triton_to_numpy_type(data_type: int) -> type[Any]:
    """The NumPy type of one of Triton's numbers.

    Raises KeyError for an unknown one and for BF16, which NumPy does not have.
    """
    return _BY_NUMBER[data_type]


def numpy_to_triton_type(data_type: Any) -> int:
    """Triton's number of a NumPy type, given as `numpy.float32` or as a dtype.

    Raises KeyError for a type that Triton does not have; texts (`<U`) are such a type.
    """
    if data_type is None:
        raise KeyError(data_type)
    dtype = np.dtype(data_type)
    if dtype.kind == "S":
        return _NUMBERS["BYTES"]
    if dtype.name == "bfloat16":
        return _NUMBERS["BF16"]
    return _BY_DTYPE[dtype.newbyteorder("=")]


def triton_string_to_numpy(triton_type_string: str) -> type[Any]:
    """The NumPy type of a configuration's data type, such as TYPE_FP32.

    Raises KeyError for an unknown one and for TYPE_BF16, which NumPy does not have.
    """
    return TRITON_STRING_TO_NUMPY[triton_type_string]


# -- strings

_LENGTH = struct.Struct("<I")


def serialize_byte_tensor(input_tensor: Array) -> bytes | tuple[()] | None:
    """The elements in row-major order, each behind its length as 4 bytes, little-endian.

    input_tensor: of dtype object or `bytes_`; what is not `bytes` is written as its text in UTF-8.
    Returns () for an empty array and None for another dtype, as Triton does.
    """
    if input_tensor.size == 0:
        return ()
    if input_tensor.dtype.kind not in "OS":
        return None
    parts: list[bytes] = []
    for element in input_tensor.ravel().tolist():
        encoded = element if isinstance(element, bytes) else str(element).encode()
        parts += (_LENGTH.pack(len(encoded)), encoded)
    return b"".join(parts)


def deserialize_bytes_tensor(encoded_tensor: Buffer) -> Array:
    """The elements that `serialize_byte_tensor` wrote, as an object array of shape [count].

    Raises TritonModelException for bytes that end within an element.
    """
    data = bytes(encoded_tensor)
    elements: list[bytes] = []
    at = 0
    while at < len(data):
        start = at + _LENGTH.size
        at = start + _LENGTH.unpack_from(data, at)[0] if start <= len(data) else start
        if at > len(data):
            raise TritonModelException(
                f"the bytes are cut off: element {len(elements)} reaches to byte {at} of"
                f" {len(data)}; each is a 4-byte little-endian length followed by its bytes"
            )
        elements.append(data[start:at])
    array = np.empty(len(elements), object)
    array[:] = elements
    return array
