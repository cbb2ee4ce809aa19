"""A stand-in for the module pynvml, with its names: a machine without GPUs cannot do better."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any


class Nvml:
    """GPUs that differ in their energy only; a handle is a GPU's uuid."""

    class NVMLError(Exception):
        """What the library raises for what a GPU does not support."""

    def __init__(self, energies: Mapping[str, int | None]) -> None:
        """energies: millijoules by uuid, None for a GPU that does not tell."""
        self.energies = dict(energies)
        self.looks = 0

    def nvmlDeviceGetCount(self) -> int:
        return len(self.energies)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> str:
        return list(self.energies)[number]

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        self.looks += 1
        return 61_500

    def nvmlDeviceGetPowerManagementLimit(self, handle: str) -> int:
        return 300_000

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        return SimpleNamespace(gpu=25, memory=50)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return SimpleNamespace(total=8_000, used=5_000, free=3_000)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        energy = self.energies[handle]
        if energy is None:
            raise self.NVMLError
        return energy
