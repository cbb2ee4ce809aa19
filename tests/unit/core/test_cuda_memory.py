"""CUDA regions over a stand-in for NVIDIA's driver; tests/gpu has the same with the real one."""

import asyncio
import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from naiad.core.cuda_memory import CudaRegion, Driver
from naiad.core.shared_memory import SharedMemory
from naiad.core.system_memory import SystemRegion
from naiad_backends.api import Tensor
from naiad_backends.errors import Code, NaiadError

HANDLE = b"\1" * 64
SIZE = 4096
IN = "inputs[0]"


class Library:
    """Does what libcuda does with two GPUs, one of which has SIZE bytes that HANDLE stands for."""

    def __init__(self, init: int = 0) -> None:
        self.memory = ctypes.create_string_buffer(b"\2" * SIZE, SIZE)
        self.opened: list[int] = []
        self.context = 0
        self.failure = 0
        self.device = 0
        self._init = init

    def cuInit(self, flags: Any) -> int:
        return self._init

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def cuGetErrorName(self, code: Any, name: Any) -> int:
        known = {1: b"CUDA_ERROR_INVALID_VALUE", 100: b"CUDA_ERROR_NO_DEVICE"}
        name._obj.value = known.get(code.value)
        return 0 if name._obj.value else 1

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:
        context._obj.value = 7 + device.value
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:
        assert self.context == 0
        self.context = context.value
        return 0

    def cuCtxPopCurrent_v2(self, context: Any) -> int:
        self.context = 0
        return 0

    def cuIpcOpenMemHandle_v2(self, pointer: Any, handle: Any, flags: Any) -> int:
        assert self.context in (7, 8) and flags.value == 1
        if bytes(handle) != HANDLE:
            return 1
        pointer._obj.value = ctypes.addressof(self.memory)
        self.opened.append(pointer._obj.value)
        return 0

    def cuIpcCloseMemHandle(self, pointer: Any) -> int:
        assert self.context == 7
        self.opened.remove(pointer.value)
        return self.failure

    def cuPointerGetAttribute(self, value: Any, attribute: Any, pointer: Any) -> int:
        assert attribute.value == 9
        value._obj.value = self.device
        return self.failure

    def cuMemGetAddressRange_v2(self, base: Any, size: Any, pointer: Any) -> int:
        base._obj.value, size._obj.value = ctypes.addressof(self.memory), SIZE
        return 0

    def cuMemcpyDtoH_v2(self, target: Any, source: Any, size: Any) -> int:
        return self._copy(target, source, size)

    def cuMemcpyHtoD_v2(self, target: Any, source: Any, size: Any) -> int:
        return self._copy(target, source, size)

    def cuStreamSynchronize(self, stream: Any) -> int:
        assert stream.value is None
        return 0

    def _copy(self, target: Any, source: Any, size: Any) -> int:
        assert self.context == 7
        if not self.failure:
            ctypes.memmove(target.value, source.value, size.value)
        return self.failure


@pytest.fixture
def library() -> Library:
    return Library()


@pytest.fixture
def memory(library: Library) -> SharedMemory:
    return SharedMemory(True, load_driver=lambda: Driver(library))


async def closed(library: Library) -> None:
    """Wait for the thread that has copied: it drops its region a moment after it has told."""
    while library.opened:
        await asyncio.sleep(0.001)


def place(size: int, offset: int = 0) -> dict[str, object]:
    return {
        "shared_memory_region": "g",
        "shared_memory_offset": offset,
        "shared_memory_byte_size": size,
    }


async def test_inputs_and_outputs(memory: SharedMemory, library: Library) -> None:
    await memory.register_cuda("g", HANDLE, 0, SIZE)
    with memory.lease() as lease:
        view = lease.input(place(4, SIZE - 4), IN)
        empty = lease.input(place(0), "inputs[1]")
        await lease.read()
        assert view is not None and bytes(view) == b"\2" * 4
        assert empty is not None and bytes(empty) == b""
        lease.output("y", place(8, 16), "outputs[0]")
        lease.put(Tensor.from_numpy("y", np.full(3, 9, np.uint8)))
        await lease.write()
    assert library.memory.raw[:24] == b"\2" * 16 + b"\x09" * 3 + b"\2" * 5
    [region] = memory.status(CudaRegion)
    assert (region.name, region.device, region.size) == ("g", 0, SIZE)


async def test_one_name_space(memory: SharedMemory, library: Library) -> None:
    await memory.register_cuda("g", HANDLE, 0, SIZE)
    with pytest.raises(NaiadError) as caught:
        await memory.register("g", "/object", 0, 1)
    assert caught.value.code is Code.ALREADY_EXISTS
    with pytest.raises(NaiadError) as caught:
        await memory.register_cuda("g", HANDLE, 0, SIZE)
    assert caught.value.code is Code.ALREADY_EXISTS
    with pytest.raises(NaiadError) as caught:
        memory.status(SystemRegion, "g")
    assert caught.value.code is Code.NOT_FOUND
    memory.unregister(SystemRegion, "g")
    memory.unregister(SystemRegion)
    assert len(memory.status(CudaRegion, "g")) == len(library.opened) == 1


async def test_a_region_in_use_goes_with_its_last_user(
    memory: SharedMemory, library: Library
) -> None:
    await memory.register_cuda("g", HANDLE, 0, SIZE)
    with memory.lease() as lease:
        lease.input(place(4), IN)
        memory.unregister(CudaRegion, "g")
        assert memory.status(CudaRegion) and library.opened
        await lease.read()
    assert not memory.status(CudaRegion)
    await closed(library)


@pytest.mark.parametrize(
    ("handle", "device", "size", "field"),
    [
        (HANDLE[:63], 0, SIZE, "raw_handle"),
        (HANDLE + b"\1", 0, SIZE, "raw_handle"),
        (b"", 0, SIZE, "raw_handle"),
        (bytes(64), 0, SIZE, "raw_handle"),
        (HANDLE, 2, SIZE, "device_id"),
        (HANDLE, -1, SIZE, "device_id"),
        (HANDLE, 0, SIZE + 1, "byte_size"),
        (HANDLE, 0, 0, "byte_size"),
    ],
    ids=range(8),
)
async def test_what_cannot_be_registered(
    memory: SharedMemory, library: Library, handle: bytes, device: int, size: int, field: str
) -> None:
    with pytest.raises(NaiadError) as caught:
        await memory.register_cuda("g", handle, device, size)
    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARG, field)
    assert not memory.status(CudaRegion)
    assert not library.opened


async def test_memory_of_another_gpu(memory: SharedMemory, library: Library) -> None:
    library.device = 1
    with pytest.raises(NaiadError, match="lies on GPU 1") as caught:
        await memory.register_cuda("g", HANDLE, 0, SIZE)
    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARG, "device_id")


async def test_a_driver_that_fails_later(
    memory: SharedMemory, library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    await memory.register_cuda("g", HANDLE, 0, SIZE)
    library.failure = 999
    with memory.lease() as lease:
        lease.input(place(4), IN)
        with pytest.raises(NaiadError, match="CUDA error 999") as caught:
            await lease.read()
        assert caught.value.code is Code.INTERNAL
    del caught
    memory.unregister(CudaRegion)
    await closed(library)
    assert "cannot be closed" in caplog.text


def missing() -> Library:
    raise OSError("libcuda.so.1: no such file")


@pytest.mark.parametrize(
    ("library", "reason"), [(missing, "no such file"), (lambda: Library(100), "NO_DEVICE")]
)
async def test_without_a_gpu(library: Callable[[], Library], reason: str) -> None:
    memory = SharedMemory(True, load_driver=lambda: Driver.load(library))
    with pytest.raises(NaiadError, match=f"no GPU support: .*{reason}") as caught:
        await memory.register_cuda("g", HANDLE, 0, SIZE)
    assert caught.value.code is Code.UNSUPPORTED
