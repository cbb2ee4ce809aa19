"""The native library chooses the tokens that `draws` chooses, of the same random numbers."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.llm.native import decoder

from naiad_backends.llm.engine import draws
from naiad_backends.llm.engine.sampler import Choose, Logits
from naiad_backends.llm.native.runner import NativeRunner
from naiad_backends.llm.sampling import Sampling

pytestmark = pytest.mark.usefixtures("variant")

samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.01, 0.5, 1.0, 2.0]),
    top_p=st.sampled_from([1e-6, 0.3, 0.9, 0.9999, 1.0, 1.0]),
    top_k=st.sampled_from([0, 0, 1, 10, 200, 9000]),
    min_p=st.sampled_from([0.0, 0.0, 0.1, 1.0]),
    seed=st.integers(-(2**63), 2**64 - 1),
)


@pytest.fixture
def choose(runner: Callable[..., NativeRunner]) -> Choose:
    return runner(decoder.checkpoint(decoder.TINY)).choose


def some_logits(rows: int, size: int, spread: float, seed: int, ties: bool) -> Logits:
    logits = np.random.default_rng(seed).standard_normal((rows, size), np.float32)
    logits *= np.float32(spread)
    return logits.round() if ties else logits


# One runner serves all examples: choosing leaves nothing behind.
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(samplings, min_size=1, max_size=5),
    st.sampled_from([1, 5, 64, 700, 8191]),
    st.sampled_from([0.0, 0.3, 3.0, 20.0]),
    st.integers(0, 1000),
    st.booleans(),
)
def test_the_same_tokens_as_without(
    choose: Choose, asked: list[Sampling], size: int, spread: float, seed: int, ties: bool
) -> None:
    logits = some_logits(len(asked), size, spread, seed, ties)
    indices = [seed + row for row in range(len(asked))]
    tokens = list(choose(logits, asked, indices))
    expected = list(draws.choose(logits, asked, indices))
    for row, sampling in enumerate(asked):
        if tokens[row] != expected[row]:
            # Sums of float32 decide at the edges: then one of the two has one token more.
            assert not sampling.greedy
            top_p, min_p = min(1.0, sampling.top_p * (1 + 1e-5)), sampling.min_p * (1 - 1e-5)
            more, _ = draws.candidates(
                logits[row], sampling.temperature, sampling.top_k, top_p, min_p
            )
            assert tokens[row] in more


def test_a_whole_vocabulary(choose: Choose) -> None:
    logits = some_logits(64, 49_152, 2.5, 1, False)
    asked = [
        Sampling(temperature=0.8, top_p=[1.0, 0.95, 0.5][row % 3], top_k=[0, 50][row % 2], seed=row)
        for row in range(64)
    ]
    expected = list(draws.choose(logits, asked, range(64)))
    assert np.mean(np.array(choose(logits, asked, range(64))) == expected) > 0.95


def test_tokens_are_drawn_as_often_as_they_are_likely(choose: Choose) -> None:
    logits = some_logits(1, 200, 1.5, 3, False)
    weights = np.exp(logits[0] / 1.3)
    likely = weights / weights.sum()
    rows = 20_000
    sampling = Sampling(temperature=1.3, seed=9)
    tokens = choose(logits.repeat(rows, 0), [sampling] * rows, range(rows))
    counts = np.bincount(np.array(tokens), minlength=200)
    due = likely * rows
    frequent = due > 10
    statistic = ((counts - due)[frequent] ** 2 / due[frequent]).sum()
    freedom = frequent.sum()
    assert statistic <= freedom + 4 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=0), Sampling(), Sampling(top_p=0.9), Sampling(top_k=3)],
    ids=repr,
)
@pytest.mark.parametrize("place", [0, 70, 99])
def test_rows_that_have_no_token_say_why(choose: Choose, sampling: Sampling, place: int) -> None:
    logits = some_logits(6, 100, 1.0, 0, False)
    logits[0, place] = np.nan
    logits[1, place] = np.inf
    logits[2] = -np.inf
    logits[3] = np.nan
    logits[4] = -np.inf
    logits[4, place] = -1e30
    tokens = choose(logits, [sampling] * 6, range(6))
    reasons = [draws.FAILURES.get(token) for token in tokens]
    assert reasons[:4] == [draws.NOT_FINITE, draws.NOT_FINITE, draws.FORBIDDEN, draws.NOT_FINITE]
    assert tokens[4] == place
    assert tokens[5] >= 0
