"""The regions of shared memory that clients have registered, and the requests that use them.

Knows what a region is for, not what is behind it, and not what a request says in its own format.
Source: Triton's shared memory extensions.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np

from naiad.core import cuda_memory, system_memory
from naiad.core.cuda_memory import Driver
from naiad.core.region import Region
from naiad.core.system_memory import OBJECTS
from naiad_backends.api import Tensor
from naiad_backends.errors import Code, NaiadError, invalid, not_found, unsupported

R = TypeVar("R", bound=Region)

_REGION: Final = "shared_memory_region"
_OFFSET: Final = "shared_memory_offset"
_SIZE: Final = "shared_memory_byte_size"
_NAMES: Final = frozenset((_REGION, _OFFSET, _SIZE))


class SharedMemory:
    """All regions of a server, in one name space. Used on the event loop.

    Unregistering a region that requests use takes effect when the last of them ends; until then
    its name is taken, and no other request may begin to use it.
    """

    def __init__(
        self,
        allowed: bool,
        objects: Path = OBJECTS,
        load_driver: Callable[[], Driver] = Driver.load,
    ) -> None:
        """allowed: whether clients may register regions.  objects: the folder of the objects.
        load_driver: called for the first CUDA region, in a thread."""
        self._allowed = allowed
        self._objects = objects
        self._load_driver = load_driver
        self._driver: Driver | None = None
        self._regions: dict[str, Region] = {}

    async def register(self, name: str, key: str, offset: int, size: int) -> None:
        """Call `size` bytes of a system object from `offset` on `name`.

        Raises UNSUPPORTED if that is not allowed, ALREADY_EXISTS for a name that is taken,
        and what `system_memory.open_region` raises.
        """
        self._require_name(name)
        self._add(
            await asyncio.to_thread(
                system_memory.open_region, self._objects, name, key, offset, size
            )
        )

    async def register_cuda(self, name: str, handle: bytes, device: int, size: int) -> None:
        """Call `size` bytes of a GPU's memory `name`.

        Raises UNSUPPORTED if that is not allowed or there is no GPU, ALREADY_EXISTS for a name
        that is taken, and what `cuda_memory.open_region` raises.
        """
        self._require_name(name)
        if self._driver is None:
            self._driver = await asyncio.to_thread(self._load_driver)
        self._add(
            await asyncio.to_thread(
                cuda_memory.open_region, self._driver, name, handle, device, size
            )
        )

    def status(self, kind: type[R], name: str = "") -> list[R]:
        """One region of a kind, or all. Raises NOT_FOUND for a name that is none of that kind."""
        found = [region for region in self._regions.values() if isinstance(region, kind)]
        if not name:
            return found
        for region in found:
            if region.name == name:
                return [region]
        raise _unknown(name)

    def unregister(self, kind: type[Region], name: str = "") -> None:
        """Forget one region of a kind, or all; an unknown name is no error. UNSUPPORTED if not
        allowed."""
        self.require_allowed()
        for region in list(self._regions.values()):
            if isinstance(region, kind) and name in ("", region.name):
                region.leaving = True
                self._forget_if_done(region)

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
        region = self._regions.get(name)
        if region is None:
            raise _unknown(name, field)
        if region.leaving:
            raise not_found(f"region '{name}' has been unregistered", field=field)
        region.users += 1
        return region

    def release(self, region: Region) -> None:
        """One user less."""
        region.users -= 1
        self._forget_if_done(region)

    def _require_name(self, name: str) -> None:
        self.require_allowed()
        if not name:
            raise invalid("a region needs a name", field="name")
        self._require_free(name)

    def _require_free(self, name: str) -> None:
        if name in self._regions:
            raise NaiadError(
                Code.ALREADY_EXISTS,
                f"a shared memory region '{name}' is registered already",
                field="name",
                hint="unregister it first, or take another name",
            )

    def _add(self, region: Region) -> None:
        # Another call may have taken the name while this one was in its thread.
        self._require_free(region.name)
        self._regions[region.name] = region

    def _forget_if_done(self, region: Region) -> None:
        # What is behind it goes with the last reference: a thread may still copy for a client
        # that has left.
        if region.leaving and not region.users:
            del self._regions[region.name]


def _unknown(name: str, field: str = "") -> NaiadError:
    return not_found(
        f"no shared memory region '{name}' is registered", field=field, hint="register it first"
    )


class Copy(NamedTuple):
    """Bytes that are to be copied from a region or into it by `run`.

    quick: as in the region.
    """

    size: int
    quick: int
    run: Callable[[], None]


class Lease:
    """The regions that one request uses: its inputs are copied from there, its outputs to there.

    unread, unwritten: what `read` and `write` have to do; empty for most requests.
    """

    def __init__(self, memory: SharedMemory) -> None:
        self.unread: list[Copy] = []
        self.unwritten: list[Copy] = []
        self._memory = memory
        self._used: list[Region] = []
        self._places: dict[str, tuple[Region, int, int]] = {}

    @property
    def unused(self) -> bool:
        """Whether the request names no region."""
        return not self._used

    def input(
        self, parameters: Mapping[str, Any], where: str, at_once: bool = False
    ) -> memoryview | None:
        """The bytes that an input's parameters name; None if they name none.

        They are there after `read`, or now if `at_once`.
        where: the input's path, for errors. Raises INVALID_ARG or NOT_FOUND.
        """
        if _NAMES.isdisjoint(parameters):
            return None
        region, start, size = self._range(parameters, where)
        try:
            buffer = np.empty(size, np.uint8).data
        except MemoryError:
            raise invalid(f"there is no memory for {size} bytes", field=where) from None
        if at_once:
            region.read(start, buffer)
        else:
            self.unread.append(Copy(size, region.quick, partial(region.read, start, buffer)))
        return buffer.toreadonly()

    async def read(self) -> None:
        """Copy the inputs. Raises what `Region.read` raises."""
        copies, self.unread = self.unread, []
        await _carry_out(copies)

    def output(self, name: str, parameters: Mapping[str, Any], where: str) -> bool:
        """Note the place that an output's parameters name, and say whether they do. As `input`."""
        if _NAMES.isdisjoint(parameters):
            return False
        self._places[name] = self._range(parameters, where)
        return True

    def put(self, tensor: Tensor) -> bool:
        """Note an output for `write`; False if it has no place. INVALID_ARG if it does not fit."""
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
        self.unwritten.append(Copy(wire.nbytes, region.quick, partial(region.write, start, wire)))
        return True

    async def write(self) -> None:
        """Copy the outputs. Raises what `Region.write` raises."""
        copies, self.unwritten = self.unwritten, []
        await _carry_out(copies)

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
        return region, offset, size


NO_REGIONS: Final = Lease(SharedMemory(allowed=False))
"""The lease of requests that come while nothing is registered. It never gets to hold anything."""


def _bytes(parameters: Mapping[str, Any], name: str, where: str, default: int | None) -> int:
    value = parameters.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise invalid("must be a number of bytes", field=f'{where}.parameters["{name}"]')
    return value


async def _carry_out(copies: Sequence[Copy]) -> None:
    """Do the copies: here, or in a thread if they take long enough to hold up other requests."""
    if sum(copy.size for copy in copies) <= min(copy.quick for copy in copies):
        _run(copies)
    else:
        await asyncio.to_thread(_run, copies)


def _run(copies: Sequence[Copy]) -> None:
    for copy in copies:
        copy.run()
