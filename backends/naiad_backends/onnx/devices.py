"""What this process may compute on: CPU cores and CUDA devices. Knows nothing of models."""

import ctypes
import os


def cpu_cores() -> int:
    """Number of cores that the process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cuda_devices() -> list[int]:
    """Numbers of the GPUs that NVIDIA's driver shows to this process; empty without a driver.

    Source: CUDA driver API, `cuInit` and `cuDeviceGetCount`; neither takes memory on a device.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    return list(range(count.value))
