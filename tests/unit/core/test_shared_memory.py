"""Shared memory regions in the core: ranges, use while unregistered, broken objects."""

import asyncio
import mmap
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from naiad.core.shared_memory import NO_REGIONS, Lease, SharedMemory
from naiad.core.system_memory import SystemRegion
from naiad_backends.api import Tensor
from naiad_backends.errors import Code, NaiadError

PAGE = mmap.ALLOCATIONGRANULARITY
KEY = "/object"
IN = "inputs[0]"


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    """A folder with an object of two pages: the first of zeros, the second of ones."""
    (tmp_path / "object").write_bytes(bytes(PAGE) + b"\1" * PAGE)
    return tmp_path


@pytest.fixture
def memory(objects: Path) -> SharedMemory:
    return SharedMemory(True, objects)


def place(size: int, offset: int = 0, region: str = "r") -> dict[str, object]:
    return {
        "shared_memory_region": region,
        "shared_memory_offset": offset,
        "shared_memory_byte_size": size,
    }


def tensor(size: int) -> Tensor:
    return Tensor.from_numpy("y", np.full(size, 7, np.uint8))


def names(memory: SharedMemory) -> list[str]:
    return [region.name for region in memory.status(SystemRegion)]


async def test_a_region_begins_at_its_offset(memory: SharedMemory) -> None:
    await memory.register("r", KEY, PAGE, PAGE)
    with memory.lease() as lease:
        view = lease.input(place(4), IN)
        await lease.read()
        assert view is not None and view.readonly and bytes(view) == b"\1" * 4
    [region] = memory.status(SystemRegion, "r")
    assert (region.key, region.offset, region.size) == (KEY, PAGE, PAGE)


async def test_inputs_are_copies_and_outputs_are_written(
    memory: SharedMemory, objects: Path
) -> None:
    await memory.register("r", KEY, 0, 2 * PAGE)
    with memory.lease() as lease:
        view = lease.input(place(8, 16), IN)
        await lease.read()
        assert lease.output("y", place(100, 16), "outputs[0]")
        assert lease.put(tensor(4))
        assert not lease.put(Tensor.from_numpy("z", np.zeros(1)))
        assert lease.unwritten and not lease.unread
        await lease.write()
        assert view is not None and bytes(view) == bytes(8)
    assert (objects / "object").read_bytes()[:24] == bytes(16) + b"\7" * 4 + bytes(4)


async def test_an_input_that_is_needed_at_once(memory: SharedMemory) -> None:
    await memory.register("r", KEY, PAGE, PAGE)
    with memory.lease() as lease:
        view = lease.input(place(2), IN, at_once=True)
        assert view is not None and bytes(view) == b"\1\1"
        assert not lease.unread


async def test_large_copies_leave_the_event_loop(objects: Path) -> None:
    size = SystemRegion.quick + 1
    content = np.random.default_rng(1).bytes(2 * size)
    (objects / "large").write_bytes(content)
    memory = SharedMemory(True, objects)
    await memory.register("r", "/large", 0, 2 * size)
    with memory.lease() as lease:
        view = lease.input(place(size), IN)
        reading = asyncio.create_task(lease.read())
        await asyncio.sleep(0)
        assert not reading.done(), "the loop runs on meanwhile"
        await reading
        assert view is not None and view == content[:size]
        lease.output("y", place(size, size), "outputs[0]")
        lease.put(Tensor.from_numpy("y", np.frombuffer(view, np.uint8)))
        await lease.write()
    assert (objects / "large").read_bytes() == content[:size] * 2


async def test_no_parameters_are_no_region(memory: SharedMemory) -> None:
    assert memory.lease() is NO_REGIONS
    await memory.register("r", KEY, 0, PAGE)
    with memory.lease() as lease:
        assert lease.input({"binary_data_size": 4}, IN) is None
        assert not lease.output("y", {"binary_data": True}, "outputs[0]")


@pytest.mark.parametrize(
    ("key", "offset", "size", "code"),
    [
        ("/missing", 0, 1, Code.NOT_FOUND),
        ("/link", 0, 1, Code.NOT_FOUND),
        ("/folder", 0, 1, Code.NOT_FOUND),
        ("", 0, 1, Code.INVALID_ARG),
        ("///", 0, 1, Code.INVALID_ARG),
        ("/..", 0, 1, Code.INVALID_ARG),
        ("/../object", 0, 1, Code.INVALID_ARG),
        ("/folder/object", 0, 1, Code.INVALID_ARG),
        ("/a\0b", 0, 1, Code.INVALID_ARG),
        ("/\ud800", 0, 1, Code.INVALID_ARG),
        ("x" * 256, 0, 1, Code.INVALID_ARG),
        ("/triton_python_backend_shm_region_1", 0, 1, Code.INVALID_ARG),
        ("/empty", 0, 1, Code.INVALID_ARG),
        (KEY, 0, 0, Code.INVALID_ARG),
        (KEY, 0, 2 * PAGE + 1, Code.INVALID_ARG),
        (KEY, 2 * PAGE, 1, Code.INVALID_ARG),
        (KEY, 1, 1, Code.INVALID_ARG),
        (KEY, 2**64 - PAGE, PAGE, Code.INVALID_ARG),
    ],
)
async def test_what_cannot_be_registered(
    memory: SharedMemory, objects: Path, key: str, offset: int, size: int, code: Code
) -> None:
    (objects / "link").symlink_to(objects / "object")
    (objects / "folder").mkdir()
    (objects / "folder" / "object").write_bytes(b"1")
    (objects / "empty").touch()
    with pytest.raises(NaiadError) as caught:
        await memory.register("r", key, offset, size)
    assert caught.value.code is code, str(caught.value)
    assert names(memory) == []


async def test_a_name_is_taken_once(memory: SharedMemory) -> None:
    await memory.register("r", KEY, 0, PAGE)
    with pytest.raises(NaiadError) as caught:
        await memory.register("r", KEY, 0, PAGE)
    assert caught.value.code is Code.ALREADY_EXISTS
    with pytest.raises(NaiadError, match="needs a name"):
        await memory.register("", KEY, 0, PAGE)


async def test_nothing_is_registered_unless_allowed(objects: Path) -> None:
    memory = SharedMemory(False, objects)
    with pytest.raises(NaiadError, match="--allow-client-shm=true") as caught:
        await memory.register("r", KEY, 0, PAGE)
    assert caught.value.code is Code.UNSUPPORTED
    with pytest.raises(NaiadError, match="--allow-client-shm=true"):
        memory.unregister(SystemRegion)
    assert names(memory) == []


@pytest.mark.parametrize(
    "parameters",
    [
        place(1, PAGE),
        place(PAGE + 1),
        place(2, PAGE - 1),
        place(-1),
        place(1, -1),
        place(2**70),
        {"shared_memory_region": "r"},
        {"shared_memory_offset": 0},
        place(1) | {"shared_memory_region": 1},
        place(1) | {"shared_memory_byte_size": True},
        place(1) | {"shared_memory_offset": 0.5},
    ],
)
async def test_ranges_that_are_refused(memory: SharedMemory, parameters: dict[str, object]) -> None:
    await memory.register("r", KEY, 0, PAGE)
    with memory.lease() as lease, pytest.raises(NaiadError) as caught:
        lease.input(parameters, IN)
    assert caught.value.code is Code.INVALID_ARG
    assert caught.value.field.startswith(f"{IN}.parameters")
    memory.unregister(SystemRegion)
    assert names(memory) == []


async def test_unknown_regions(memory: SharedMemory) -> None:
    await memory.register("other", KEY, 0, PAGE)
    memory.unregister(SystemRegion, "r")
    with pytest.raises(NaiadError) as caught:
        memory.status(SystemRegion, "r")
    assert caught.value.code is Code.NOT_FOUND
    with memory.lease() as lease, pytest.raises(NaiadError) as caught:
        lease.input(place(1), IN)
    assert caught.value.code is Code.NOT_FOUND


async def test_an_output_that_does_not_fit(memory: SharedMemory) -> None:
    await memory.register("r", KEY, 0, PAGE)
    with memory.lease() as lease:
        lease.output("y", place(3), "outputs[0]")
        with pytest.raises(NaiadError) as caught:
            lease.put(tensor(4))
    assert caught.value.code is Code.INVALID_ARG


async def test_a_region_in_use_goes_with_its_last_user(memory: SharedMemory) -> None:
    await memory.register("r", KEY, PAGE, PAGE)
    await memory.register("idle", KEY, 0, PAGE)
    first, second = Lease(memory), Lease(memory)
    view = first.input(place(1), IN)
    await first.read()
    second.input(place(1), IN)
    memory.unregister(SystemRegion)
    assert names(memory) == ["r"]
    with memory.lease() as late, pytest.raises(NaiadError) as caught:
        late.input(place(1), IN)
    assert caught.value.code is Code.NOT_FOUND
    first.end()
    first.end()
    assert names(memory) == ["r"]
    second.end()
    assert names(memory) == []
    assert view is not None and view[0] == 1, "a view outlives its region"
    await memory.register("r", KEY, 0, PAGE)


async def test_a_lease_that_nobody_ends(memory: SharedMemory) -> None:
    await memory.register("r", KEY, 0, PAGE)
    lease = memory.lease()
    lease.input(place(1), IN)
    memory.unregister(SystemRegion, "r")
    del lease
    assert names(memory) == []


async def test_an_object_that_shrinks(memory: SharedMemory, objects: Path) -> None:
    await memory.register("r", KEY, 0, 2 * PAGE)
    with memory.lease() as lease:
        lease.output("y", place(4, PAGE), "outputs[0]")
        lease.put(tensor(4))
        os.truncate(objects / "object", PAGE + 2)
        with pytest.raises(NaiadError, match="too small"):
            await lease.write()
        assert (objects / "object").stat().st_size == PAGE + 2, "it did not grow again"
        lease.input(place(4, PAGE), IN)
        with pytest.raises(NaiadError, match="too small") as caught:
            await lease.read()
        assert caught.value.code is Code.INVALID_ARG
        lease.input(place(4), IN)
        await lease.read()


async def test_no_more_open_files(memory: SharedMemory) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    await memory.register("warm", KEY, 0, PAGE)
    memory.unregister(SystemRegion, "warm")
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        with pytest.raises(NaiadError, match="limit of open files") as caught:
            await memory.register("r", KEY, 0, PAGE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caught.value.code is Code.UNAVAILABLE


async def test_a_region_gives_its_memory_back(memory: SharedMemory, objects: Path) -> None:
    def mapped() -> bool:
        return str(objects) in Path("/proc/self/maps").read_text()

    await memory.register("r", KEY, 0, PAGE)
    assert mapped()
    memory.unregister(SystemRegion)
    while mapped():  # the thread that has mapped it lets it go a moment after it has told
        await asyncio.sleep(0.001)
    with pytest.raises(NaiadError):
        await memory.register("r", KEY, 0, 3 * PAGE)
    assert not mapped()
