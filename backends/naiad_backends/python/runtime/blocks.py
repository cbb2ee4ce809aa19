"""Blocks of memory that a server and a worker share: made by one side, mapped by both.

A block has no name anywhere: it is a file in memory that is passed on by descriptor, so nothing is
left behind when both sides are gone, however they went. Its size is sealed, so that neither side
can take memory away from under the other.
"""

import ctypes
import fcntl
import mmap
import os
import socket
import struct
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

SMALLEST = 65_536
"""Bytes of the smallest block."""

_SEALED = hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")
_NUMBER = struct.Struct("<Q")
_DESCRIPTOR = struct.Struct("@i")


def rounded(size: int) -> int:
    """The size of the block for so many bytes: at most an eighth more, and whole pages, so that
    blocks are used again for what is nearly as large."""
    step = max(mmap.PAGESIZE, 1 << max(size.bit_length() - 4, 0))
    return max(SMALLEST, -(-size // step) * step)


def create(size: int) -> int:
    """A descriptor of `size` bytes of memory, sealed where the system can. Raises OSError."""
    if not _SEALED:
        with tempfile.TemporaryFile() as file:
            file.truncate(size)
            return os.dup(file.fileno())
    descriptor = os.memfd_create("naiad", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(
            descriptor,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
        )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def attach(descriptor: int) -> mmap.mmap:
    """Map a block of the other side. Raises ValueError if it is none or its size is not sealed,
    OSError if there is no room to map it."""
    if _SEALED:
        try:
            seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        except OSError:
            raise ValueError("what was announced is no shared memory") from None
        if not (seals & fcntl.F_SEAL_SHRINK and seals & fcntl.F_SEAL_SEAL):
            raise ValueError("a block of shared memory could shrink")
    return mmap.mmap(descriptor, os.fstat(descriptor).st_size)


def address(memory: mmap.mmap) -> int:
    """Where a mapping begins."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def view(memory: mmap.mmap, gone: Callable[[], Any]) -> memoryview:
    """All of a mapping; `gone` is called, on any thread, when nothing refers to the view any more,
    nor to an array or a part that was made of it."""
    whole = (ctypes.c_ubyte * len(memory)).from_buffer(memory)
    weakref.finalize(whole, gone).atexit = False
    return memoryview(whole).cast("B")


class Block:
    """One block of our own.

    users: how many hold it: the other side, and answers that lie in it.
    named: how often the other side has named it as the place of something.
    due: that number at which a release counts that has overtaken messages; 0 for none.
    """

    __slots__ = ("address", "due", "idle_since", "memory", "named", "number", "size", "users")

    def __init__(self, number: int, memory: mmap.mmap) -> None:
        self.number = number
        self.memory = memory
        self.size = len(memory)
        self.address = address(memory)
        self.users = 0
        self.named = 0
        self.due = 0
        self.idle_since = 0.0


class Pool:
    """Our own blocks. Any thread may use it."""

    def __init__(self, announce: Callable[[int, int], None]) -> None:
        """announce: gives the other side the descriptor of a new block, with its number."""
        self._announce = announce
        self._lock = threading.Lock()
        self._blocks: dict[int, Block] = {}
        self._free: list[Block] = []
        self._made = 0

    def take(self, size: int) -> Block:
        """A block of at least so many bytes, with one user. Raises OSError if there is no memory
        or the other side is gone."""
        wanted = rounded(size)
        with self._lock:
            fitting = [block for block in self._free if wanted <= block.size <= 4 * wanted]
            if fitting:
                block = min(fitting, key=lambda one: one.size)
                self._free.remove(block)
            else:
                block = self._make(wanted)
            block.users = 1
            return block

    def _make(self, size: int) -> Block:
        descriptor = create(size)
        try:
            self._made += 1
            block = Block(self._made, mmap.mmap(descriptor, size))
            self._announce(block.number, descriptor)
        finally:
            os.close(descriptor)
        self._blocks[block.number] = block
        return block

    def share(self, number: int) -> Block | None:
        """A block that is in use, which the other side has named, with one user more; None if
        there is no such."""
        with self._lock:
            block = self._blocks.get(number)
            if block is None or not block.users:
                return None
            block.users += 1
            block.named += 1
            if 0 < block.due <= block.named:
                block.due = 0
                block.users -= 1
            return block

    def release(self, number: int, named: int = 0) -> None:
        """One user less.

        named: how often the other side has named the block until now. Messages come by two ways, so
            that those which name it may come later than this.
        """
        with self._lock:
            block = self._blocks.get(number)
            if block is None or not block.users:
                return
            if block.named < named:
                block.due = named
                return
            block.users -= 1
            if not block.users:
                block.idle_since = time.monotonic()
                self._free.append(block)

    def trim(self, seconds: float) -> list[int]:
        """Give back what nobody has used for so long; the numbers, for the other side to do it,
        too."""
        limit = time.monotonic() - seconds
        with self._lock:
            gone = [block for block in self._free if block.idle_since <= limit]
            for block in gone:
                self._free.remove(block)
                del self._blocks[block.number]
        return [block.number for block in gone]

    @property
    def bytes(self) -> int:
        """All that is taken from the system now."""
        with self._lock:
            return sum(block.size for block in self._blocks.values())


class Mapped:
    """The other side's blocks, mapped when they are first met. Any thread may use it."""

    def __init__(self, channel: socket.socket) -> None:
        """channel: where descriptors come in, each ahead of the first word about its block."""
        self._channel = channel
        self._lock = threading.Lock()
        self._memory: dict[int, tuple[mmap.mmap, int]] = {}
        self._announced: dict[int, int] = {}
        self._named: dict[int, int] = {}

    def get(self, number: int) -> mmap.mmap:
        """The memory of a block. Raises ValueError for one that was not announced, OSError if there
        is no room to map it; there may be another time."""
        with self._lock:
            if number not in self._memory:
                self._map(number)
            return self._memory[number][0]

    def _map(self, number: int) -> None:
        while number not in self._announced:
            self._receive()
        memory = attach(self._announced[number])
        os.close(self._announced.pop(number))
        self._memory[number] = (memory, address(memory))

    def _receive(self) -> None:
        try:
            data, received = self._next()
        except ConnectionResetError:
            # The other side has ended without taking all of our blocks. Said once, ahead of its.
            data, received = self._next()
        if len(data) != _NUMBER.size or len(received) != 1:
            raise ValueError("an announcement of shared memory was cut off")
        (descriptor,) = _DESCRIPTOR.unpack(received[0][2])
        if self._announced.setdefault(_NUMBER.unpack(data)[0], descriptor) != descriptor:
            os.close(descriptor)
            raise ValueError("a block of shared memory was announced twice")

    def _next(self) -> tuple[bytes, list[tuple[int, int, bytes]]]:
        try:
            # Not `socket.recv_fds`, which does not heed its flags.
            data, received, _, _ = self._channel.recvmsg(
                _NUMBER.size, socket.CMSG_LEN(_DESCRIPTOR.size), socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            raise ValueError("a block of shared memory was not announced") from None
        return data, received

    def drop(self, number: int) -> None:
        """The other side has given a block back; what still refers to it keeps it alive."""
        with self._lock:
            self._memory.pop(number, None)
            self._named.pop(number, None)
            descriptor = self._announced.pop(number, None)
        if descriptor is not None:
            os.close(descriptor)

    def close(self) -> None:
        """The other side is gone; what still refers to a block keeps it alive."""
        with self._lock:
            self._memory.clear()
            while self._announced:
                os.close(self._announced.popitem()[1])

    def place(self, start: int, size: int) -> tuple[int, int] | None:
        """The block in which these bytes lie, and where, to be named in a message; None if they lie
        in none."""
        with self._lock:
            for number, (memory, begin) in self._memory.items():
                if begin <= start and start + size <= begin + len(memory):
                    self._named[number] = self._named.get(number, 0) + 1
                    return number, start - begin
        return None

    def unname(self, number: int) -> None:
        """No message will name the block, which `place` has given."""
        with self._lock:
            if number in self._named:
                self._named[number] -= 1

    def named(self, number: int) -> int:
        """How often messages have named this block, or will as soon as they are written."""
        return self._named.get(number, 0)

    def __len__(self) -> int:
        return len(self._memory)


def announcer(channel: socket.socket) -> Callable[[int, int], None]:
    """A Pool's `announce` over a socket that keeps messages apart."""

    def announce(number: int, descriptor: int) -> None:
        socket.send_fds(channel, [_NUMBER.pack(number)], [descriptor])

    return announce
