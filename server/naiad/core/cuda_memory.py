"""Regions of a GPU's memory that another process shares by a CUDA IPC handle.

Talks to NVIDIA's driver, libcuda, without any CUDA toolkit: tensors are copied to and from host
memory. Knows nothing of requests. Source: the CUDA driver API, Triton's CUDA shared memory
extension.
"""

import ctypes
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final

import numpy as np

from naiad.core.region import Region
from naiad_backends.errors import internal, invalid, unsupported

logger = logging.getLogger(__name__)

HANDLE_SIZE: Final = 64
"""Bytes of an IPC handle (CU_IPC_HANDLE_SIZE)."""

_LAZY_PEER_ACCESS: Final = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS, the only flag there is
_DEVICE_ORDINAL: Final = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL


class _Handle(ctypes.Structure):
    """CUipcMemHandle, which travels by value."""

    _fields_ = (("reserved", ctypes.c_ubyte * HANDLE_SIZE),)


class CudaRegion(Region):
    """Memory of one GPU, which is `device`."""

    quick: ClassVar[int] = 0  # a copy waits for what the GPU is doing

    def __init__(self, name: str, size: int, device: int, driver: "Driver", pointer: int) -> None:
        """pointer: to opened memory; closed with the last reference to the region."""
        super().__init__(name, size)
        self.device = device
        self._driver = driver
        self._pointer = pointer
        weakref.finalize(self, driver.close, device, pointer)

    def read(self, offset: int, into: memoryview) -> None:
        """See `Region.read`. INTERNAL if the driver fails."""
        with self._told():
            self._driver.read(self.device, self._pointer + offset, into)

    def write(self, offset: int, data: memoryview) -> None:
        """See `Region.write`. INTERNAL if the driver fails."""
        with self._told():
            self._driver.write(self.device, self._pointer + offset, data)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except CudaError as error:
            raise internal(
                f"CUDA shared memory region '{self.name}' cannot be copied: {error}",
                hint="its memory must not be freed while it is registered",
            ) from None


def open_region(driver: "Driver", name: str, handle: bytes, device: int, size: int) -> CudaRegion:
    """The region `name`: the first `size` bytes of what `handle` stands for, on GPU `device`.

    Raises INVALID_ARG for what is no handle of memory there, and for memory that is smaller.
    """
    if len(handle) != HANDLE_SIZE:
        raise invalid(f"has {len(handle)} bytes, not {HANDLE_SIZE}", field="raw_handle")
    if not 0 <= device < driver.devices:
        raise invalid(
            f"there is no GPU {device}",
            field="device_id",
            hint=f"this server has {driver.devices}, counted from 0",
        )
    try:
        pointer = driver.open(device, handle)
        try:
            _check_home(device, size, *driver.home(device, pointer))
        except BaseException:
            driver.close(device, pointer)
            raise
    except CudaError as error:
        raise invalid(
            f"the driver knows no memory behind this handle: {error}",
            field="raw_handle",
            hint="it must come from another process that still has the memory, on the same GPU",
        ) from None
    return CudaRegion(name, size, device, driver, pointer)


def _check_home(device: int, size: int, home: int, room: int) -> None:
    if home != device:
        raise invalid(f"the memory lies on GPU {home}, not {device}", field="device_id")
    if not 0 < size <= room:
        raise invalid(
            f"{size} bytes are not inside the memory, which has {room}", field="byte_size"
        )


def _libcuda() -> Any:
    return ctypes.CDLL("libcuda.so.1")


class CudaError(Exception):
    """The driver refused a call; the text is the name of its error."""


class Driver:
    """NVIDIA's driver and the contexts that this process holds, one for each GPU. On any thread."""

    def __init__(self, library: Any) -> None:
        """library: has the driver's functions. Raises CudaError unless it finds a GPU."""
        self._library = library
        self._contexts: dict[int, ctypes.c_void_p] = {}
        self._lock = threading.Lock()
        self._call("cuInit", ctypes.c_uint(0))
        count = ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        self.devices = count.value

    @classmethod
    def load(cls, library: Callable[[], Any] = _libcuda) -> "Driver":
        """The driver of this machine; takes up to seconds. UNSUPPORTED if there is none."""
        try:
            return cls(library())
        except (OSError, CudaError) as error:
            raise unsupported(
                f"this server has no GPU support: {error}", hint="use system shared memory"
            ) from None

    def open(self, device: int, handle: bytes) -> int:
        """The address of memory on `device` that a handle of HANDLE_SIZE bytes stands for."""
        pointer = ctypes.c_uint64()
        with self._on(device):
            self._call(
                "cuIpcOpenMemHandle_v2",
                ctypes.byref(pointer),
                _Handle.from_buffer_copy(handle),
                ctypes.c_uint(_LAZY_PEER_ACCESS),
            )
        return pointer.value

    def close(self, device: int, pointer: int) -> None:
        """Give opened memory back. A failure is logged: nobody could do anything about it."""
        try:
            with self._on(device):
                self._call("cuIpcCloseMemHandle", ctypes.c_uint64(pointer))
        except CudaError as error:
            logger.warning("CUDA memory at %#x cannot be closed: %s", pointer, error)

    def home(self, device: int, pointer: int) -> tuple[int, int]:
        """The GPU on which opened memory lies, and the bytes from `pointer` to its end."""
        ordinal = ctypes.c_int()
        base, size = ctypes.c_uint64(), ctypes.c_size_t()
        address = ctypes.c_uint64(pointer)
        with self._on(device):
            self._call(
                "cuPointerGetAttribute",
                ctypes.byref(ordinal),
                ctypes.c_int(_DEVICE_ORDINAL),
                address,
            )
            self._call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), address)
        return ordinal.value, base.value + size.value - pointer

    def read(self, device: int, pointer: int, into: memoryview) -> None:
        """Copy from the GPU until `into` is full."""
        with self._on(device):
            self._call(
                "cuMemcpyDtoH_v2",
                _address(into),
                ctypes.c_uint64(pointer),
                ctypes.c_size_t(len(into)),
            )

    def write(self, device: int, pointer: int, data: memoryview) -> None:
        """Copy `data` to the GPU, and wait until it is there."""
        with self._on(device):
            self._call(
                "cuMemcpyHtoD_v2",
                ctypes.c_uint64(pointer),
                _address(data),
                ctypes.c_size_t(len(data)),
            )
            # The copy returns when the data has left `data`, not when others can see it.
            self._call("cuStreamSynchronize", ctypes.c_void_p())

    @contextmanager
    def _on(self, device: int) -> Iterator[None]:
        """Calls of this thread go to the GPU meanwhile."""
        with self._lock:
            context = self._contexts.get(device)
            if context is None:
                context = ctypes.c_void_p()
                self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), ctypes.c_int(device))
                self._contexts[device] = context
        self._call("cuCtxPushCurrent_v2", context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            name = ctypes.c_char_p()
            self._library.cuGetErrorName(ctypes.c_int(code), ctypes.byref(name))
            raise CudaError((name.value or b"CUDA error %d" % code).decode())


def _address(data: memoryview) -> ctypes.c_void_p:
    return ctypes.c_void_p(np.frombuffer(data, np.uint8).ctypes.data)
