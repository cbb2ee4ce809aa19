"""Part of another process's file in memory, and copies to and from it that survive its loss.

The kernel sends SIGBUS to whoever touches a page that has been cut off from its file, or for which
there is no room, and the signal ends a process. Here it ends a copy: the handler puts empty memory
in the place of the file, the copy runs to its end, and then fails. The kernel's own copies (pread,
pwrite) fail by themselves, but take twice the time. Knows nothing of regions.
"""

import ctypes
import mmap
import signal
import threading
from functools import cache
from typing import Any, Final

import numpy as np

_MAP_FIXED: Final = 0x10
_FAILED: Final = ctypes.c_void_p(-1).value


class Vanished(Exception):
    """The file has lost the pages that were to be copied."""


class Mapped:
    """`size` bytes of a file from `offset` on. Any thread may copy.

    address: where they are.  lost: they are not there any more, and nothing brings them back.
    """

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        """descriptor: may be closed afterwards. offset: a multiple of the page size.

        Raises OSError if the file cannot be mapped, Vanished if it is too short.
        """
        self.size = size
        self.lost = False
        try:
            self._mapping = mmap.mmap(descriptor, size, offset=offset)
        except ValueError:
            raise Vanished from None
        self._offset = offset
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        self._guard = _guard()

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into`. Raises Vanished."""
        self._copy(_address(into), self.address + offset, offset + len(into), len(into))

    def write(self, offset: int, data: memoryview) -> None:
        """Put `data` at `offset`. Raises Vanished."""
        self._copy(self.address + offset, _address(data), offset + len(data), len(data))

    def _copy(self, target: int, source: int, end: int, size: int) -> None:
        # A file that is too short now may grow again; what the handler has replaced is gone.
        if self.lost or self._mapping.size() < self._offset + end:
            raise Vanished
        self._guard.copy(target, source, size, self)
        if self.lost:
            raise Vanished


class _Action(ctypes.Structure):
    """struct sigaction, as glibc and musl have it on 64-bit Linux."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class _Guard:
    """The process's handler of SIGBUS, and the copies that it watches over, by thread.

    The signal comes on the thread that copies, in the midst of memmove, which holds no lock and has
    given the GIL away. So the handler may run Python there.
    """

    def __init__(self) -> None:
        self._copies: dict[int, Mapped] = {}
        self._libc = ctypes.CDLL(None)
        self._libc.mmap.restype = ctypes.c_void_p
        self._previous = _Action()
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._on_fault)
        action = _Action(handler=ctypes.cast(self._handler, ctypes.c_void_p))
        self._libc.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(self._previous))

    def copy(self, target: int, source: int, size: int, mapped: Mapped) -> None:
        """memmove, of which one side lies in `mapped`; that is `lost` if it was not there."""
        thread = threading.get_ident()
        self._copies[thread] = mapped
        ctypes.memmove(target, source, size)
        del self._copies[thread]

    def _on_fault(self, number: int) -> None:
        mapped = self._copies.get(threading.get_ident())
        if mapped is None or not self._replace(mapped):
            # Not ours, or not to be helped: the instruction faults again, as if we were not here.
            self._libc.sigaction(number, ctypes.byref(self._previous), None)

    def _replace(self, mapped: Mapped) -> bool:
        mapped.lost = True
        placed = self._libc.mmap(
            ctypes.c_void_p(mapped.address),
            ctypes.c_size_t(mapped.size),
            ctypes.c_int(mmap.PROT_READ | mmap.PROT_WRITE),
            ctypes.c_int(mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED),
            ctypes.c_int(-1),
            ctypes.c_long(0),
        )
        return bool(placed != _FAILED)


@cache
def _guard() -> _Guard:
    """The one of this process, installed when the first file is mapped."""
    return _Guard()


def _address(data: memoryview) -> Any:
    return np.frombuffer(data, np.uint8).ctypes.data if data.nbytes else 0
