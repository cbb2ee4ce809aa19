"""GGUF files: metadata and tensors, every length, count and offset checked before it is used.

Knows nothing of models. The tensors are views of the mapped file; nothing of them is read here.
"""

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np
import numpy.typing as npt

from naiad_backends.errors import NaiadError, invalid, not_found, unsupported
from naiad_backends.llm.checkpoint.weights import PLAIN, TYPES, Weight

MOST_STRINGS = 1 << 22
"""In an array; more than any vocabulary has, and few enough for the memory."""

MOST_DIMENSIONS = 4
STRING, ARRAY = 8, 9

SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
"""Types of metadata."""

_U32 = Struct("<I")
_U64 = Struct("<Q")


@dataclass(frozen=True, slots=True)
class GgufFile:
    """metadata: by key; arrays of strings are lists, other arrays NumPy's.  tensors: by the names
    in the file."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Weight]


def read_gguf(path: Path) -> GgufFile:
    """Map a file. INVALID_ARG, naming the file and what is wrong with it, if it is not a sound GGUF
    file of version 2 or 3; NOT_FOUND if it is not there."""
    try:
        with path.open("rb") as file:
            # An empty file cannot be mapped.
            size = path.stat().st_size
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if size else b""
    except OSError as error:
        raise not_found(f"it cannot be read: {error.strerror}", field=str(path)) from None
    return _Reader(path, content).read()


class _Reader:
    """Walks from the front of a file to its back."""

    def __init__(self, path: Path, content: bytes | mmap.mmap) -> None:
        self.path = path
        self.content = content
        self.size = len(content)
        self.at = 0

    def read(self) -> GgufFile:
        """All but the tensors' data."""
        if self.take(4) != b"GGUF":
            raise self.broken("it does not begin with 'GGUF'")
        version = self.u32()
        if version not in (2, 3):
            endian = version in (2 << 24, 3 << 24)
            what = "is big-endian" if endian else f"has version {version}"
            raise unsupported(f"the GGUF file {what}", field=str(self.path), hint="use version 3")
        tensors = self.count("tensors", least=24)
        keys = self.count("metadata keys", least=13)
        metadata = self.metadata(keys)
        return GgufFile(self.path, metadata, self.tensors(tensors, self.alignment(metadata)))

    def metadata(self, keys: int) -> dict[str, Any]:
        """Keys and values."""
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self.string("a key")
            if key in metadata:
                raise self.broken(f"the key '{key}' stands twice")
            metadata[key] = self.value(self.u32(), key)
        return metadata

    def value(self, kind: int, key: str) -> Any:
        """What a key has."""
        if kind == STRING:
            return self.string(key)
        if kind == ARRAY:
            return self.array(key)
        dtype = self.scalar(kind, key)
        return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()

    def array(self, key: str) -> list[str] | npt.NDArray[Any]:
        """Strings as a list, numbers as NumPy's."""
        kind = self.u32()
        if kind == STRING:
            count = self.count(f"strings of '{key}'", least=8)
            if count > MOST_STRINGS:
                raise self.broken(f"'{key}' has {count} strings, more than {MOST_STRINGS}")
            return self.strings(count, key)
        dtype = self.scalar(kind, key)
        count = self.count(f"items of '{key}'", least=dtype.itemsize)
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def strings(self, count: int, key: str) -> list[str]:
        """Many strings; one loop without calls, for a vocabulary has hundreds of thousands."""
        content, size, at, length_at = self.content, self.size, self.at, _U64.unpack_from
        strings = []
        try:
            for _ in range(count):
                if at + 8 > size:
                    raise self.cut(f"in '{key}'")
                start = at + 8
                at = start + length_at(content, at)[0]
                if at > size:
                    raise self.cut(f"in '{key}'")
                strings.append(content[start:at].decode())
        except UnicodeDecodeError:
            raise self.broken(f"'{key}' holds text that is not UTF-8") from None
        self.at = at
        return strings

    def tensors(self, count: int, alignment: int) -> dict[str, Weight]:
        """Name, shape, type and place of each, then where their data begins."""
        table: dict[str, tuple[tuple[int, ...], str, int, int]] = {}
        for _ in range(count):
            name = self.string("a tensor's name")
            if name in table:
                raise self.broken(f"the tensor '{name}' stands twice")
            table[name] = self.tensor(name, alignment)
        base = -(-self.at // alignment) * alignment
        behind = 0
        for name, (_, _, offset, length) in sorted(table.items(), key=lambda item: item[1][2]):
            if offset < behind:
                raise self.broken(f"the tensor '{name}' overlaps the one before it")
            behind = offset + length
            if base + behind > self.size:
                raise self.cut(f"before the end of the tensor '{name}'")
        return {
            name: self.weight(shape, kind, base + offset, length)
            for name, (shape, kind, offset, length) in table.items()
        }

    def tensor(self, name: str, alignment: int) -> tuple[tuple[int, ...], str, int, int]:
        """A row of the table: shape, type, offset and length of its data."""
        dimensions = self.u32()
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise self.broken(f"the tensor '{name}' has {dimensions} dimensions")
        # The file's first dimension is the one whose numbers lie side by side.
        shape = tuple(self.u64() for _ in range(dimensions))[::-1]
        number, offset = self.u32(), self.u64()
        if number not in TYPES:
            raise unsupported(
                f"the tensor '{name}' has the unknown type {number}", field=str(self.path)
            )
        kind, numbers, size = TYPES[number]
        if not all(shape) or shape[-1] % numbers:
            raise self.broken(f"the tensor '{name}' of type {kind} cannot have shape {list(shape)}")
        if offset % alignment:
            raise self.broken(f"the tensor '{name}' is not aligned to {alignment} bytes")
        return shape, kind, offset, prod(shape) // numbers * size

    def weight(self, shape: tuple[int, ...], kind: str, start: int, length: int) -> Weight:
        """A view of its data."""
        data = np.frombuffer(self.content, np.uint8, length, start)
        if kind in PLAIN:
            return Weight(shape, kind, data.view(PLAIN[kind]).reshape(shape))
        return Weight(shape, kind, data.reshape(*shape[:-1], -1))

    def alignment(self, metadata: Mapping[str, Any]) -> int:
        """Of the tensors' data."""
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
            raise self.broken(f"general.alignment is {alignment!r}")
        return alignment

    def count(self, what: str, least: int) -> int:
        """How many things follow that have `least` bytes each, and are not more than fit."""
        count = self.u64()
        if count > (self.size - self.at) // least:
            raise self.broken(f"it says that it has {count} {what}, more than fit into it")
        return count

    def scalar(self, kind: int, key: str) -> np.dtype[Any]:
        """The type of a number."""
        if kind not in SCALARS:
            raise self.broken(f"'{key}' has the type {kind}, which is not one")
        return SCALARS[kind]

    def string(self, what: str) -> str:
        """A length and bytes."""
        try:
            return self.take(self.u64()).decode()
        except UnicodeDecodeError:
            raise self.broken(f"{what} is not UTF-8") from None

    def u32(self) -> int:
        """The next four bytes."""
        number: int = _U32.unpack(self.take(4))[0]
        return number

    def u64(self) -> int:
        """The next eight bytes."""
        number: int = _U64.unpack(self.take(8))[0]
        return number

    def take(self, length: int) -> bytes:
        """The next bytes."""
        start = self.at
        if length > self.size - start:
            raise self.cut(f"at byte {self.size}")
        self.at = start + length
        return self.content[start : self.at]

    def cut(self, where: str) -> NaiadError:
        """It is shorter than it says."""
        return self.broken(f"it ends {where}")

    def broken(self, what: str) -> NaiadError:
        """It is not what it should be."""
        return invalid(
            f"the GGUF file is damaged: {what}", field=str(self.path), hint="fetch it again"
        )
