"""Figures of GPUs from a stand-in for NVML; tests/gpu asks real ones."""

import pynvml
import pytest
from tests.unit.core.nvml import Nvml

from naiad.core.gpus import Gpus


def test_within_an_interval_the_driver_is_not_asked_again() -> None:
    nvml = Nvml({"GPU-a": 1, "GPU-b": 2})
    gpus = Gpus(3600, nvml)
    first = gpus.figures()
    assert [gpu.uuid for gpu in first] == ["GPU-a", "GPU-b"]
    assert gpus.figures() is first and nvml.looks == 2


def test_the_stand_in_has_the_librarys_names() -> None:
    names = [name for name in dir(Nvml) if name.startswith("nvml")]
    assert names and all(callable(getattr(pynvml, name)) for name in names)


def test_without_a_driver_there_are_no_gpus() -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert Gpus.find(0) is None
    else:
        pytest.skip("this machine has a driver")
