"""DLPack: tensors of other libraries without a copy, both ways.

NumPy does most of it. Here are what it does not know: capsules without an object around them, and
BF16, which is the same memory as UINT16 under another name. Source: dlpack.h of dmlc/dlpack.
"""

import ctypes
from typing import Any

import numpy as np

from naiad_backends.python.runtime.errors import TritonModelException

CPU = 1
"""kDLCPU. Pinned and managed memory of CUDA (3, 13) can be read by the CPU, too."""

_READABLE = (CPU, 3, 13)
_UINT, _BFLOAT = 1, 4


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    """The beginning of a DLManagedTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype = ctypes.c_void_p
_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)


def _look(capsule: Any) -> _Tensor:
    """What a capsule holds. Raises TritonModelException for anything else, or one that is used."""
    if type(capsule).__name__ != "PyCapsule":
        raise TritonModelException(f"{type(capsule).__name__} is no DLPack tensor")
    try:
        address = _pointer(capsule, b"dltensor")
    except ValueError:
        raise TritonModelException("the DLPack capsule was used already, or is none") from None
    return _Tensor.from_address(address)


class Capsule:
    """A capsule as an object that libraries can take it from."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule
        described = _look(capsule)
        self.device = (described.device_type, described.device_id)

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


def source(given: Any) -> Any:
    """Whatever `from_dlpack` is given, as an object with `__dlpack__` and `__dlpack_device__`."""
    if hasattr(given, "__dlpack__") and hasattr(given, "__dlpack_device__"):
        return given
    return Capsule(given)


def on_cpu(given: Any) -> bool:
    """Whether the CPU can read the memory of what `source` gave."""
    return int(given.__dlpack_device__()[0]) in _READABLE


def to_numpy(given: Any) -> tuple[np.ndarray[Any, Any], bool]:
    """The memory of what `source` gave as an array, and whether its elements are BF16.

    Raises TritonModelException for what NumPy cannot hold and for what is not contiguous.
    """
    capsule = given.__dlpack__()
    described = _look(capsule)
    bf16 = (described.dtype.code, described.dtype.bits) == (_BFLOAT, 16)
    if bf16:
        described.dtype.code = _UINT
    if described.device_type in _READABLE:
        described.device_type = CPU
    try:
        array = np.from_dlpack(Capsule(capsule))
    except (RuntimeError, BufferError, ValueError, TypeError) as error:
        raise TritonModelException(f"the DLPack tensor cannot be used: {error}") from error
    if not array.flags.c_contiguous:
        raise TritonModelException("the DLPack tensor is not contiguous in C order")
    return array, bf16


def capsule(array: np.ndarray[Any, Any], bf16: bool) -> Any:
    """A capsule of the array's memory. Raises TritonModelException if NumPy cannot make one."""
    try:
        made = array.__dlpack__()
    except (BufferError, RuntimeError, TypeError) as error:
        raise TritonModelException(f"no DLPack tensor can be made of it: {error}") from error
    if bf16:
        _look(made).dtype.code = _BFLOAT
    return made
