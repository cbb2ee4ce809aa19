"""When requests of an open loop are due."""

import numpy as np
import pytest
from benchmarks.arrivals import BURST, CLOSED, PATTERNS, times

OPEN = [pattern for pattern in PATTERNS if pattern != CLOSED]


@pytest.mark.parametrize("pattern", OPEN)
def test_the_rate_is_the_one_asked_for(pattern: str) -> None:
    due = times(pattern, rate=1000, seconds=200, seed=1)
    assert due[0] > 0
    assert np.all(np.diff(due) >= 0)
    assert len(due) / due[-1] == pytest.approx(1000, rel=0.05)


def test_gaps_of_poisson_are_exponential() -> None:
    """Mean and deviation are the same, and a share of 1/e is longer than the mean."""
    gaps = np.diff(times("poisson", rate=100, seconds=1000, seed=1))
    assert gaps.mean() == pytest.approx(0.01, rel=0.02)
    assert gaps.std() == pytest.approx(0.01, rel=0.02)
    assert np.mean(gaps > 0.01) == pytest.approx(np.exp(-1), rel=0.02)


def test_bursts_are_due_at_one_moment() -> None:
    moments, counts = np.unique(times("bursts", 1000, 10, seed=1), return_counts=True)
    assert set(counts) == {BURST}
    assert len(moments) == 625


@pytest.mark.parametrize("pattern", OPEN)
def test_a_seed_gives_the_same_times_again(pattern: str) -> None:
    first, again, other = (times(pattern, 100, 1, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("pattern", OPEN)
def test_there_is_always_a_request(pattern: str) -> None:
    assert len(times(pattern, 0.1, 1, seed=1)) >= 1
