"""Metrics of real GPUs agree with what the driver itself says. Needs nvidia-ml-py and a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e import graphs
from tests.e2e.process import ServerProcess, serving
from tests.e2e.test_metrics import fetch

pynvml = pytest.importorskip("pynvml")


@pytest.fixture(scope="module")
def gpus() -> Iterator[dict[str, Any]]:
    """The driver's handles, by uuid."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        pytest.skip(f"no GPU: {error}")
    handles = [
        pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())
    ]
    yield {pynvml.nvmlDeviceGetUUID(handle): handle for handle in handles}
    pynvml.nvmlShutdown()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, gpus: dict[str, Any]) -> Iterator[Any]:
    repository = tmp_path_factory.mktemp("repository")
    graphs.write_model(repository, "identity", config=graphs.IDENTITY)
    log = tmp_path_factory.mktemp("log")
    with serving(log, repository, flags=["--metrics-interval-ms=0"]) as running:
        yield running


def figures(server: ServerProcess) -> dict[str, dict[str, float]]:
    """Family -> uuid -> value, for the families of GPUs."""
    return {
        family.name: {sample.labels["gpu_uuid"]: sample.value for sample in family.samples}
        for family in text_string_to_metric_families(fetch(server, "/metrics")[2])
        if family.name.startswith(("nv_gpu_", "nv_energy_"))
    }


def test_every_gpu_has_every_figure_that_its_driver_tells(
    server: ServerProcess, gpus: dict[str, Any]
) -> None:
    found = figures(server)
    calls = {
        "nv_gpu_power_usage": pynvml.nvmlDeviceGetPowerUsage,
        "nv_gpu_power_limit": pynvml.nvmlDeviceGetPowerManagementLimit,
        "nv_gpu_utilization": pynvml.nvmlDeviceGetUtilizationRates,
        "nv_gpu_memory_total_bytes": pynvml.nvmlDeviceGetMemoryInfo,
        "nv_gpu_memory_used_bytes": pynvml.nvmlDeviceGetMemoryInfo,
        "nv_energy_consumption": pynvml.nvmlDeviceGetTotalEnergyConsumption,
    }
    assert set(found) == set(calls)
    for family, call in calls.items():
        assert set(found[family]) == {uuid for uuid, handle in gpus.items() if told(call, handle)}


def told(call: Any, handle: Any) -> bool:
    try:
        call(handle)
    except pynvml.NVMLError:
        return False
    return True


def test_figures_lie_where_they_can(server: ServerProcess, gpus: dict[str, Any]) -> None:
    found = figures(server)
    for uuid, handle in gpus.items():
        total = pynvml.nvmlDeviceGetMemoryInfo(handle).total
        assert found["nv_gpu_memory_total_bytes"][uuid] == total
        assert 0 <= found["nv_gpu_memory_used_bytes"][uuid] <= total
        assert 0 <= found["nv_gpu_utilization"].get(uuid, 0) <= 1
        limit = found["nv_gpu_power_limit"].get(uuid)
        if limit is not None:
            assert limit == pynvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000
            assert 0 < found["nv_gpu_power_usage"][uuid] < 1.5 * limit


def test_energy_counts_from_the_servers_start(server: ServerProcess, gpus: dict[str, Any]) -> None:
    before, after = (figures(server)["nv_energy_consumption"] for _ in range(2))
    for uuid, joules in after.items():
        assert 0 <= before[uuid] <= joules
        since_the_driver = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpus[uuid]) / 1000
        assert joules < since_the_driver
