"""Regions of POSIX shared memory: a part of an object that a client owns, reached by its name.

Knows nothing of requests. Source: Triton's system shared memory extension.
"""

import errno
import mmap
import os
import stat
from pathlib import Path
from typing import ClassVar, Final

from naiad.core.mapped import Mapped, Vanished
from naiad.core.region import Region
from naiad_backends.errors import NaiadError, invalid, not_found, unavailable

OBJECTS: Final = Path("/dev/shm")
"""Where the system shows shared memory objects as files."""

_RESERVED: Final = "triton_python_backend_shm_region_"
_LONGEST_KEY: Final = 255


class SystemRegion(Region):
    """A part of an object.

    key: name of the object.  offset: where the region begins in it, in bytes.
    """

    quick: ClassVar[int] = 1 << 20  # about 0.1 ms

    def __init__(self, name: str, key: str, offset: int, size: int, memory: Mapped) -> None:
        """memory: that part."""
        super().__init__(name, size)
        self.key = key
        self.offset = offset
        self._memory = memory

    def read(self, offset: int, into: memoryview) -> None:
        """See `Region.read`."""
        try:
            self._memory.read(offset, into)
        except Vanished:
            raise self._too_small() from None

    def write(self, offset: int, data: memoryview) -> None:
        """See `Region.write`."""
        try:
            self._memory.write(offset, data)
        except Vanished:
            raise self._too_small() from None

    def _too_small(self) -> NaiadError:
        again = "; register it again" if self._memory.lost else ""
        return invalid(
            f"the object '{self.key}' behind region '{self.name}' has become too small",
            hint=f"do not truncate it while it is registered{again}",
        )


def open_region(objects: Path, name: str, key: str, offset: int, size: int) -> SystemRegion:
    """The region `name`: `size` bytes of the object `key` from `offset` on, all pages allocated.

    objects: the folder of the objects. Blocks while there are pages to allocate.
    Raises NOT_FOUND for an object that cannot be opened, INVALID_ARG for a key that is no name and
    a range that is not there, UNAVAILABLE for want of memory or if the process may open no more
    files.
    """
    descriptor = _open(objects / _file_name(key), key)
    try:
        _check_range(os.fstat(descriptor), key, offset, size)
        # Else a request would find out that there is no room.
        os.posix_fallocate(descriptor, offset, size)
        return SystemRegion(name, key, offset, size, Mapped(descriptor, offset, size))
    except Vanished:
        raise _outside(key, offset, size, os.fstat(descriptor).st_size) from None
    except OSError as error:
        raise unavailable(
            f"the shared memory object '{key}' cannot be mapped: {error.strerror}",
            hint="there may be no room left for shared memory",
        ) from None
    finally:
        os.close(descriptor)


def _file_name(key: str) -> str:
    """The object's file, a name without a path. Raises INVALID_ARG."""
    name = key.lstrip("/")
    if name.startswith(_RESERVED):
        raise invalid(f"keys that begin with '{_RESERVED}' are reserved", field="key")
    try:
        usable = len(os.fsencode(name)) <= _LONGEST_KEY and not set(name) & {"/", "\0"}
    except UnicodeEncodeError:
        usable = False
    if not usable or name in ("", ".", ".."):
        raise invalid(
            f"{key[:80]!r} is not the name of a shared memory object",
            field="key",
            hint="a name has no slash but the first character, and up to 255 bytes",
        )
    return name


def _open(path: Path, key: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise unavailable(
                f"the shared memory object '{key}' cannot be opened: {error.strerror}",
                hint="unregister regions, or raise the server's limit of open files",
            ) from None
        raise not_found(
            f"the shared memory object '{key}' cannot be opened: {error.strerror}",
            field="key",
            hint="create it first, readable and writable for the server's user",
        ) from None


def _check_range(found: os.stat_result, key: str, offset: int, size: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise invalid(f"'{key}' is not a shared memory object", field="key")
    if size <= 0 or offset < 0 or offset + size > found.st_size:
        raise _outside(key, offset, size, found.st_size)
    if offset % mmap.ALLOCATIONGRANULARITY:
        raise invalid(
            f"offset {offset} is not where a page of memory begins",
            field="offset",
            hint=f"use a multiple of {mmap.ALLOCATIONGRANULARITY}",
        )


def _outside(key: str, offset: int, size: int, there: int) -> NaiadError:
    return invalid(
        f"{size} bytes from byte {offset} on are not inside the object '{key}', which has {there}",
        field="byte_size",
    )
