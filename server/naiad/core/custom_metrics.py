"""Metrics that models make: the families, their values, and who has a use for them.

Knows nothing of models or processes, only names of owners.
"""

import math
import re
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from prometheus_client import Metric

from naiad_backends import services
from naiad_backends.errors import NaiadError, invalid

RESERVED = (
    "naiad_",
    "nv_cache_",
    "nv_cpu_",
    "nv_energy_",
    "nv_gpu_",
    "nv_inference_",
    "nv_model_",
    "nv_pinned_",
)
"""What the names of the server's own families begin with."""

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")

_ACTIONS = {"COUNTER": ("increment",), "GAUGE": ("increment", "set"), "HISTOGRAM": ("observe",)}
"""Kind -> what changes a value."""

_PARTS = ("_bucket", "_sum", "_count")
"""What is put behind a histogram's name."""


@dataclass(slots=True, eq=False)
class _Series:
    """One value, or one histogram, and by how many handles it is held.

    counts: observations up to each of `bounds` and above the one before; the last is for the rest.
    value: of a histogram the sum of all observations.
    """

    labels: Mapping[str, str]
    bounds: Sequence[float] = ()
    counts: list[int] = field(default_factory=list)
    value: float = 0.0
    holders: int = 0


@dataclass(slots=True, eq=False)
class _Family:
    """owners: each with how often it has made or joined the family."""

    name: str
    text: str
    kind: str
    owners: Counter[str] = field(default_factory=Counter)
    series: dict[tuple[tuple[str, str], ...], _Series] = field(default_factory=dict)

    def names(self) -> set[str]:
        """All that its samples are called."""
        parts = _PARTS if self.kind == "HISTOGRAM" else ()
        return {self.name, *(self.name + part for part in parts)}

    def metric(self) -> Metric:
        """For the exposition."""
        metric = Metric(self.name, self.text, self.kind.lower())
        for series in self.series.values():
            if self.kind == "HISTOGRAM":
                _add_histogram(metric, series)
            else:
                metric.add_sample(self.name, dict(series.labels), series.value)
        return metric


def _add_histogram(metric: Metric, series: _Series) -> None:
    counts = list(accumulate(series.counts))
    for bound, count in zip((*series.bounds, math.inf), counts, strict=True):
        le = "+Inf" if bound == math.inf else f"{bound:.15g}"
        metric.add_sample(f"{metric.name}_bucket", {**series.labels, "le": le}, count)
    metric.add_sample(f"{metric.name}_count", dict(series.labels), counts[-1])
    metric.add_sample(f"{metric.name}_sum", dict(series.labels), series.value)


class CustomMetrics(services.CustomMetrics):
    """All custom metrics of a server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._families: dict[str, _Family] = {}
        self._held: dict[str, dict[int, tuple[_Family, _Series]]] = {}

    def families(self) -> list[Metric]:
        """What there is now, for the exposition: families that have metrics."""
        with self._lock:
            return [family.metric() for family in self._families.values() if family.series]

    def family(self, owner: str, name: str, description: str, kind: str) -> None:
        if kind not in _ACTIONS:
            raise invalid(f"unknown kind '{kind}'", hint=f"use {', '.join(_ACTIONS)}")
        if not _NAME.fullmatch(name):
            raise invalid(
                f"'{name}' is no name of a metric",
                hint="use letters, digits, _ and :, and no digit at the beginning",
            )
        if name.startswith(RESERVED):
            raise invalid(
                f"metric '{name}' has a name like the server's own",
                hint=f"begin it with anything but {', '.join(RESERVED)}",
            )
        with self._lock:
            family = self._families.get(name)
            if family is None:
                family = _Family(name, description, kind)
                self._check_free(family)
                self._families[name] = family
            elif family.kind != kind:
                raise invalid(f"metric '{name}' is there as a {family.kind}, not as a {kind}")
            family.owners[owner] += 1

    def _check_free(self, family: _Family) -> None:
        for other in self._families.values():
            taken = family.names() & other.names()
            if taken:
                raise invalid(
                    f"metric '{family.name}' would have a name in common with the {other.kind}"
                    f" '{other.name}': {min(taken)}"
                )

    def drop_family(self, owner: str, name: str) -> None:
        with self._lock:
            family = self._families.get(name)
            if family is not None:
                family.owners[owner] -= 1
                family.owners += Counter()
                self._clean(family)

    def metric(
        self,
        owner: str,
        handle: int,
        name: str,
        labels: Mapping[str, str],
        buckets: Sequence[float] | None,
    ) -> None:
        with self._lock:
            family = self._families.get(name)
            if family is None:
                raise invalid(f"there is no family '{name}' of metrics")
            _check_labels(family, labels)
            bounds = _bounds(family, buckets)
            held = self._held.setdefault(owner, {})
            if handle in held:
                raise invalid(f"there is a metric with handle {handle} already")
            key = tuple(sorted(labels.items()))
            series = family.series.get(key)
            if series is None:
                counts = [0] * (len(bounds) + 1)
                series = family.series[key] = _Series(dict(labels), bounds, counts)
            series.holders += 1
            held[handle] = family, series

    def drop_metric(self, owner: str, handle: int) -> None:
        with self._lock:
            self._drop(owner, handle)

    def _drop(self, owner: str, handle: int) -> None:
        found = self._held.get(owner, {}).pop(handle, None)
        if found is None:
            return
        family, series = found
        series.holders -= 1
        if not series.holders:
            del family.series[tuple(sorted(series.labels.items()))]
            self._clean(family)

    def _clean(self, family: _Family) -> None:
        if not family.owners and not family.series:
            self._families.pop(family.name, None)

    def update(self, owner: str, handle: int, action: str, value: float) -> None:
        with self._lock:
            family, series = self._find(owner, handle)
            if action not in _ACTIONS[family.kind]:
                raise invalid(f"metric '{family.name}' is a {family.kind}, which has no {action}")
            if family.kind == "COUNTER" and not value >= 0:
                raise invalid(f"metric '{family.name}' is a COUNTER, which {value} is not added to")
            if action == "set":
                series.value = value
                return
            series.value += value
            if action == "observe":
                # What is no number is above all bounds.
                place = -1 if math.isnan(value) else bisect_left(series.bounds, value)
                series.counts[place] += 1

    def value(self, owner: str, handle: int) -> float:
        with self._lock:
            family, series = self._find(owner, handle)
            if family.kind == "HISTOGRAM":
                raise invalid(f"metric '{family.name}' is a HISTOGRAM, which has no value")
            return series.value

    def _find(self, owner: str, handle: int) -> tuple[_Family, _Series]:
        found = self._held.get(owner, {}).get(handle)
        if found is None:
            raise invalid(f"there is no metric with handle {handle}")
        return found

    def forget(self, owner: str) -> None:
        with self._lock:
            for handle in list(self._held.get(owner, {})):
                self._drop(owner, handle)
            self._held.pop(owner, None)
            for family in list(self._families.values()):
                del family.owners[owner]
                self._clean(family)


def _check_labels(family: _Family, labels: Mapping[str, str]) -> None:
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise invalid(
                f"metric '{family.name}' has a label '{label}'",
                hint="use letters, digits and _, with no digit and no __ at the beginning",
            )
        if label == "le" and family.kind == "HISTOGRAM":
            raise invalid(f"metric '{family.name}' is a HISTOGRAM, whose label 'le' is its own")


def _bounds(family: _Family, buckets: Sequence[float] | None) -> tuple[float, ...]:
    """The finite ones; a histogram has another one for the rest."""
    if family.kind != "HISTOGRAM":
        if buckets is not None:
            raise _unlike(family, "has no buckets")
        return ()
    if not buckets:
        raise _unlike(family, "needs buckets")
    if not all(one < other for one, other in pairwise(buckets)) or math.isnan(buckets[0]):
        raise _unlike(family, f"needs buckets that ascend, not {list(buckets)}")
    return tuple(bound for bound in buckets if bound < math.inf)


def _unlike(family: _Family, text: str) -> NaiadError:
    return invalid(f"metric '{family.name}' is a {family.kind}, which {text}")
