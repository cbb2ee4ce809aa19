"""pb_utils.Tensor: a named tensor that a model reads or makes.

What came from the server is a view of the memory it came in, decoded when somebody asks.
"""

import math
import sys
from typing import Any

import numpy as np

from naiad_backends.api import Array, Buffer, join_bytes, split_bytes
from naiad_backends.datatypes import DATATYPES
from naiad_backends.errors import NaiadError
from naiad_backends.python.runtime import dlpack
from naiad_backends.python.runtime.errors import TritonModelException

TYPE_NUMBERS = [
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BYTES",
    "BF16",
]
"""Triton's data types; the number of one is its place here, from 1 on."""

_NUMBER = {name: number for number, name in enumerate(TYPE_NUMBERS, 1)}
_BY_NUMPY = {
    np.dtype(kind.numpy): name for name, kind in DATATYPES.items() if name not in ("BF16", "BYTES")
}

_SMALL = 4_096


class Tensor:
    """Source: Triton's Python backend, `pb_utils.Tensor`."""

    __slots__ = ("_array", "_datatype", "_foreign", "_name", "_shape", "_wire")

    def __init__(self, name: str, array: Array) -> None:
        """array: of a type that Triton has; BYTES are an object or `bytes_` array of bytes or str.

        One that is not contiguous is copied. Raises TritonModelException for what is no tensor.
        """
        if not isinstance(name, str) or not name:
            raise TritonModelException(f"a tensor's name is a text, not {name!r}")
        if not isinstance(array, np.ndarray):
            raise TritonModelException(
                f"tensor '{name}' is made of {type(array).__name__}, not of a NumPy array"
            )
        datatype = _BY_NUMPY.get(array.dtype) or _datatype(name, array)
        wire: Buffer | None = None
        if datatype == "BYTES":
            wire = _serialised(array)
        elif array.dtype.byteorder == ">":
            array = array.astype(DATATYPES[datatype].numpy)
        elif not array.flags.c_contiguous:
            array = np.ascontiguousarray(array)
        self._name = name
        self._datatype = datatype
        self._shape = array.shape
        self._array: Array | None = array
        self._wire = wire
        self._foreign: Any = None

    @classmethod
    def of_wire(cls, name: str, datatype: str, shape: tuple[int, ...], wire: Buffer) -> "Tensor":
        """A tensor that came from the server; `wire` has the size that the others call for."""
        tensor = cls.__new__(cls)
        tensor._name = name
        tensor._datatype = datatype
        tensor._shape = shape
        tensor._array = None
        tensor._wire = wire
        tensor._foreign = None
        return tensor

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> "Tensor":
        """Wrap a DLPack capsule, or an object with `__dlpack__`, without copying it.

        It must be contiguous in C order. Memory of a GPU stays there until the tensor is sent;
        PyTorch has to be there for that.
        """
        if not isinstance(name, str) or not name:
            raise TritonModelException(f"a tensor's name is a text, not {name!r}")
        source = dlpack.source(tensor)
        if not dlpack.on_cpu(source):
            return _of_device(name, source)
        array, bf16 = dlpack.to_numpy(source)
        if bf16:
            wire = array.reshape(-1).view(np.uint8).data
            return Tensor.of_wire(name, "BF16", array.shape, wire)
        return Tensor(name, array)

    def name(self) -> str:
        """As the configuration has it."""
        return self._name

    def shape(self) -> list[int]:
        """With the batch dimension, if the model batches."""
        return list(self._shape)

    def triton_dtype(self) -> int:
        """Triton's number of the data type: 1 for BOOL up to 14 for BF16."""
        return _NUMBER[self._datatype]

    def is_cpu(self) -> bool:
        """False for memory of a GPU."""
        return self._foreign is None

    def as_numpy(self) -> Array:
        """A view of the tensor's memory, which may be written; BYTES: an object array of `bytes`.

        BF16 needs the package ml_dtypes. Raises TritonModelException for memory of a GPU.
        """
        if self._array is None:
            self._array = self._made()
        return self._array

    def _made(self) -> Array:
        if self._foreign is not None or self._wire is None:
            raise TritonModelException(
                f"tensor '{self._name}' is in the memory of a GPU; use to_dlpack()"
            )
        if self._datatype == "BYTES":
            try:
                elements = split_bytes(self._name, self._wire, math.prod(self._shape))
            except NaiadError as error:
                raise TritonModelException(str(error)) from error
            return elements.reshape(self._shape)
        array = np.frombuffer(self._wire, DATATYPES[self._datatype].numpy).reshape(self._shape)
        return array.view(_bfloat16(self._name)) if self._datatype == "BF16" else array

    def to_dlpack(self) -> Any:
        """A DLPack capsule of the tensor's memory, not copied. Not for BYTES."""
        if self._datatype == "BYTES":
            raise TritonModelException(f"tensor '{self._name}' is BYTES, which DLPack has not")
        if self._foreign is not None:
            return self._foreign.__dlpack__()
        if self._datatype == "BF16":
            words = self._words()
            return dlpack.capsule(words if words.flags.writeable else words.copy(), bf16=True)
        array = self.as_numpy()
        # Consumers of DLPack may write; what several requests may share they must not.
        return dlpack.capsule(array if array.flags.writeable else array.copy(), bf16=False)

    def _words(self) -> Array:
        if self._wire is None:
            return self.as_numpy().view(np.uint16)
        return np.frombuffer(self._wire, np.uint16).reshape(self._shape)

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        if self._foreign is not None:
            return self._foreign.__dlpack__(stream=stream)
        return self.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        if self._foreign is not None:
            kind, number = self._foreign.__dlpack_device__()
            return int(kind), int(number)
        return dlpack.CPU, 0

    # -- for the channel

    @property
    def datatype(self) -> str:
        """The wire name of the data type."""
        return self._datatype

    def described(self) -> tuple[str, str, tuple[int, ...]]:
        """Name, datatype and shape."""
        return self._name, self._datatype, self._shape

    def wire(self) -> Buffer:
        """Contiguous bytes in the v2 binary form; a view where there is no need for a copy."""
        if self._wire is not None and (self._array is None or self._datatype == "BYTES"):
            return self._wire
        if self._foreign is not None:
            return _fetched(self._name, self._foreign).reshape(-1).view(np.uint8).data
        array = self.as_numpy()
        # A view costs three steps; up to some size a copy costs less than that.
        if array.nbytes <= _SMALL:
            return array.tobytes()
        return array.reshape(-1).view(np.uint8).data

    def kept(self) -> Buffer:
        """The same, safe from a model that goes on writing into an array that it has given away: a
        copy, unless nobody else can have the array."""
        array = self._array
        if array is None or self._datatype == "BYTES" or not array.flags.writeable:
            return self.wire()
        # The array's references: this tensor's, the local variable's and the argument's.
        alone = array.base is None and sys.getrefcount(array) <= 3
        return self.wire() if alone else bytes(self.wire())

    def __repr__(self) -> str:
        return f"Tensor({self._name!r}, {self._datatype}, {list(self._shape)})"


def _datatype(name: str, array: Array) -> str:
    kind = array.dtype.kind
    if kind in "OS":
        return "BYTES"
    if array.dtype.name == "bfloat16":
        return "BF16"
    found = _BY_NUMPY.get(array.dtype.newbyteorder("="))
    if found is None:
        hint = "; use dtype object or bytes_ for texts" if kind == "U" else ""
        raise TritonModelException(
            f"tensor '{name}' has NumPy type {array.dtype}, for which there is no data type{hint}"
        )
    return found


def _serialised(array: Array) -> bytes:
    if array.dtype.kind == "O":
        flat = [e if type(e) is bytes else str(e).encode() for e in array.ravel().tolist()]
        encoded = np.empty(len(flat), object)
        encoded[:] = flat
        return join_bytes(encoded)
    return join_bytes(array)


def _bfloat16(name: str) -> "np.dtype[Any]":
    try:
        import ml_dtypes
    except ImportError:
        raise TritonModelException(
            f"tensor '{name}' is BF16, which NumPy does not have: install ml_dtypes, or use"
            " to_dlpack()"
        ) from None
    kind: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return kind


def _of_device(name: str, source: Any) -> Tensor:
    torch = _torch(name)
    held = torch.from_dlpack(source)
    if not held.is_contiguous():
        raise TritonModelException("the DLPack tensor is not contiguous in C order")
    datatype = "BF16" if held.dtype == torch.bfloat16 else ""
    if not datatype:
        empty = torch.empty(0, dtype=held.dtype).numpy()
        datatype = _BY_NUMPY.get(empty.dtype) or _datatype(name, empty)
    tensor = Tensor.of_wire(name, datatype, tuple(held.shape), b"")
    tensor._wire = None
    tensor._foreign = held
    return tensor


def _fetched(name: str, held: Any) -> Array:
    torch = _torch(name)
    there = held.detach().cpu()
    if there.dtype == torch.bfloat16:
        there = there.view(torch.uint16)
    array: Array = there.numpy()
    return array


def _torch(name: str) -> Any:
    try:
        import torch
    except ImportError:
        raise TritonModelException(
            f"tensor '{name}' is in the memory of a GPU, and PyTorch is not there to fetch it"
        ) from None
    return torch
