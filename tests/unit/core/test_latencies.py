"""Histograms and summaries agree with the plain way of counting; options say what is wrong."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.core.latencies import (
    HIT,
    MISS,
    QUANTILES,
    Histogram,
    Histograms,
    LatencyOptions,
    Summaries,
)
from naiad.repository.histograms import BUCKETS
from naiad_backends.errors import Code, NaiadError

SECOND = 10**9

durations = st.integers(0, 10**12)


@given(st.lists(durations), st.sets(st.floats(0, 1e9), min_size=1).map(sorted))
def test_a_histogram_counts_what_is_not_above_its_bounds(
    samples: list[int], bounds: list[float]
) -> None:
    histograms = Histograms({family: bounds for family in BUCKETS})
    for ns in samples:
        histograms.add(ns, ns, ns, ns, ns, ns)
    for family, histogram in histograms.families.items():
        unit = 1e6 if family.endswith("_ms") else 1e3
        assert histogram.cumulative() == [
            *(sum(ns <= bound * unit for ns in samples) for bound in bounds),
            len(samples),
        ]
    assert histograms.first_response_ns == sum(samples)


def test_bounds_are_inclusive() -> None:
    histogram = Histogram([0.5, 1], 1000)
    assert histogram.limits == [500, 1000]
    histograms = Histograms({})
    histograms.add(100_000_000, 10_000, 10_001, 0, 0, 0)
    counts = [one.cumulative()[0] for one in histograms.families.values()]
    assert counts == [1, 1, 0, 1, 1, 1]


@given(st.lists(st.integers(1_000, 10**12), min_size=1), st.floats(0, 1))
def test_a_quantile_is_within_one_percent(samples: list[int], quantile: float) -> None:
    summaries = Summaries()
    for ns in samples:
        summaries.add(0, ns, 0, 0, 0, 0)
    (found,) = summaries.quantiles(0, [quantile], 0)
    exact = np.quantile(samples, quantile, method="inverted_cdf")
    assert found == pytest.approx(exact, rel=0.01)


def test_what_a_cache_answers_has_no_compute_phases() -> None:
    histograms = Histograms({})
    histograms.add_hit(7_000, 2_000)
    counts = [one.cumulative()[-1] for one in histograms.families.values()]
    assert counts == [1, 1, 1, 0, 0, 0] and histograms.first_response_ns == 7_000
    summaries = Summaries()
    summaries.add_hit(0, 7_000, 2_000, 5_000)
    summaries.add_miss(0, 9_000)
    found = [summaries.quantiles(kind, [0.5], 0)[0] for kind in (0, 1, HIT, MISS)]
    assert found == pytest.approx([7_000, 2_000, 5_000, 9_000], rel=0.01)
    assert all(math.isnan(summaries.quantiles(kind, [0.5], 0)[0]) for kind in (2, 3, 4))


def test_durations_below_a_microsecond_are_one() -> None:
    summaries = Summaries()
    summaries.add(0, 0, 1, 999, 1000, -1)
    for kind in range(5):
        (found,) = summaries.quantiles(kind, [0.5], 0)
        assert found == pytest.approx(1_000, rel=0.02)


def test_old_samples_are_forgotten() -> None:
    summaries = Summaries()

    def median(now: int) -> float:
        return summaries.quantiles(0, [0.5], now)[0]

    assert math.isnan(median(0))
    for second in range(600):
        summaries.add(second * SECOND, (second + 1) * SECOND, 1, 1, 1, 1)
    assert 540 * SECOND < median(599 * SECOND) < 580 * SECOND
    assert not math.isnan(median(655 * SECOND))
    assert math.isnan(median(670 * SECOND))
    assert len(summaries._slices) == 7


def test_defaults_of_the_options() -> None:
    assert LatencyOptions.parse([]) == LatencyOptions(True, True, False, QUANTILES)


def test_options_are_read() -> None:
    entries = ["counter_latencies=off", "histogram_latencies=False", "summary_latencies=1"]
    quantiles = "summary_quantiles=0.99:0.001,0.5:0.05"
    assert LatencyOptions.parse([*entries, quantiles]) == LatencyOptions(
        False, False, True, (0.5, 0.99)
    )


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "summary_latencies",
        "latencies=true",
        "summary_latencies=maybe",
        "summary_quantiles=",
        "summary_quantiles=0.5",
        "summary_quantiles=0.5:0.05,",
        "summary_quantiles=1.5:0.05",
        "summary_quantiles=0.5:nan",
        "summary_quantiles=0.5:0.1:0.1",
        "summary_quantiles=a:b",
    ],
)
def test_wrong_options_are_refused(entry: str) -> None:
    with pytest.raises(NaiadError) as caught:
        LatencyOptions.parse([entry])
    assert caught.value.code is Code.INVALID_ARG and caught.value.field == "--metrics-config"
