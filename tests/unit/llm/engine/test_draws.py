"""Which tokens may be drawn, how often each is, and that a draw depends on nothing else."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.llm.engine.reference_sampler import chances

from naiad_backends.llm.engine.draws import (
    BadLogits,
    candidates,
    draw,
    greedy,
    key_of,
    largest,
    uniforms,
)

Row = npt.NDArray[np.float32]


def row(seed: int, size: int, spread: float, ties: bool = False) -> Row:
    values = np.random.default_rng(seed).normal(0, spread, size)
    return np.round(values).astype(np.float32) if ties else values.astype(np.float32)


rows = st.builds(
    row,
    st.integers(0, 10**6),
    st.sampled_from([1, 2, 3, 63, 64, 65, 130, 1000, 5000]),
    st.sampled_from([0.0, 0.1, 1.0, 4.0, 30.0]),
    st.booleans(),
)


@given(rows, st.integers(1, 6000))
def test_largest_is_a_full_sort_cut_short(values: Row, count: int) -> None:
    np.testing.assert_array_equal(
        largest(values, count), np.argsort(-values, kind="stable")[:count]
    )


@given(
    rows,
    st.sampled_from([0.01, 0.3, 1.0, 2.0]),
    st.sampled_from([0, 1, 2, 40, 63, 64, 100, 6000]),
    st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.99, 0.9999, 1.0]),
    st.sampled_from([0.0, 0.001, 0.1, 1.0]),
)
def test_candidates_are_those_of_the_definition(
    values: Row, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    ids, weights = candidates(values, temperature, top_k, top_p, min_p)
    exact = values.astype(np.float64)
    # Sums of float32 decide at the edges: a hair to either side is right.
    fewer = chances(exact, temperature, top_k, top_p * (1 - 1e-5), min(1, min_p * (1 + 1e-5)))
    more = chances(exact, temperature, top_k, min(1, top_p * (1 + 1e-5)), min_p * (1 - 1e-5))
    assert set(np.flatnonzero(fewer)) <= set(ids)
    assert set(ids[weights > 1e-37]) <= set(np.flatnonzero(more))
    expected = chances(exact, temperature)[ids]
    np.testing.assert_allclose(
        weights / weights.sum(), expected / expected.sum(), rtol=1e-3, atol=1e-7
    )


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"), [(0, 1.0, 0.0), (5, 1.0, 0.0), (0, 0.8, 0.0), (0, 1.0, 0.05)]
)
@pytest.mark.parametrize("size", [3, 200])
def test_tokens_are_drawn_as_often_as_they_are_likely(
    size: int, top_k: int, top_p: float, min_p: float
) -> None:
    values = row(size, size, 2.0)
    draws = 8_000
    counts = np.bincount(
        [draw(values, key_of(7, i), 1.3, top_k, top_p, min_p) for i in range(draws)],
        minlength=size,
    )
    expected = chances(values.astype(np.float64), 1.3, top_k, top_p, min_p) * draws
    assert not counts[expected == 0].any()
    # Rare ones together, as the test asks for some of each kind.
    rare = expected < 10
    seen = np.append(counts[~rare], counts[rare].sum())
    due = np.append(expected[~rare], expected[rare].sum())
    seen, due = seen[due > 0], due[due > 0]
    statistic = float(((seen - due) ** 2 / due).sum())
    freedom = len(seen) - 1
    # The draws are the same each time; four standard deviations tell whether they are just.
    assert statistic <= freedom + 4 * np.sqrt(2 * freedom)


def test_seeds_are_as_good_as_indices() -> None:
    values = np.zeros(4, np.float32)
    counts = np.bincount([draw(values, key_of(seed, 0), 1.0) for seed in range(8_000)])
    assert abs(counts - 2000).max() < 200


def test_numbers_are_even_and_inside() -> None:
    numbers = uniforms(key_of(-1, 3), np.arange(100_000))
    assert numbers.min() > 0 and numbers.max() < 1
    assert abs(np.histogram(numbers, 20, (0, 1))[0] - 5000).max() < 300
    assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.01


def test_a_small_change_of_the_logits_rarely_changes_the_draw() -> None:
    values = row(1, 5000, 2.0)
    nudged = values + np.random.default_rng(2).normal(0, 1e-4, 5000).astype(np.float32)
    keys = [key_of(3, index) for index in range(200)]
    other = sum(draw(values, key, 1.0) != draw(nudged, key, 1.0) for key in keys)
    assert other <= 2


def test_the_lowest_of_equal_tokens_wins() -> None:
    assert greedy(np.array([0, 2, 1, 2], np.float32)) == 1
    assert {draw(np.array([0, 2, 1, 2], np.float32), key, 1.0, top_k=1) for key in range(50)} == {1}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 70, 99])
def test_logits_that_are_not_finite_are_refused(bad: float, place: int) -> None:
    values = row(0, 100, 1.0)
    values[place] = bad
    for choose in (greedy, lambda v: draw(v, 1, 1.0), lambda v: draw(v, 1, 1.0, top_k=3)):
        with pytest.raises(BadLogits, match="not finite"):
            choose(values)


def test_a_row_without_a_token_is_refused() -> None:
    values = np.full(100, -np.inf, np.float32)
    for choose in (greedy, lambda v: draw(v, 1, 1.0), lambda v: draw(v, 1, 1.0, top_p=0.5)):
        with pytest.raises(BadLogits, match="forbids every token"):
            choose(values)


def test_forbidden_tokens_are_never_drawn() -> None:
    values = np.full(300, -np.inf, np.float32)
    values[[5, 290]] = [1.0, 0.0]
    for options in ({}, {"top_k": 40}, {"top_p": 0.999}, {"min_p": 1e-9}):
        drawn = {draw(values, key_of(1, i), 5.0, **options) for i in range(200)}
        assert drawn == {5, 290}
