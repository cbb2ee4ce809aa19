"""Triton's metrics, made from the statistics of the served models at the moment of a scrape, and
behind them what models have made.

Nothing is counted here. Knows nothing of HTTP.
"""

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import attrgetter

from prometheus_client import Metric, generate_latest
from prometheus_client.registry import Collector

from naiad.core.gpus import GpuFigures, Gpus
from naiad.core.host import Host
from naiad.core.latencies import DEFAULT_LATENCIES, HIT, MISS, LatencyOptions
from naiad.core.model import ServedModel
from naiad.core.stats import Duration, ModelStatistics
from naiad.repository.histograms import BUCKETS, FIRST_RESPONSE

CONTENT_TYPE = "text/plain; charset=utf-8"
"""Of the exposition; Triton's."""

_COUNTS: Mapping[str, tuple[str, Callable[[ModelStatistics], int]]] = {
    "nv_inference_request_success": (
        "Requests that were answered, by model",
        lambda stats: stats.success.count,
    ),
    "nv_inference_count": (
        "Inferences by model: a request with a batch of n counts n",
        lambda stats: stats.inference_count,
    ),
    "nv_inference_exec_count": (
        "Executions by model: a batch of several requests counts once",
        lambda stats: stats.execution_count,
    ),
}

_DURATIONS: Mapping[str, tuple[str, Callable[[ModelStatistics], Duration]]] = {
    "request": ("answered requests took from end to end", attrgetter("success")),
    "queue": ("answered requests waited for an instance", attrgetter("queue")),
    "compute_input": ("the inputs of answered requests took", attrgetter("compute_input")),
    "compute_infer": ("the framework took for answered requests", attrgetter("compute_infer")),
    "compute_output": ("the outputs of answered requests took", attrgetter("compute_output")),
}
"""What each duration of a request is, and its sum; in the order in which histograms and summaries
take them."""

_CACHE: Mapping[str, tuple[str, Callable[[ModelStatistics], Duration], int]] = {
    "hit": ("answered from the cache: the search took", attrgetter("cache_hit"), HIT),
    "miss": ("not in the cache: search and insertion took", attrgetter("cache_miss"), MISS),
}
"""What became of a request to a model with a cache, what it took, and its kind in summaries."""

_GPUS: Mapping[str, str] = {
    "power_usage": "Power that the GPU draws, in watts",
    "power_limit": "Power that the GPU may draw, in watts",
    "utilization": "Share of the time in which the GPU was at work [0.0 - 1.0]",
    "memory_total_bytes": "Memory of the GPU, in bytes",
    "memory_used_bytes": "Memory of the GPU that is in use, in bytes",
}
"""Figure -> its text; the family is `nv_gpu_` and the figure."""

_Models = Sequence[tuple[ServedModel, dict[str, str]]]


class Metrics:
    """All families, anew at each scrape. Belongs to the event loop, as the statistics do."""

    def __init__(
        self,
        served: Callable[[], Iterable[ServedModel]],
        host: Host | None = None,
        gpus: Gpus | None = None,
        latencies: LatencyOptions = DEFAULT_LATENCIES,
        custom: Callable[[], Iterable[Metric]] = tuple,
    ) -> None:
        """served: the versions that take requests now.  host, gpus: None for no figures of them.
        latencies: the same that the models keep.  custom: the families that models have made."""
        self._served = served
        self._host = host
        self._gpus = gpus
        self._latencies = latencies
        self._custom = custom
        self._looking = asyncio.Lock()

    async def exposition(self) -> bytes:
        """All families in Prometheus' text format.

        The driver of the GPUs is asked, and the text written, beside the event loop; between two
        families it goes on, too, so that a scrape of many models holds up no request.
        """
        gpus: Sequence[GpuFigures] = ()
        if self._gpus is not None:
            async with self._looking:
                gpus = await asyncio.to_thread(self._gpus.figures)
        families: list[Metric] = []
        for family in chain(self._models(), self._machine(), _gpu(gpus), self._custom()):
            families.append(family)
            await asyncio.sleep(0)
        return await asyncio.to_thread(_text, families)

    def _models(self) -> Iterator[Metric]:
        models = [(served, _labels(served)) for served in self._served()]
        for name, (text, count) in _COUNTS.items():
            yield _family(name, text, "counter", [(ls, count(m.stats)) for m, ls in models])
        yield _failures(models)
        if self._latencies.counters:
            for kind, (text, duration) in _DURATIONS.items():
                yield _family(
                    f"nv_inference_{kind}_duration_us",
                    f"Microseconds that {text}, added up",
                    "counter",
                    [(labels, duration(served.stats).ns // 1000) for served, labels in models],
                )
        if self._latencies.histograms:
            yield from _histograms(models)
        if self._latencies.summaries:
            yield from _summaries(models, self._latencies.quantiles)
        if any(served.cached for served, _ in models):
            yield from self._cache([(m, labels) for m, labels in models if m.cached])
        if any(served.readiness.remote for served, _ in models):
            yield from self._instances([(m, labels) for m, labels in models if m.readiness.remote])
        yield _family(
            "nv_inference_pending_request_count",
            "Requests that wait for an instance, by model",
            "gauge",
            [(labels, served.pending) for served, labels in models],
        )
        yield _family(
            "nv_model_load_duration_secs",
            "Seconds that the load of the model took",
            "gauge",
            [(labels, served.load_seconds) for served, labels in models],
        )

    def _instances(self, models: _Models) -> Iterator[Metric]:
        """Families of models whose instances may die alone; Triton has none of these."""
        yield _family(
            "naiad_instances",
            "Instances that the model should have",
            "gauge",
            [(labels, served.readiness.count) for served, labels in models],
        )
        yield _family(
            "naiad_instances_ready",
            "Instances that can serve now",
            "gauge",
            [(labels, served.readiness.live) for served, labels in models],
        )
        yield _family(
            "naiad_instance_restarts",
            "How often instances were begun anew because they had died",
            "counter",
            [(labels, served.readiness.restarts) for served, labels in models],
        )

    def _cache(self, models: _Models) -> Iterator[Metric]:
        """Families of models that have one."""
        quantiles = self._latencies.quantiles
        for kind, (text, duration, number) in _CACHE.items():
            plural = "hits" if kind == "hit" else "misses"
            yield _family(
                f"nv_cache_num_{plural}_per_model",
                f"Requests that were {text.partition(':')[0]}, by model",
                "counter",
                [(labels, duration(served.stats).count) for served, labels in models],
            )
            if self._latencies.counters:
                yield _family(
                    f"nv_cache_{kind}_duration_per_model",
                    f"Microseconds for requests {text}, added up",
                    "counter",
                    [(labels, duration(served.stats).ns // 1000) for served, labels in models],
                )
            if self._latencies.summaries:
                name, text = f"nv_cache_{kind}_summary_per_model", f"for requests {text}"
                yield _summary(name, text, duration, number, models, quantiles)

    def _machine(self) -> Iterator[Metric]:
        figures = None if self._host is None else self._host.figures()
        if figures is None:
            return
        for name, text, value in (
            ("utilization", "Share of the cores' time in use [0.0 - 1.0]", figures.cpu_utilization),
            ("memory_total_bytes", "Memory of the machine, in bytes", figures.memory_total_bytes),
            (
                "memory_used_bytes",
                "Memory in use on the machine, in bytes",
                figures.memory_used_bytes,
            ),
        ):
            yield _family(f"nv_cpu_{name}", text, "gauge", [({}, value)])


def _family(
    name: str, text: str, kind: str, rows: Iterable[tuple[dict[str, str], float | None]]
) -> Metric:
    """A family with a sample for each row that has a value."""
    family = Metric(name, text, kind)
    for labels, value in rows:
        if value is not None:
            family.add_sample(name, labels, value)
    return family


def _failures(models: _Models) -> Metric:
    return _family(
        "nv_inference_request_failure",
        "Requests that failed, by model and reason",
        "counter",
        [
            ({**labels, "reason": reason.value}, count)
            for served, labels in models
            for reason, count in served.stats.failures.items()
        ],
    )


def _histograms(models: _Models) -> Iterator[Metric]:
    first = "Milliseconds until the first response to an answered request was there"
    texts = [first, *(f"Microseconds that {text}" for text, _ in _DURATIONS.values())]
    for name, text in zip(BUCKETS, texts, strict=True):
        family = Metric(name, text, "histogram")
        for served, labels in models:
            _add_histogram(family, labels, served.stats)
        yield family


def _add_histogram(family: Metric, labels: dict[str, str], stats: ModelStatistics) -> None:
    name = family.name
    histograms = stats.histograms
    if histograms is None:
        return
    if name == FIRST_RESPONSE:
        total = histograms.first_response_ns / 1_000_000
    else:
        kind = name.removeprefix("nv_inference_").removesuffix("_duration_histogram_us")
        total = _DURATIONS[kind][1](stats).ns / 1000
    histogram = histograms.families[name]
    counts = histogram.cumulative()
    for bound, count in zip(histogram.bounds, counts, strict=False):
        family.add_sample(f"{name}_bucket", {**labels, "le": f"{bound:.15g}"}, count)
    family.add_sample(f"{name}_bucket", {**labels, "le": "+Inf"}, counts[-1])
    family.add_sample(f"{name}_count", labels, counts[-1])
    family.add_sample(f"{name}_sum", labels, total)


def _summaries(models: _Models, quantiles: Sequence[float]) -> Iterator[Metric]:
    for number, (kind, (text, duration)) in enumerate(_DURATIONS.items()):
        name, text = f"nv_inference_{kind}_summary_us", f"that {text}"
        yield _summary(name, text, duration, number, models, quantiles)


def _summary(
    name: str,
    text: str,
    duration: Callable[[ModelStatistics], Duration],
    number: int,
    models: _Models,
    quantiles: Sequence[float],
) -> Metric:
    """number: of this kind of duration among those that summaries keep."""
    now = time.perf_counter_ns()
    family = Metric(name, f"Microseconds {text}; quantiles of the last minute", "summary")
    for served, labels in models:
        summaries = served.stats.summaries
        if summaries is None:
            continue
        found = summaries.quantiles(number, quantiles, now)
        for quantile, ns in zip(quantiles, found, strict=True):
            family.add_sample(name, {**labels, "quantile": f"{quantile:.15g}"}, ns / 1000)
        family.add_sample(f"{name}_count", labels, duration(served.stats).count)
        family.add_sample(f"{name}_sum", labels, duration(served.stats).ns / 1000)
    return family


def _gpu(gpus: Sequence[GpuFigures]) -> Iterator[Metric]:
    if not gpus:
        return
    for figure, text in _GPUS.items():
        rows = [({"gpu_uuid": gpu.uuid}, getattr(gpu, figure)) for gpu in gpus]
        yield _family(f"nv_gpu_{figure}", text, "gauge", rows)
    yield _family(
        "nv_energy_consumption",
        "Joules that the GPU has used since the server's start",
        "counter",
        [({"gpu_uuid": gpu.uuid}, gpu.energy_consumption) for gpu in gpus],
    )


def _labels(served: ServedModel) -> dict[str, str]:
    """Model, version, and the tags of the configuration with a leading underscore."""
    tags = {
        "_" + re.sub(r"[^0-9A-Za-z_]", "_", tag): value
        for tag, value in served.config.metric_tags.items()
    }
    return {"model": served.name, "version": served.version, **tags}


class _Families(Collector):
    """Families as the library wants to be given them."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """All of them."""
        return self._families


def _text(families: Sequence[Metric]) -> bytes:
    return b"".join(map(_lines, families))


def _lines(family: Metric) -> bytes:
    """The library's counters end in _total; Triton's and those of models need not. Samples are
    named as they were added; only the two lines above them need their names back."""
    text = generate_latest(_Families([family]))
    if family.type != "counter":
        return text
    name = family.name.encode()
    lines = text.split(b"\n", 2)
    lines[:2] = [line.replace(name + b"_total", name, 1) for line in lines[:2]]
    return b"\n".join(lines)
