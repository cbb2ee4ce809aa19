"""What requests may ask of sampling, and what they hear about the rest."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad_backends.errors import Code, NaiadError
from naiad_backends.llm.parameters import Limits, derived, read
from naiad_backends.llm.text.cutting import Cut

LIMITS = Limits(100, frozenset({2}), encode=lambda text: [len(text), 7])


def refused(values: Mapping[str, Any], limits: Limits = LIMITS) -> NaiadError:
    with pytest.raises(NaiadError) as caught:
        read(values, limits)
    return caught.value


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, 2.1, math.inf, math.nan, "hot", True, [1]]),
        ("top_p", [0, -1, 1.01]),
        ("top_k", [-2, 1.5, "all"]),
        ("min_p", [-0.1, 1.1]),
        ("repetition_penalty", [0, -1, math.inf]),
        ("presence_penalty", [-2.1, 2.1]),
        ("frequency_penalty", [-2.1, 2.1]),
        ("n", [0, -1, 16_385, "two", 1e300]),
        ("max_tokens", [-1, 0, 1.5, "1e3", {}]),
        ("min_tokens", [-1, "x"]),
        ("logprobs", [-1, 21, True, "a"]),
        ("prompt_logprobs", [-1, 21]),
        ("seed", [2**64, -(2**63) - 1, 1.5]),
        ("stop", [1, ["a"] * 17, {}]),
        ("stop[0]", []),
        ("stop_token_ids", [1, "1"]),
        ("allowed_token_ids", [[], 5]),
        ("bad_words", ["word", 1]),
        ("logit_bias", [[1], "x"]),
        ("ignore_eos", [1, "maybe"]),
        ("skip_special_tokens", [0]),
        ("include_stop_str_in_output", ["1"]),
        ("cache_salt", [1]),
        ("truncate_prompt_tokens", [0, -2]),
        ("truncation_side", ["middle", 1]),
        ("logprob_token_ids", [[1]]),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(name: str, values: list[Any]) -> None:
    for value in values:
        error = refused({name: value})
        assert (error.code, error.field) == (Code.INVALID_ARG, name), value


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": ["a", 1]}, "stop[1]"),
        ({"bad_words": [""]}, "bad_words[0]"),
        ({"stop_token_ids": [1, 100]}, "stop_token_ids[1]"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids[0]"),
        ({"logit_bias": {"100": 1}}, 'logit_bias["100"]'),
        ({"logit_bias": {"a": 1}}, 'logit_bias["a"]'),
        ({"logit_bias": {"1": None}}, 'logit_bias["1"]'),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"logprobs": 1, "logprob_token_ids": [1] * 129}, "logprob_token_ids"),
        ({"logprobs": 1, "logprob_token_ids": [100]}, "logprob_token_ids[0]"),
        ({"bad_words": ["w" * 65_537]}, "bad_words"),
        ({"stop": "s" * 16_385}, "stop"),
        ({"stop": ["s" * 1_025] * 16}, "stop"),
        ({"stop_token_ids": [1] * 101}, "stop_token_ids"),
        ({"allowed_token_ids": [1] * 101}, "allowed_token_ids"),
        ({"logit_bias": {"0" * i + "1": 1 for i in range(101)}}, "logit_bias"),
    ],
)
def test_the_wrong_element_is_named(values: dict[str, Any], field: str) -> None:
    assert refused(values).field == field


def test_bad_words_have_few_tokens() -> None:
    limits = Limits(100, encode=lambda text: [ord(text[-1])] * 1_000)
    read({"bad_words": ["a", "b", "a", "b", "c", "c"]}, limits)
    error = refused({"bad_words": ["a", "b", "c", "d", "e"]}, limits)
    assert error.field == "bad_words" and "4096 tokens" in error.message


@pytest.mark.parametrize(
    "name", ["guided_json", "structured_outputs", "logits_processors", "lora_name"]
)
def test_what_would_change_the_answer_is_refused(name: str) -> None:
    error = refused({name: {"a": 1}})
    assert (error.code, error.field) == (Code.UNSUPPORTED, name)
    read({name: None}, LIMITS)


def test_what_asks_for_nothing_is_taken() -> None:
    read({"best_of": 1, "use_beam_search": False, "response_format": {"type": "text"}}, LIMITS)


def test_unknown_names_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        read({"temperatur": 1}, LIMITS)
    assert caplog.text.count("temperatur") == 1


def test_nothing_given() -> None:
    wishes = read({}, LIMITS)
    sampling = wishes.choice(0, 50, chat=False)
    assert sampling.max_tokens == 16 and sampling.stop == [2] and sampling.temperature == 1
    assert wishes.choice(0, 50, chat=True).max_tokens == 50
    assert wishes.choice(0, 5, chat=False).max_tokens == 5
    assert read({"max_tokens": None}, LIMITS).choice(0, 50, chat=False).max_tokens == 50


def test_the_models_author_is_asked_before_neutral_values() -> None:
    limits = Limits(100, defaults={"temperature": 0.6, "top_k": 50.0, "max_tokens": 9.0})
    sampling = read({"top_k": 3}, limits).choice(0, 50, chat=True)
    assert (sampling.temperature, sampling.top_k, sampling.max_tokens) == (0.6, 3, 9)


def test_greedy_needs_nothing_else() -> None:
    sampling = read({"temperature": 0, "top_k": 5, "top_p": 0.5, "min_p": 0.5}, LIMITS).sampling
    assert (sampling.greedy, sampling.top_k, sampling.top_p, sampling.min_p) == (True, 0, 1, 0)
    assert read({"temperature": 0.001}, LIMITS).sampling.temperature == 0.01


def test_numbers_may_be_text_as_triton_sends_them() -> None:
    given = {"temperature": "0.5", "max_tokens": "7", "ignore_eos": "true", "n": "2", "seed": "3"}
    wishes = read(given, LIMITS)
    assert (wishes.sampling.temperature, wishes.max_tokens, wishes.n) == (0.5, 7, 2)
    assert (wishes.sampling.stop, wishes.sampling.seed) == ([], 3)


def test_bias_is_bounded_and_words_are_bad_behind_a_space_too() -> None:
    sampling = read({"logit_bias": {"5": 1e9, "6": -1e9}, "bad_words": ["ab"]}, LIMITS).sampling
    assert sampling.logit_bias == {5: 100, 6: -100}
    assert sampling.bad_words == [[2, 7], [3, 7]]


def test_no_tokens_at_all_go_with_echo_only() -> None:
    assert read({"max_tokens": 0, "echo": True}, LIMITS).choice(0, 9, False).max_tokens == 1
    read({"max_tokens": 0, "prompt_logprobs": 1}, LIMITS)


def test_all_of_the_vocabulary_where_the_server_allows_it() -> None:
    limits = Limits(100, max_logprobs=-1)
    assert read({"logprobs": -1}, limits).sampling.logprobs == -1
    assert read({"logprobs": 100}, limits).sampling.logprobs == 100
    assert refused({"logprobs": 101}, limits).field == "logprobs"


def test_seeds() -> None:
    assert read({"seed": -1}, Limits(9, seed=5)).sampling.seed == 5
    assert read({}, LIMITS).sampling.seed != read({}, LIMITS).sampling.seed
    wishes = read({"seed": 5, "n": 3}, LIMITS)
    seeds = [wishes.choice(index, 9, False).seed for index in range(3)]
    assert seeds[0] == 5 and len(set(seeds)) == 3


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**14))
def test_derived_seeds_are_64_bits(seed: int, index: int) -> None:
    assert 0 <= derived(seed, index) < 2**64


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
NAMES = st.sampled_from(
    ["temperature", "n", "stop", "logit_bias", "bad_words", "seed", "logprobs", "best_of", "x"]
)


@given(st.dictionaries(NAMES, JSON))
def test_whatever_comes_is_taken_or_refused(values: dict[str, Any]) -> None:
    try:
        wishes = read(values, LIMITS)
    except NaiadError as error:
        assert error.field and error.code in (Code.INVALID_ARG, Code.UNSUPPORTED)
    else:
        assert 0 <= wishes.sampling.temperature <= 2 and wishes.n >= 1


def test_how_much_of_a_prompt_is_used() -> None:
    def cut(**values: Any) -> Cut | None:
        return read(values, LIMITS).cut(100, chat=False)

    assert cut() is None and cut(truncate_prompt_tokens=100) is None
    assert cut(truncate_prompt_tokens=99) == Cut(99, left=True)
    assert cut(truncate_prompt_tokens="7", truncation_side="right") == Cut(7, left=False)
    assert cut(truncate_prompt_tokens=-1) == Cut(100 - 16, left=True)
    assert cut(truncate_prompt_tokens=-1, max_tokens=30) == Cut(70, left=True)
    assert cut(truncate_prompt_tokens=-1, max_tokens=None) == Cut(99, left=True)
    with pytest.raises(NaiadError) as caught:
        cut(truncate_prompt_tokens=-1, max_tokens=100)
    assert caught.value.field == "max_tokens"
