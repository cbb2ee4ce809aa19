"""The exposition says what the statistics say, under Triton's names, types and labels."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.http.live import Gate, serving, write_models

from naiad.core.host import Host
from naiad.core.metrics import Metrics
from naiad.core.model import ServedModel
from naiad.core.stats import ModelStatistics
from naiad_backends.api import Request, Tensor

NOWHERE = Path("nowhere")

COUNTERS: Mapping[str, Callable[[ModelStatistics], int]] = {
    "nv_inference_request_success": lambda stats: stats.success.count,
    "nv_inference_count": lambda stats: stats.inference_count,
    "nv_inference_exec_count": lambda stats: stats.execution_count,
    "nv_inference_request_duration_us": lambda stats: stats.success.ns // 1000,
    "nv_inference_queue_duration_us": lambda stats: stats.queue.ns // 1000,
    "nv_inference_compute_input_duration_us": lambda stats: stats.compute_input.ns // 1000,
    "nv_inference_compute_infer_duration_us": lambda stats: stats.compute_infer.ns // 1000,
    "nv_inference_compute_output_duration_us": lambda stats: stats.compute_output.ns // 1000,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = write_models(tmp_path_factory.mktemp("models"))
    config = repository / "fixed" / "config.pbtxt"
    tags = 'metric_tags [ { key: "team-a" value: "x\\"\\n" }, { key: "1" value: "" } ]'
    config.write_text(f"{config.read_text()}\n{tags}")
    return repository


def parsed(text: bytes) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Family -> labels, sorted -> value. The parser puts _total behind counters' names."""
    return {
        family.name: {tuple(sorted(s.labels.items())): s.value for s in family.samples}
        for family in text_string_to_metric_families(text.decode())
    }


def own(served: ServedModel, **more: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({"model": served.name, "version": served.version, **more}.items()))


def ones(model: str, batch: int) -> Request:
    array = np.ones((batch, 2), np.float32)
    return Request(model, inputs={"INPUT0": Tensor.from_numpy("INPUT0", array)})


async def test_every_family_agrees_with_the_statistics(models: Path) -> None:
    async with serving(models) as live:
        request = ones("echo", 3)
        for _ in range(4):
            await live.dataplane.infer(request)
        served = live.registry.find("echo")
        families = parsed(Metrics(live.dataplane.statistics, Host(0, NOWHERE)).exposition())
        stats = served.stats
        assert families["nv_inference_count"][own(served)] == 12
        assert {n: families[n][own(served)] for n in COUNTERS} == {
            name: value(stats) for name, value in COUNTERS.items()
        }
        loads = families["nv_model_load_duration_secs"]
        assert loads[own(served)] == served.load_seconds > 0
        assert len(loads) == len(live.dataplane.statistics())


async def test_names_and_types_are_tritons(models: Path) -> None:
    async with serving(models) as live:
        lines = Metrics(live.dataplane.statistics, Host(0)).exposition().decode().splitlines()
    types = dict(line.split()[2:] for line in lines if line.startswith("# TYPE"))
    assert {name for name, kind in types.items() if kind == "counter"} == {
        *COUNTERS,
        "nv_inference_request_failure",
    }
    assert {name for name, kind in types.items() if kind == "gauge"} == {
        "nv_inference_pending_request_count",
        "nv_model_load_duration_secs",
        "nv_cpu_utilization",
        "nv_cpu_memory_total_bytes",
        "nv_cpu_memory_used_bytes",
    }
    assert 'nv_inference_request_success{model="echo",version="1"} 0.0' in lines
    assert not [line for line in lines if "_total" in line.replace("memory_total_bytes", "")]
    assert not [line for line in lines if "_created" in line]


async def test_tags_are_labels_with_an_underscore(models: Path) -> None:
    async with serving(models) as live:
        text = Metrics(live.dataplane.statistics, Host(0, NOWHERE)).exposition()
        served = live.registry.find("fixed")
    assert own(served, _team_a='x"\n', _1="") in parsed(text)["nv_inference_count"]


async def test_pending_and_reasons_of_failures(models: Path) -> None:
    async with serving(models) as live:
        gate = Gate()
        served = live.add_gate(gate)
        metrics = Metrics(lambda: [served], Host(0, NOWHERE))

        def figure(name: str, **labels: str) -> float:
            return parsed(metrics.exposition())[name][own(served, **labels)]

        request = ones("gate", 1)
        running = [asyncio.ensure_future(live.dataplane.infer(request)) for _ in range(4)]
        await gate.wait()
        assert figure("nv_inference_pending_request_count") == 3
        running.pop().cancel()
        gate.opened.set()
        await asyncio.gather(*running)
        await served.retire()
        assert figure("nv_inference_pending_request_count") == 0
        assert figure("nv_inference_request_success") == 3
        reasons = {"REJECTED": 0, "CANCELED": 1, "BACKEND": 0, "OTHER": 0}
        found = {r: figure("nv_inference_request_failure", reason=r) for r in reasons}
        assert found == reasons
