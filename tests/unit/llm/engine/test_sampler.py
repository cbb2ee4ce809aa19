"""The sampler against the definitions, in any company, and after a preemption."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.llm.engine.reference_sampler import chances, logprobs, processed

from naiad_backends.llm.engine.sampler import Sampler
from naiad_backends.llm.sampling import Sampling

VOCAB = 150


def logits(rows: int, seed: int = 0, ties: bool = False) -> npt.NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal((rows, VOCAB), np.float32) * 3
    return values.round() if ties else values


tokens = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12)
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.5, 1.0]),
    top_p=st.sampled_from([0.3, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 10]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([0.7, 1.0, 1.5]),
    presence_penalty=st.sampled_from([-1.0, 0.0, 0.5]),
    frequency_penalty=st.sampled_from([-0.4, 0.0, 0.8]),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([-100.0, 1.0, 5.0])),
    allowed=st.none() | tokens,
    bad_words=st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=2), max_size=3),
    stop=st.lists(st.integers(0, VOCAB - 1), max_size=3),
    min_tokens=st.integers(0, 4),
    seed=st.integers(-(2**63), 2**63 - 1),
)


@given(samplings, tokens, st.integers(0, 1000), st.booleans())
def test_every_token_is_one_that_the_definitions_allow(
    sampling: Sampling, prompt: list[int], seed: int, ties: bool
) -> None:
    sampler = Sampler(VOCAB)
    sampler.add(4, sampling, prompt)
    output: list[int] = []
    for step in range(6):
        values = logits(1, seed + step, ties)
        expected = processed(values[0], sampling, prompt, output)
        sampled = sampler.sample(values.copy(), [4])
        if not np.isfinite(expected).any():
            assert "forbids every token" in sampled.failed[0]
            return
        token = sampled.tokens[0]
        if sampling.greedy:
            assert expected[token] >= expected.max() - 1e-4
        else:
            margin = 1 + 1e-4
            p = chances(
                expected,
                sampling.temperature,
                sampling.top_k,
                min(1, sampling.top_p * margin),
                sampling.min_p / margin,
            )
            edge = np.sort(expected)[::-1][sampling.top_k - 1] if sampling.top_k else -np.inf
            assert p[token] > 0 or abs(expected[token] - edge) < 1e-4
        output.append(token)


MANY = [
    Sampling(temperature=0),
    Sampling(seed=5),
    Sampling(seed=6, top_p=0.9),
    Sampling(seed=5, top_k=7, temperature=2.0),
    Sampling(seed=7, min_p=0.02, frequency_penalty=1.0),
    Sampling(seed=-8, repetition_penalty=1.3, logprobs=2),
    Sampling(temperature=0, bad_words=[[1], [2, 3]], logit_bias={4: 2.0}),
]


def write(order: list[int], lengths: int = 10, restart: int | None = None) -> dict[int, list[int]]:
    """The texts of those of MANY in `order`; logits depend on the text's number and length."""
    sampler = Sampler(VOCAB)
    texts: dict[int, list[int]] = {number: [] for number in order}
    for number in order:
        sampler.add(number, MANY[number], [number, 1])
    for index in range(lengths):
        if index == restart:
            for number in order:
                sampler.remove(number)
                sampler.add(number, MANY[number], [number, 1], texts[number])
        rows = np.concatenate([logits(1, 100 * number + index) for number in order])
        for number, token in zip(order, sampler.sample(rows, order).tokens, strict=True):
            texts[number].append(token)
    return texts


def test_company_and_order_do_not_matter() -> None:
    together = write(list(range(len(MANY))))
    assert write(list(reversed(range(len(MANY))))) == together
    for number in range(len(MANY)):
        assert write([number]) == {number: together[number]}


def test_a_preempted_text_goes_on_as_it_would_have() -> None:
    everyone = list(range(len(MANY)))
    assert write(everyone, restart=6) == write(everyone)


def test_the_same_seed_gives_the_same_text_and_another_one_another() -> None:
    sampler = Sampler(VOCAB)
    for number, seed in enumerate([1, 1, 2]):
        sampler.add(number, Sampling(seed=seed), [3])
    texts = np.array(
        [sampler.sample(logits(1, step).repeat(3, 0), [0, 1, 2]).tokens for step in range(8)]
    )
    assert (texts[:, 0] == texts[:, 1]).all()
    assert (texts[:, 0] != texts[:, 2]).any()


def test_logprobs_are_of_the_raw_logits() -> None:
    sampler = Sampler(VOCAB)
    sampler.add(0, Sampling(temperature=0, logprobs=3, logit_bias={9: 100.0}), [1])
    sampler.add(1, Sampling(temperature=0), [1])
    sampler.add(2, Sampling(logprobs=0, seed=3, temperature=3.0), [1])
    sampler.add(3, Sampling(logprob_ids=[7, 9, 7], temperature=0), [1])
    sampler.add(4, Sampling(logprobs=-1, temperature=0), [1])
    values = logits(5)
    sampled = sampler.sample(values.copy(), [0, 1, 2, 3, 4])
    biased, none, bare, chosen, everything = sampled.scored
    exact = [logprobs(row) for row in values]
    assert none is None
    assert biased and bare and chosen and everything

    assert biased.token.id == sampled.tokens[0] == 9
    assert biased.token.logprob == pytest.approx(exact[0][9], abs=1e-5)
    assert biased.token.rank == 1 + int((exact[0] > exact[0][9]).sum())
    assert [one.id for one in biased.top] == np.argsort(-exact[0])[:3].tolist()
    assert [one.rank for one in biased.top] == [1, 2, 3]
    assert [one.logprob for one in biased.top] == pytest.approx(np.sort(exact[0])[:-4:-1], abs=1e-5)

    assert bare.top == [] and bare.token.id == sampled.tokens[2]
    assert {one.id for one in chosen.top} == {7, 9}
    assert {one.id: one.logprob for one in chosen.top}[7] == pytest.approx(exact[3][7], abs=1e-5)
    assert [one.id for one in everything.top] == np.argsort(-exact[4]).tolist()
    assert [one.rank for one in everything.top] == list(range(1, VOCAB + 1))


def test_equal_logits_have_one_rank() -> None:
    sampler = Sampler(VOCAB)
    sampler.add(0, Sampling(temperature=0, logprobs=4), [1])
    values = np.zeros((1, VOCAB), np.float32)
    values[0, [20, 10]] = 1.0
    scored = sampler.sample(values, [0]).scored[0]
    assert scored
    assert [(one.id, one.rank) for one in scored.top] == [(10, 1), (20, 1), (0, 3), (1, 3)]


def test_a_prompt_is_scored_token_by_token() -> None:
    values = logits(4)
    following = [3, 149, 0, 7]
    scored = Sampler(VOCAB).score_prompt(values, following, 2)
    for row, token, one in zip(values, following, scored, strict=True):
        exact = logprobs(row)
        assert one.token.id == token
        assert one.token.logprob == pytest.approx(exact[token], abs=1e-5)
        assert [best.id for best in one.top] == np.argsort(-exact)[:2].tolist()


def test_a_row_of_bad_logits_fails_alone() -> None:
    sampler = Sampler(VOCAB)
    for number in range(4):
        sampler.add(number, Sampling(temperature=number % 2, logprobs=1), [1])
    values = logits(4)
    values[1, 77] = np.nan
    values[2, 5] = np.inf
    sampled = sampler.sample(values, [0, 1, 2, 3])
    assert sorted(sampled.failed) == [1, 2]
    assert "not finite" in sampled.failed[1]
    assert sampled.tokens[1:3] == [-1, -1]
    assert sampled.tokens[0] >= 0 and sampled.tokens[3] >= 0
    for scored in sampler.score_prompt(values[1:3], [3, 4], 1):
        assert np.isnan(scored.token.logprob) and scored.top == []


@pytest.mark.parametrize("penalty", [5e-324, 1e-46, 1e300])
def test_absurd_penalties_are_the_trouble_of_their_own_row(penalty: float) -> None:
    sampler = Sampler(VOCAB)
    sampler.add(0, Sampling(temperature=0, repetition_penalty=penalty), [1, 2, 3])
    sampler.add(1, Sampling(temperature=0), [1])
    values = logits(2)
    values[0, 2], values[0, 3] = 2.0, -2.0

    sampled = sampler.sample(values.copy(), [0, 1])

    if penalty < 1:
        assert "not finite" in sampled.failed[0]
    assert sampled.tokens[1] == values[1].argmax()


def test_logprobs_of_bad_logits_that_others_than_the_chosen_have() -> None:
    sampler = Sampler(VOCAB)
    sampler.add(0, Sampling(temperature=0, logprobs=1, allowed=[3, 4]), [1])
    values = logits(1)
    values[0, 77] = np.nan
    sampled = sampler.sample(values, [0])
    assert sampled.tokens[0] in (3, 4)
    assert sampled.scored[0] and np.isnan(sampled.scored[0].token.logprob)


def test_an_end_that_the_vocabulary_lacks_is_no_trouble() -> None:
    sampler = Sampler(VOCAB)
    sampler.add(0, Sampling(temperature=0, min_tokens=2, stop=[VOCAB + 5, 3]), [1])
    values = np.zeros((1, VOCAB), np.float32)
    values[0, 3] = 9.0
    assert sampler.sample(values, [0]).tokens == [0]


def test_removing_twice_is_no_mistake() -> None:
    sampler = Sampler(VOCAB)
    sampler.add(0, Sampling(), [1])
    sampler.remove(0)
    sampler.remove(0)
