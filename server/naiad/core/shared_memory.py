"""Regions of system shared memory that clients have registered, and the requests that use them.

A region is a mapping of a POSIX shared memory object, opened by its name and owned by the client:
nothing is created or removed here. What a request says in its own format is not known here.
Source: Triton's shared memory extension.
"""

import asyncio
import mmap
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from naiad_backends.api import Tensor
from naiad_backends.errors import Code, NaiadError, invalid, not_found, unsupported

OBJECTS: Final = Path("/dev/shm")
"""Where the system shows shared memory objects as files."""

_REGION: Final = "shared_memory_region"
_OFFSET: Final = "shared_memory_offset"
_SIZE: Final = "shared_memory_byte_size"
_NAMES: Final = frozenset((_REGION, _OFFSET, _SIZE))

_RESERVED: Final = "triton_python_backend_shm_region_"
_LONGEST_KEY: Final = 255


@dataclass(slots=True, eq=False)
class Region:
    """What was registered.

    key: name of the object.  offset, size: the part of it that is mapped, in bytes.
    users: requests that use it now.  leaving: unregistered, but still in use.
    """

    name: str
    key: str
    offset: int
    size: int
    mapping: mmap.mmap
    users: int = 0
    leaving: bool = False

    def require(self, end: int, field: str) -> None:
        """Raise INVALID_ARG if the object has lost bytes in front of `end`, as touching them would
        kill the process."""
        if self.mapping.size() < self.offset + end:
            raise invalid(
                f"the object '{self.key}' behind region '{self.name}' has become too small",
                field=field,
                hint="do not truncate it while it is registered",
            )


class SharedMemory:
    """All regions of a server. Used on the event loop.

    Unregistering a region that requests use takes effect when the last of them ends; until then
    its name is taken, and no other request may begin to use it.
    """

    def __init__(self, allowed: bool, objects: Path = OBJECTS) -> None:
        """allowed: whether clients may register regions.  objects: the folder of the objects."""
        self._allowed = allowed
        self._objects = objects
        self._regions: dict[str, Region] = {}

    async def register(self, name: str, key: str, offset: int, size: int) -> None:
        """Map `size` bytes of an object from `offset` on and call them `name`.

        Raises UNSUPPORTED if that is not allowed, ALREADY_EXISTS for a name that is taken,
        NOT_FOUND for an object that cannot be opened, INVALID_ARG for anything else.
        """
        self.require_allowed()
        if not name:
            raise invalid("a region needs a name", field="name")
        self._require_free(name)
        path = self._objects / _file_name(key)
        mapping = await asyncio.to_thread(_map, path, key, offset, size)
        self._require_free(name)
        self._regions[name] = Region(name, key, offset, size, mapping)

    def status(self, name: str = "") -> Sequence[Region]:
        """One region, or all. Raises NOT_FOUND for an unknown name."""
        return [self._find(name)] if name else list(self._regions.values())

    def unregister(self, name: str = "") -> None:
        """Forget one region, or all; an unknown name is no error. UNSUPPORTED if not allowed."""
        self.require_allowed()
        for region in list(self._regions.values()):
            if name in ("", region.name):
                region.leaving = True
                self._forget_if_done(region)

    def cuda_status(self, name: str = "") -> None:
        """There is no GPU support: no region of CUDA memory. Raises NOT_FOUND for any name."""
        if name:
            raise not_found(f"no CUDA shared memory region '{name}' is registered")

    def register_cuda(self, name: str) -> None:
        """Raises UNSUPPORTED."""
        self.require_allowed()
        raise unsupported(
            f"CUDA shared memory region '{name}' cannot be registered: this server has no GPU"
            " support",
            hint="use system shared memory",
        )

    def unregister_cuda(self) -> None:
        """Does nothing, as there are none. Raises UNSUPPORTED if not allowed."""
        self.require_allowed()

    def require_allowed(self) -> None:
        """Raise UNSUPPORTED unless clients may register regions."""
        if not self._allowed:
            raise unsupported(
                "clients may not register shared memory with this server",
                hint="start it with --allow-client-shm=true",
            )

    def lease(self) -> "Lease":
        """What a request needs to use regions: a context that ends with the request."""
        return Lease(self) if self._regions else NO_REGIONS

    def use(self, name: str, field: str) -> Region:
        """A region for one more user. Raises NOT_FOUND, also for one that is leaving."""
        region = self._find(name, field)
        if region.leaving:
            raise not_found(f"region '{name}' has been unregistered", field=field)
        region.users += 1
        return region

    def release(self, region: Region) -> None:
        """One user less."""
        region.users -= 1
        self._forget_if_done(region)

    def _find(self, name: str, field: str = "") -> Region:
        region = self._regions.get(name)
        if region is None:
            raise not_found(
                f"no shared memory region '{name}' is registered",
                field=field,
                hint="register it first",
            )
        return region

    def _require_free(self, name: str) -> None:
        if name in self._regions:
            raise NaiadError(
                Code.ALREADY_EXISTS,
                f"a shared memory region '{name}' is registered already",
                field="name",
                hint="unregister it first, or take another name",
            )

    def _forget_if_done(self, region: Region) -> None:
        # The memory itself is unmapped with the last view of it, whoever has that.
        if region.leaving and not region.users:
            del self._regions[region.name]


class Lease:
    """The regions that one request uses: views for its inputs, places for its outputs."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._used: list[Region] = []
        self._places: dict[str, tuple[Region, int, int]] = {}

    def input(self, parameters: Mapping[str, Any], where: str) -> memoryview | None:
        """The bytes that an input's parameters name; None if they name none.

        where: the input's path, for errors. Raises INVALID_ARG or NOT_FOUND.
        """
        if _NAMES.isdisjoint(parameters):
            return None
        region, start, size = self._range(parameters, where)
        return memoryview(region.mapping)[start : start + size].toreadonly()

    def output(self, name: str, parameters: Mapping[str, Any], where: str) -> bool:
        """Note the place that an output's parameters name, and say whether they do. As `input`."""
        if _NAMES.isdisjoint(parameters):
            return False
        self._places[name] = self._range(parameters, where)
        return True

    def put(self, tensor: Tensor) -> bool:
        """Copy an output into its place; False if it has none. INVALID_ARG if it does not fit."""
        place = self._places.get(tensor.name)
        if place is None:
            return False
        region, start, room = place
        wire = memoryview(tensor.wire()).cast("B")
        if wire.nbytes > room:
            raise invalid(
                f"output '{tensor.name}' has {wire.nbytes} bytes, but its place in region"
                f" '{region.name}' only {room}",
                field="outputs",
                hint=f"make {_SIZE} larger",
            )
        end = start + wire.nbytes
        region.require(end, "outputs")
        memoryview(region.mapping)[start:end] = wire
        return True

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """The request is over; more than once is no harm."""
        used, self._used = self._used, []
        for region in used:
            self._memory.release(region)

    def __del__(self) -> None:
        # A request of a stream may be given up before it has begun, so that nobody ends it.
        if self._used:
            self.end()

    def _range(self, parameters: Mapping[str, Any], where: str) -> tuple[Region, int, int]:
        field = f'{where}.parameters["{_REGION}"]'
        name = parameters.get(_REGION)
        if not isinstance(name, str) or not name:
            raise invalid("must be the name of a region", field=field)
        offset = _bytes(parameters, _OFFSET, where, 0)
        size = _bytes(parameters, _SIZE, where, None)
        region = self._memory.use(name, field)
        self._used.append(region)
        if offset >= region.size or offset + size > region.size:
            raise invalid(
                f"{size} bytes from byte {offset} on are not inside region '{name}', which has"
                f" {region.size}",
                field=f'{where}.parameters["{_OFFSET if offset >= region.size else _SIZE}"]',
            )
        region.require(offset + size, field)
        return region, offset, size


NO_REGIONS: Final = Lease(SharedMemory(allowed=False))
"""The lease of requests that come while nothing is registered. It never gets to hold anything."""


def _bytes(parameters: Mapping[str, Any], name: str, where: str, default: int | None) -> int:
    value = parameters.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise invalid("must be a number of bytes", field=f'{where}.parameters["{name}"]')
    return value


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


def _map(path: Path, key: str, offset: int, size: int) -> mmap.mmap:
    """The mapping of a part of an object, with all its pages there."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise not_found(
            f"the shared memory object '{key}' cannot be opened: {error.strerror}",
            field="key",
            hint="create it first, readable and writable for the server's user",
        ) from None
    try:
        _check_range(os.fstat(descriptor), key, offset, size)
        # A page for which there is no room would kill whoever touches it first.
        os.posix_fallocate(descriptor, offset, size)
        return mmap.mmap(descriptor, size, offset=offset)
    except OSError as error:
        raise invalid(
            f"the shared memory object '{key}' cannot be mapped: {error.strerror}",
            hint="there may be no room left for shared memory",
        ) from None
    finally:
        os.close(descriptor)


def _check_range(found: os.stat_result, key: str, offset: int, size: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise invalid(f"'{key}' is not a shared memory object", field="key")
    if size <= 0 or offset < 0 or offset + size > found.st_size:
        raise invalid(
            f"{size} bytes from byte {offset} on are not inside the object '{key}', which has"
            f" {found.st_size}",
            field="byte_size",
        )
    if offset % mmap.ALLOCATIONGRANULARITY:
        raise invalid(
            f"offset {offset} is not where a page of memory begins",
            field="offset",
            hint=f"use a multiple of {mmap.ALLOCATIONGRANULARITY}",
        )
