"""The exposition says what the statistics say, under Triton's names, types and labels."""

import asyncio
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.core.nvml import Nvml
from tests.unit.http.live import Gate, serving, write_models

from naiad.core.custom_metrics import RESERVED
from naiad.core.gpus import Gpus
from naiad.core.host import Host
from naiad.core.latencies import LatencyOptions
from naiad.core.metrics import Metrics
from naiad.core.model import ServedModel
from naiad.core.stats import ModelStatistics
from naiad.repository.histograms import BUCKETS, FIRST_RESPONSE
from naiad_backends.api import Request, Tensor

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


QUEUE = "nv_inference_queue_duration_histogram_us"

DURATIONS = ("queue", "compute_input", "compute_infer", "compute_output")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    repository = write_models(tmp_path)
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
        families = parsed(await Metrics(live.dataplane.statistics).exposition())
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
        text = await Metrics(live.dataplane.statistics, Host(0)).exposition()
        lines = text.decode().splitlines()
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
    assert {name for name, kind in types.items() if kind == "histogram"} == set(BUCKETS)
    assert not [line for line in lines if "_total" in line.replace("memory_total_bytes", "")]
    assert not [line for line in lines if "_created" in line]


async def test_tags_are_labels_with_an_underscore(models: Path) -> None:
    async with serving(models) as live:
        text = await Metrics(live.dataplane.statistics).exposition()
        served = live.registry.find("fixed")
    assert own(served, _team_a='x"\n', _1="") in parsed(text)["nv_inference_count"]


async def test_pending_and_reasons_of_failures(models: Path) -> None:
    async with serving(models) as live:
        gate = Gate()
        served = live.add_gate(gate)
        metrics = Metrics(lambda: [served])

        async def figure(name: str, **labels: str) -> float:
            return parsed(await metrics.exposition())[name][own(served, **labels)]

        request = ones("gate", 1)
        running = [asyncio.ensure_future(live.dataplane.infer(request)) for _ in range(4)]
        await gate.wait()
        assert await figure("nv_inference_pending_request_count") == 3
        running.pop().cancel()
        gate.opened.set()
        await asyncio.gather(*running)
        await served.retire()
        assert await figure("nv_inference_pending_request_count") == 0
        assert await figure("nv_inference_request_success") == 3
        reasons = {"REJECTED": 0, "CANCELED": 1, "BACKEND": 0, "OTHER": 0}
        found = {r: await figure("nv_inference_request_failure", reason=r) for r in reasons}
        assert found == reasons


def buckets(text: bytes, family: str, served: ServedModel) -> dict[str, float]:
    """Upper bound -> samples up to it, and the count and sum under their own names."""
    found = {}
    for sample in families_of(text)[family].samples:
        if own(served) == tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le")):
            found[sample.labels.get("le", sample.name.removeprefix(f"{family}_"))] = sample.value
    return found


def families_of(text: bytes) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


async def test_histograms_count_what_the_statistics_add_up(models: Path) -> None:
    async with serving(models) as live:
        metrics = Metrics(live.dataplane.statistics)
        served = live.registry.find("echo")
        empty = buckets(await metrics.exposition(), FIRST_RESPONSE, served)
        assert empty == {"100": 0, "500": 0, "2000": 0, "5000": 0, "+Inf": 0, "count": 0, "sum": 0}
        for batch in (1, 2, 3):
            await live.dataplane.infer(ones("echo", batch))
        text = await metrics.exposition()
        for family, kind in zip(BUCKETS, ("success", "success", *DURATIONS), strict=True):
            found = buckets(text, family, served)
            total = found.pop("sum")
            unit = 1_000_000 if family == FIRST_RESPONSE else 1_000
            assert total == pytest.approx(getattr(served.stats, kind).ns / unit)
            assert found.pop("count") == found["+Inf"] == 3
            assert [float(bound) for bound in found] == [*BUCKETS[family], float("inf")]
            assert sorted(found.values()) == list(found.values())


async def test_a_model_may_have_its_own_buckets(models: Path) -> None:
    folder = models / "any"
    control = "metric_control { metric_identifier { family: '%s' } histogram_options { %s } }"
    first_control = control % (FIRST_RESPONSE, "buckets: [ 0.5, 1e6 ]")
    queue_control = control % (QUEUE, "buckets: [ 7, inf ]")
    config = folder / "config.pbtxt"
    text = f"{config.read_text()}\nmodel_metrics {{ {first_control} {queue_control} }}"
    config.write_text(text)
    async with serving(models) as live:
        served = live.registry.find("any")
        told = await Metrics(live.dataplane.statistics).exposition()
        first = buckets(told, FIRST_RESPONSE, served)
        assert set(first) == {"0.5", "1000000", "+Inf", "count", "sum"}
        queue = buckets(told, QUEUE, served)
        assert set(queue) == {"7", "+Inf", "count", "sum"}


async def test_summaries_are_there_when_they_are_asked_for(models: Path) -> None:
    options = LatencyOptions(counters=False, histograms=False, summaries=True, quantiles=(0.5, 1))
    async with serving(models) as live:
        other = live.registry.find("echo")
        served = ServedModel(other._loaded, options)
        metrics = Metrics(lambda: [served], latencies=options)
        before = families_of(await metrics.exposition())
        await served.infer(ones("echo", 3))
        after = families_of(await metrics.exposition())
    assert {name for name in after if name.endswith("_us")} == {
        f"nv_inference_{kind}_summary_us" for kind in ("request", *DURATIONS)
    }
    name = "nv_inference_request_summary_us"
    assert before[name].type == "summary"
    values = {s.labels.get("quantile", s.name): s.value for s in before[name].samples}
    assert values.pop(f"{name}_count") == values.pop(f"{name}_sum") == 0
    assert set(values) == {"0.5", "1"} and all(math.isnan(value) for value in values.values())
    values = {s.labels.get("quantile", s.name): s.value for s in after[name].samples}
    microseconds = served.stats.success.ns / 1000
    assert values[f"{name}_count"] == 1 and values[f"{name}_sum"] == pytest.approx(microseconds)
    assert values["0.5"] == values["1"] == pytest.approx(microseconds, rel=0.01, abs=1)


async def test_gpus(models: Path) -> None:
    """Stand-ins for GPUs; tests/gpu has real ones."""
    nvml = Nvml({"GPU-a": 100_000, "GPU-b": None})
    metrics = Metrics(list, gpus=Gpus(0, nvml))
    nvml.energies["GPU-a"] = 102_500
    families = parsed(await metrics.exposition())
    first, second = (("gpu_uuid", "GPU-a"),), (("gpu_uuid", "GPU-b"),)
    assert families["nv_gpu_power_usage"] == {first: 61.5, second: 61.5}
    assert families["nv_gpu_power_limit"][first] == 300
    assert families["nv_gpu_utilization"][first] == 0.25
    assert families["nv_gpu_memory_total_bytes"][first] == 8_000
    assert families["nv_gpu_memory_used_bytes"][first] == 5_000
    assert families["nv_energy_consumption"] == {first: 2.5}


async def test_whatever_is_told_can_be_read(models: Path) -> None:
    """By the library's parser, which puts _total behind the names of counters."""
    async with serving(models) as live:
        options = LatencyOptions(summaries=True)
        metrics = Metrics(
            live.dataplane.statistics, Host(0), Gpus(0, Nvml({"GPU-a": 1})), latencies=options
        )
        text = (await metrics.exposition()).decode()
    seen = set()
    for family in text_string_to_metric_families(text):
        assert family.name not in seen and family.documentation
        seen.add(family.name)
        rows = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in family.samples]
        assert len(rows) == len(set(rows))
        suffixes = {
            "counter": ("_total",),
            "histogram": ("_bucket", "_count", "_sum"),
            "summary": ("", "_count", "_sum"),
        }
        allowed = {family.name + suffix for suffix in suffixes.get(family.type, ("",))}
        assert {name for name, _ in rows} <= allowed
    assert len(seen) == text.count("# TYPE") == text.count("# HELP") > 20


async def test_models_cannot_take_the_servers_names(models: Path) -> None:
    async with serving(models) as live:
        text = await Metrics(live.dataplane.statistics, Host(0)).exposition()
    assert [name for name in parsed(text) if not name.startswith(RESERVED)] == []
