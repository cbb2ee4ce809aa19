"""What is drawn on a device, here a CPU as well, is what `draws` draws."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from naiad_backends.llm.engine import draws
from naiad_backends.llm.engine.device_draws import FAILURES, choose
from naiad_backends.llm.sampling import Sampling

samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.5, 1.0]),
    top_p=st.sampled_from([0.3, 0.9, 0.9999, 1.0]),
    top_k=st.sampled_from([0, 1, 10, 5000]),
    min_p=st.sampled_from([0.0, 0.1, 1.0]),
    seed=st.integers(-(2**63), 2**64 - 1),
)


@given(st.lists(samplings, min_size=1, max_size=6), st.integers(0, 1000), st.booleans())
def test_rows_get_what_they_get_alone_and_on_a_cpu(
    asked: list[Sampling], seed: int, ties: bool
) -> None:
    logits = torch.randn(len(asked), 700, generator=torch.Generator().manual_seed(seed)) * 3
    logits = logits.round() if ties else logits
    indices = [seed + row for row in range(len(asked))]
    tokens = choose(logits, asked, indices).tolist()
    for row, (sampling, index) in enumerate(zip(asked, indices, strict=True)):
        values = logits[row].numpy()
        if sampling.greedy:
            assert tokens[row] == draws.greedy(values)
            continue
        ids, weights = draws.candidates(
            values, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p
        )
        arrivals = -np.log(draws.uniforms(draws.key_of(sampling.seed, index), ids)) / weights
        assert tokens[row] == ids[arrivals.argmin()]
        assert choose(logits[row : row + 1], [sampling], [index]).tolist() == [tokens[row]]


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0), Sampling(), Sampling(top_p=0.9)], ids=repr
)
def test_rows_that_have_no_token_say_why(sampling: Sampling) -> None:
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    logits[0, 50] = torch.nan
    logits[1, 50] = torch.inf
    logits[2] = -torch.inf
    tokens = choose(logits, [sampling] * 4, range(4)).tolist()
    assert [FAILURES.get(token) for token in tokens] == [
        draws.NOT_FINITE,
        draws.NOT_FINITE,
        draws.FORBIDDEN,
        None,
    ]
