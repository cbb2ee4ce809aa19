"""Tensors in a message: small ones behind its head, large ones in a block of shared memory.

What already lies in a block of the receiver, because a model hands an input on, is only named.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from naiad_backends.api import Buffer
from naiad_backends.python.runtime.blocks import Block, Mapped, Pool, view

INLINE = 32_768
"""Bytes of tensors that a message carries itself. Beyond, the second copy through a socket costs
more than a block."""

ALIGNMENT = 64

BODY = 0
"""The place of what comes with the message; others are numbers of the receiver's own blocks."""

_GAPS = tuple(bytes(size) for size in range(ALIGNMENT))

Place = tuple[int, int, int]
"""place, offset and size in bytes."""


class Packer:
    """Collects the buffers of one message. Then either `data` goes with it, or `block`."""

    __slots__ = ("_buffers", "_mapped", "named", "size")

    def __init__(self, mapped: Mapped | None = None) -> None:
        """mapped: the receiver's blocks, in which buffers may lie."""
        self._buffers: list[Buffer] = []
        self._mapped = mapped
        self.named: list[int] = []
        """Blocks of the receiver that were named, one for each time."""
        self.size = 0

    def add(self, buffer: Buffer) -> Place:
        """Where the receiver will find the buffer."""
        size = buffer.nbytes if type(buffer) is memoryview else len(buffer)
        if size > INLINE and self._mapped is not None and len(self._mapped):
            found = self._mapped.place(_address(buffer), size)
            if found is not None:
                self.named.append(found[0])
                return found[0], found[1], size
        offset = self.size
        gap = -size % ALIGNMENT
        self._buffers.append(buffer)
        if gap:
            self._buffers.append(_GAPS[gap])
        self.size = offset + size + gap
        return BODY, offset, size

    def forget(self, count: int = 0) -> None:
        """The message will not have what was named after the first `count` times."""
        while len(self.named) > count and self._mapped is not None:
            self._mapped.unname(self.named.pop())

    def mark(self) -> tuple[int, int]:
        """Where it stands, for `rewind`."""
        return len(self._buffers), self.size

    def rewind(self, mark: tuple[int, int]) -> None:
        """Forget what was added since."""
        number, self.size = mark
        del self._buffers[number:]

    @property
    def inline(self) -> bool:
        """Whether the message carries them itself."""
        return self.size <= INLINE

    def data(self) -> bytes:
        """All of them in a row."""
        return b"".join(self._buffers)

    def fill(self, block: Block) -> None:
        """Copy all of them into a block; other threads run meanwhile."""
        target = np.frombuffer(block.memory, np.uint8)
        at = 0
        for buffer in self._buffers:
            source = np.frombuffer(buffer, np.uint8)
            target[at : at + source.size] = source
            at += source.size


def pack(packer: Packer, pool: Pool) -> tuple[bytes, Block | None]:
    """What goes with the message: data, or a block that the receiver has to release. Raises OSError
    if there is no memory for one."""
    if packer.inline:
        return packer.data(), None
    try:
        block = pool.take(packer.size)
    except OSError:
        packer.forget()
        raise
    packer.fill(block)
    return b"", block


class Unpacker:
    """Finds the buffers of one message that came in."""

    __slots__ = ("_body", "_own")

    def __init__(
        self,
        data: bytearray,
        block: int,
        mapped: Mapped,
        release: Callable[[int], Any],
        own: Callable[[int], memoryview] | None = None,
    ) -> None:
        """block: number of the sender's block, 0 for none.
        release: called with it, on any thread, when nothing refers to its tensors any more.
        own: gives a view of one of our own blocks, which the sender named.
        Raises ValueError for a block that does not exist."""
        if block:
            self._body = view(mapped.get(block), lambda: release(block))
        else:
            self._body = memoryview(data)
        self._own = own

    def get(self, place: int, offset: int, size: int) -> memoryview:
        """The buffer at a place. Raises ValueError for what lies outside of it."""
        if place == BODY:
            body = self._body
        elif self._own is not None:
            body = self._own(place)
        else:
            raise ValueError("a message names memory that is not its sender's")
        if not 0 <= offset <= offset + size <= len(body):
            raise ValueError(
                f"a message names bytes {offset} to {offset + size} of {len(body)} bytes of memory"
            )
        return body[offset : offset + size]


def _address(buffer: Buffer) -> int:
    start: int = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    return start
