"""How the durations of a model's answered requests are spread: histograms and summaries.

Both take a sample in well under a microsecond and need bounded memory. The sums and counts that go
with them are the statistics'; how metrics name and write them is `naiad.core.metrics`'s.
"""

import math
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from naiad.repository.histograms import BUCKETS
from naiad_backends.errors import NaiadError, invalid

QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
"""Of summaries, unless others are asked for; Triton's."""


@dataclass(frozen=True, slots=True)
class LatencyOptions:
    """What `--metrics-config` says: which latencies metrics tell, and how."""

    counters: bool = True
    histograms: bool = True
    summaries: bool = False
    quantiles: tuple[float, ...] = QUANTILES

    @classmethod
    def parse(cls, entries: Iterable[str]) -> "LatencyOptions":
        """Read `<key>=<value>` entries. Raises INVALID_ARG for a key or value that cannot be."""
        values: dict[str, bool | tuple[float, ...]] = {}
        for entry in entries:
            key, equals, value = entry.partition("=")
            if not equals or key not in _KEYS:
                raise _wrong(f"'{entry}' is not <key>=<value> with a key of {', '.join(_KEYS)}")
            name, read = _KEYS[key]
            values[name] = read(value)
        return cls(**values)  # type: ignore[arg-type]  # _KEYS pairs fields with their types


DEFAULT_LATENCIES = LatencyOptions()


def _wrong(text: str, hint: str = "") -> NaiadError:
    return invalid(text, field="--metrics-config", hint=hint)


def _boolean(text: str) -> bool:
    known = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
    if text.lower() not in known:
        raise _wrong(f"'{text}' is neither true nor false")
    return known[text.lower()]


def _quantiles(text: str) -> tuple[float, ...]:
    """Of `0.5:0.05,0.9:0.01`, the quantiles; the errors are Triton's matter, ours are smaller."""
    quantiles = set()
    for pair in text.split(","):
        try:
            quantile, error = map(float, pair.split(":"))
        except ValueError:
            quantile = error = math.nan
        if not (0 <= quantile <= 1 and 0 <= error <= 1):
            raise _wrong(
                f"'{pair}' is not <quantile>:<error> with numbers from 0 to 1",
                hint="write for example summary_quantiles=0.5:0.05,0.99:0.001",
            )
        quantiles.add(quantile)
    return tuple(sorted(quantiles))


_KEYS: Mapping[str, tuple[str, Callable[[str], bool | tuple[float, ...]]]] = {
    "counter_latencies": ("counters", _boolean),
    "histogram_latencies": ("histograms", _boolean),
    "summary_latencies": ("summaries", _boolean),
    "summary_quantiles": ("quantiles", _quantiles),
}


class Histogram:
    """How many samples of one kind lay within each bound."""

    __slots__ = ("bounds", "counts", "limits")

    def __init__(self, bounds: Sequence[float], unit_ns: int) -> None:
        """bounds: upper ones, inclusive, ascending, finite, in units of so many nanoseconds."""
        self.bounds = bounds
        # Samples are whole numbers, so that the limits may be, too; they compare fastest.
        self.limits = [math.floor(bound * unit_ns) for bound in bounds]
        self.counts = [0] * (len(bounds) + 1)

    def cumulative(self) -> list[int]:
        """How many samples reach up to each bound, and how many there are."""
        return list(accumulate(self.counts))


class Histograms:
    """The histograms of one model version.

    first_response_ns: the sum of what the first family counts; the statistics have the others'.
    """

    __slots__ = ("_counts", "_limits", "families", "first_response_ns")

    def __init__(self, buckets: Mapping[str, Sequence[float]]) -> None:
        """buckets: the model's own bounds by family, where it has any."""
        self.families = {
            family: Histogram(
                [bound for bound in buckets.get(family, default) if math.isfinite(bound)],
                1_000_000 if family.endswith("_ms") else 1_000,
            )
            for family, default in BUCKETS.items()
        }
        self.first_response_ns = 0
        self._limits = tuple(one.limits for one in self.families.values())
        self._counts = tuple(one.counts for one in self.families.values())

    def add(
        self, first: int, request: int, queue: int, prepare: int, infer: int, output: int
    ) -> None:
        """Count one request, by its nanoseconds in the order of the families."""
        self.first_response_ns += first
        # Written out, because a loop takes half as long again.
        limits0, limits1, limits2, limits3, limits4, limits5 = self._limits
        counts0, counts1, counts2, counts3, counts4, counts5 = self._counts
        counts0[bisect_left(limits0, first)] += 1
        counts1[bisect_left(limits1, request)] += 1
        counts2[bisect_left(limits2, queue)] += 1
        counts3[bisect_left(limits3, prepare)] += 1
        counts4[bisect_left(limits4, infer)] += 1
        counts5[bisect_left(limits5, output)] += 1

    def add_hit(self, request: int, queue: int) -> None:
        """Count one request that a cache answered, so that it had no compute phases."""
        self.first_response_ns += request
        limits0, limits1, limits2, *_ = self._limits
        counts0, counts1, counts2, *_ = self._counts
        counts0[bisect_left(limits0, request)] += 1
        counts1[bisect_left(limits1, request)] += 1
        counts2[bisect_left(limits2, queue)] += 1


_Sketch = dict[int, int]

HIT, MISS = 5, 6
"""The places of a cache's durations among the kinds of a summary, behind those of `add`."""

_KINDS = 7
_SLICES = 6
_SLICE_NS = 10 * 10**9
_RESOLUTION = 1 / math.log(1.02)
_SMALLEST_NS = 1_000
_SMALLEST = int(math.log(_SMALLEST_NS) * _RESOLUTION)


class Summaries:
    """The quantiles of one model version's requests of the last minute, within 1 % or 1 µs.

    Samples are counted by the logarithm of their size, anew every ten seconds; what is older than
    the window is dropped. Source of the idea: Masson et al., DDSketch, VLDB 2019.
    """

    __slots__ = ("_slices",)

    def __init__(self) -> None:
        self._slices: deque[tuple[int, Sequence[_Sketch]]] = deque(maxlen=_SLICES + 1)

    def add(self, now: int, *durations: int) -> None:
        """Count one request, by its nanoseconds: request, queue, compute input, infer and output.

        now: when it ended, by `time.perf_counter_ns()` as all times here.
        """
        sketches = self._sketches(now)
        for sketch, ns in zip(sketches, durations, strict=False):
            _count(sketch, ns)

    def add_hit(self, now: int, request: int, queue: int, lookup: int) -> None:
        """Count one request that a cache answered."""
        sketches = self._sketches(now)
        for kind, ns in ((0, request), (1, queue), (HIT, lookup)):
            _count(sketches[kind], ns)

    def add_miss(self, now: int, ns: int) -> None:
        """Count what a cache took for one request that it could not answer."""
        _count(self._sketches(now)[MISS], ns)

    def _sketches(self, now: int) -> Sequence[_Sketch]:
        """One for each kind, of the present slice."""
        number = now // _SLICE_NS
        if not self._slices or self._slices[-1][0] != number:
            self._slices.append((number, [{} for _ in range(_KINDS)]))
        return self._slices[-1][1]

    def quantiles(self, kind: int, wanted: Sequence[float], now: int) -> list[float]:
        """Of one kind of durations, in nanoseconds; NaN if none was counted in the last minute.

        kind: its place among those that `add` takes, or HIT or MISS.
        """
        total: Counter[int] = Counter()
        for number, sketches in self._slices:
            if number >= now // _SLICE_NS - _SLICES:
                total.update(sketches[kind])
        indices = sorted(total)
        ranks = list(accumulate(total[index] for index in indices))
        if not ranks:
            return [math.nan] * len(wanted)
        return [
            math.exp((indices[bisect_left(ranks, quantile * ranks[-1])] + 0.5) / _RESOLUTION)
            for quantile in wanted
        ]


def _count(sketch: _Sketch, ns: int) -> None:
    index = int(math.log(ns) * _RESOLUTION) if ns > _SMALLEST_NS else _SMALLEST
    sketch[index] = sketch.get(index, 0) + 1
