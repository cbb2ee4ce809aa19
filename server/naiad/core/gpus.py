"""The machine's NVIDIA GPUs, as the driver's NVML tells of them. Knows nothing of models."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GpuFigures:
    """One look at a GPU. What it does not tell is None.

    utilization: 0 to 1.  Power in watts, memory in bytes, energy in joules since the server began.
    """

    uuid: str
    power_usage: float | None
    power_limit: float | None
    utilization: float | None
    memory_total_bytes: int | None
    memory_used_bytes: int | None
    energy_consumption: float | None


class Gpus:
    """Looks at the GPUs when asked, but not more often than once an interval. The driver may take
    milliseconds for it, so that the event loop is no place for this."""

    def __init__(self, interval_seconds: float, nvml: Any) -> None:
        """nvml: the module pynvml, initialised."""
        self._interval = interval_seconds
        self._nvml = nvml
        self._gpus = []
        for number in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(number)
            self._gpus.append((nvml.nvmlDeviceGetUUID(handle), handle, self._energy(handle)))
        self._looked = -interval_seconds
        self._figures: Sequence[GpuFigures] = ()

    @classmethod
    def find(cls, interval_seconds: float) -> "Gpus | None":
        """The GPUs of this machine; None without the package nvidia-ml-py or without a driver."""
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            return cls(interval_seconds, pynvml)
        except pynvml.NVMLError as error:
            logger.debug("no metrics of GPUs: %s", error)
            return None

    def figures(self) -> Sequence[GpuFigures]:
        """The latest figures, in the order of the GPUs' numbers."""
        now = time.monotonic()
        if now - self._looked >= self._interval:
            self._looked = now
            self._figures = [self._look(*gpu) for gpu in self._gpus]
        return self._figures

    def _look(self, uuid: str, handle: Any, energy_at_start: float | None) -> GpuFigures:
        nvml = self._nvml
        usage = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        limit = self._ask(nvml.nvmlDeviceGetPowerManagementLimit, handle)
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        energy = self._energy(handle)
        return GpuFigures(
            uuid,
            None if usage is None else usage / 1000,
            None if limit is None else limit / 1000,
            None if rates is None else rates.gpu / 100,
            None if memory is None else memory.total,
            None if memory is None else memory.used,
            None if energy is None or energy_at_start is None else energy - energy_at_start,
        )

    def _energy(self, handle: Any) -> float | None:
        """Joules since the driver was loaded."""
        millijoules = self._ask(self._nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        return None if millijoules is None else millijoules / 1000

    def _ask(self, call: Callable[[Any], Any], handle: Any) -> Any:
        """What a call tells; None for what this GPU does not tell, or not now."""
        try:
            return call(handle)
        except self._nvml.NVMLError:
            return None
