"""Triton's metrics, made from the statistics of the served models at the moment of a scrape.

Requests pay nothing for them: nothing is counted here. Knows nothing of HTTP.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from prometheus_client import Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from naiad.core.host import Host
from naiad.core.model import ServedModel
from naiad.core.stats import ModelStatistics

CONTENT_TYPE = "text/plain; charset=utf-8"
"""Of the exposition; Triton's."""


class _Counter(NamedTuple):
    name: str
    text: str
    value: Callable[[ModelStatistics], int]


_COUNTERS: Sequence[_Counter] = (
    _Counter(
        "nv_inference_request_success",
        "Requests that were answered, by model",
        lambda stats: stats.success.count,
    ),
    _Counter(
        "nv_inference_count",
        "Inferences by model: a request with a batch of n counts n",
        lambda stats: stats.inference_count,
    ),
    _Counter(
        "nv_inference_exec_count",
        "Executions by model: a batch of several requests counts once",
        lambda stats: stats.execution_count,
    ),
    _Counter(
        "nv_inference_request_duration_us",
        "Microseconds that answered requests took from end to end, added up",
        lambda stats: stats.success.ns // 1000,
    ),
    _Counter(
        "nv_inference_queue_duration_us",
        "Microseconds that answered requests waited for an instance, added up",
        lambda stats: stats.queue.ns // 1000,
    ),
    _Counter(
        "nv_inference_compute_input_duration_us",
        "Microseconds spent on the inputs of answered requests, added up",
        lambda stats: stats.compute_input.ns // 1000,
    ),
    _Counter(
        "nv_inference_compute_infer_duration_us",
        "Microseconds spent in the framework for answered requests, added up",
        lambda stats: stats.compute_infer.ns // 1000,
    ),
    _Counter(
        "nv_inference_compute_output_duration_us",
        "Microseconds spent on the outputs of answered requests, added up",
        lambda stats: stats.compute_output.ns // 1000,
    ),
)


class Metrics(Collector):
    """All families, anew at each scrape. Belongs to the event loop, as the statistics do."""

    def __init__(self, served: Callable[[], Iterable[ServedModel]], host: Host) -> None:
        """served: the versions that take requests now."""
        self._served = served
        self._host = host

    def collect(self) -> Iterator[Metric]:
        """The families in the order of the exposition."""
        models = [(served, _labels(served)) for served in self._served()]
        for counter in _COUNTERS:
            family = Metric(counter.name, counter.text, "counter")
            for served, labels in models:
                family.add_sample(counter.name, labels, counter.value(served.stats))
            yield family
        yield _failures(models)
        yield _gauge(
            "nv_inference_pending_request_count",
            "Requests that wait for an instance, by model",
            [(labels, served.pending) for served, labels in models],
        )
        yield _gauge(
            "nv_model_load_duration_secs",
            "Seconds that the load of the model took",
            [(labels, served.load_seconds) for served, labels in models],
        )
        yield from self._machine()

    def _machine(self) -> Iterator[Metric]:
        figures = self._host.figures()
        if figures is None:
            return
        yield GaugeMetricFamily(
            "nv_cpu_utilization",
            "Share of the cores' time in use [0.0 - 1.0]",
            figures.cpu_utilization,
        )
        yield GaugeMetricFamily(
            "nv_cpu_memory_total_bytes",
            "Memory of the machine, in bytes",
            figures.memory_total_bytes,
        )
        yield GaugeMetricFamily(
            "nv_cpu_memory_used_bytes",
            "Memory in use on the machine, in bytes",
            figures.memory_used_bytes,
        )

    def exposition(self) -> bytes:
        """All families in Prometheus' text format."""
        # The library's counters end in _total, Triton's do not. Samples are named as they were
        # added; only the two lines above them need their names back.
        return _SUFFIXED.sub(rb"\1 ", generate_latest(self))


_SUFFIXED = re.compile(rb"^(# (?:HELP|TYPE) nv_\w+)_total ", re.MULTILINE)


def _failures(models: Iterable[tuple[ServedModel, dict[str, str]]]) -> Metric:
    family = Metric(
        "nv_inference_request_failure", "Requests that failed, by model and reason", "counter"
    )
    for served, labels in models:
        for reason, count in served.stats.failures.items():
            family.add_sample(family.name, {**labels, "reason": reason.value}, count)
    return family


def _gauge(name: str, text: str, rows: Iterable[tuple[dict[str, str], float]]) -> Metric:
    family = Metric(name, text, "gauge")
    for labels, value in rows:
        family.add_sample(name, labels, value)
    return family


def _labels(served: ServedModel) -> dict[str, str]:
    """Model, version, and the tags of the configuration with a leading underscore."""
    tags = {
        "_" + re.sub(r"[^0-9A-Za-z_]", "_", tag): value
        for tag, value in served.config.metric_tags.items()
    }
    return {"model": served.name, "version": served.version, **tags}
