"""What a request gets from an engine, and what the engine tells of itself."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.llm.engine.fakes import VOCABULARY, FakeRunner, FakeSampler, written

from naiad_backends.llm.engine.engine import Engine
from naiad_backends.llm.messages import Add, Output, ResetPrefixCache
from naiad_backends.llm.options import Options
from naiad_backends.llm.sampling import Sampling

SIZE = 4


def make(options: Options | None = None, **runner: Any) -> Engine:
    model = FakeRunner(block_size=SIZE, **({"blocks": 200} | runner))
    return Engine(model, FakeSampler(model), options or Options())


def finish(engine: Engine) -> dict[int, list[Output]]:
    """Run until nothing is left: the outputs of each request."""
    outputs: dict[int, list[Output]] = {}
    while not engine.idle:
        for output in engine.step():
            outputs.setdefault(output.number, []).append(output)
    return outputs


def generate(engine: Engine, prompt: list[int], max_tokens: int = 4, **how: Any) -> Output:
    """The first output of a request that runs alone."""
    engine.add(Add(0, prompt, Sampling(max_tokens=max_tokens), **how))
    return finish(engine)[0][0]


def stop_after(prompt: list[int], count: int) -> int:
    """A token that the text has first at this place."""
    text = written(prompt, 40)
    token = text[count - 1]
    assert token not in text[: count - 1]
    return token


@pytest.mark.parametrize("overlaps", [False, True])
def test_a_text_ends_at_a_stop_token(overlaps: bool) -> None:
    engine = make(overlaps=overlaps)
    stop = stop_after([1, 2, 3], 3)

    engine.add(Add(0, [1, 2, 3], Sampling(stop=[stop], max_tokens=9)))
    outputs = finish(engine)[0]

    assert [token for o in outputs for token in o.tokens] == written([1, 2, 3], 3)
    assert [(o.finish, o.stop) for o in outputs] == [("", None), ("", None), ("stop", stop)]


def test_a_stop_token_before_the_minimum_does_not_end_a_text() -> None:
    engine = make()
    stop = stop_after([1, 2, 3], 3)

    engine.add(Add(0, [1, 2, 3], Sampling(stop=[stop], min_tokens=3, max_tokens=4)))

    assert finish(engine)[0][-1].finish == "length"


@pytest.mark.parametrize("overlaps", [False, True])
def test_a_text_ends_where_the_context_does(overlaps: bool) -> None:
    engine = make(max_model_len=20, overlaps=overlaps)

    engine.add(Add(0, [1] * 15, Sampling(max_tokens=100)))
    outputs = finish(engine)[0]

    assert len(outputs) == 5
    assert outputs[-1].finish == "length"


def test_a_text_ends_where_the_cache_does() -> None:
    engine = make(blocks=4)

    engine.add(Add(0, [1] * 10, Sampling(max_tokens=100)))
    outputs = finish(engine)[0]

    # The last token needs no place in the cache.
    assert len(outputs) == 3
    assert outputs[-1].finish == "length"


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "error"),
    [
        ([], 1, "the prompt is empty; it needs at least one token"),
        ([1, VOCABULARY], 1, "the prompt has tokens outside of the vocabulary, which has 50"),
        ([-1], 1, "the prompt has tokens outside of the vocabulary, which has 50"),
        ([2**80], 1, "the prompt has tokens outside of the vocabulary, which has 50"),
        ([1] * 64, 1, "the prompt has 64 tokens, of 64 that it and the answer may have"),
        (
            [1] * 40,
            1,
            "the prompt has 40 tokens, the KV cache room for 28; "
            "shorten it, or give the model more kv_cache_memory_bytes",
        ),
        ([1], 0, "max_tokens must be at least 1"),
    ],
)
def test_a_request_that_can_never_run_is_refused(
    prompt: list[int], max_tokens: int, error: str
) -> None:
    engine = make(blocks=8)

    engine.add(Add(7, prompt, Sampling(max_tokens=max_tokens)))

    assert not engine.idle
    assert engine.step() == [Output(7, [], "error", error=error)]
    assert engine.idle


def test_a_refused_request_that_is_aborted_is_not_answered() -> None:
    engine = make()
    engine.add(Add(7, [], Sampling()))

    engine.abort([7])

    assert engine.idle


def test_a_deadline_ends_a_text() -> None:
    engine = make()

    engine.add(Add(0, [1], Sampling(max_tokens=50), deadline=1.0))
    (output,) = engine.step()

    assert (output.finish, output.tokens) == ("timeout", [])
    assert engine.idle


def test_a_prompt_is_scored_in_pieces_and_its_first_token_not_at_all() -> None:
    engine = make(max_tokens=3)
    prompt = [1, 2, 3, 4, 5, 6, 7, 8]

    engine.add(Add(0, prompt, Sampling(max_tokens=2, prompt_logprobs=1)))
    first, second = finish(engine)[0]

    assert first.prompt_scored is not None
    assert first.prompt_scored[0] is None
    assert [s.token.id for s in first.prompt_scored if s] == prompt[1:]
    assert [s.top[0].id for s in first.prompt_scored if s] == [
        written(prompt[:end], 1)[0] for end in range(1, 8)
    ]
    assert second.prompt_scored is None


def test_a_prompt_to_be_scored_neither_reads_the_cache_nor_counts_there() -> None:
    engine = make()
    prompt = list(range(20))
    generate(engine, prompt)
    before = engine.stats()

    engine.add(Add(1, prompt, Sampling(max_tokens=1, prompt_logprobs=0)))
    (output,) = finish(engine)[1]

    assert output.cached == 0
    after = engine.stats()
    assert (after.prefix_queries, after.prefix_hits) == (before.prefix_queries, 0)


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 1), min_size=1, max_size=20),
            st.sampled_from(["", "a", "b"]),
            st.integers(1, 9),
        ),
        min_size=1,
        max_size=8,
    ),
    st.booleans(),
)
def test_the_prefix_cache_counts_exactly(
    requests: list[tuple[list[int], str, int]], overlaps: bool
) -> None:
    """Against a set of all prefixes that were ever computed, in a cache that holds them all."""
    engine = make(overlaps=overlaps)
    known: set[tuple[str, tuple[int, ...]]] = set()
    queries = hits = 0
    for prompt, salt, max_tokens in requests:
        expected = 0
        while (salt, tuple(prompt[: expected + SIZE])) in known and expected + SIZE < len(prompt):
            expected += SIZE

        output = generate(engine, prompt, max_tokens, salt=salt)

        assert output.cached == expected
        queries += len(prompt)
        hits += expected
        # The last token is not computed.
        text = prompt + written(prompt, max_tokens - 1)
        known |= {(salt, tuple(text[:end])) for end in range(SIZE, len(text) + 1, SIZE)}
    stats = engine.stats()
    assert (stats.prefix_queries, stats.prefix_hits) == (queries, hits)


def test_requests_that_arrive_together_compute_their_prefix_once() -> None:
    engine = make(max_tokens=16)
    shared = [n % 50 for n in range(40)]

    for number in range(16):
        engine.add(Add(number, [*shared, number, number], Sampling(max_tokens=3)))
    outputs = finish(engine)

    for number in range(16):
        text = [token for o in outputs[number] for token in o.tokens]
        assert text == written([*shared, number, number], 3)
    stats = engine.stats()
    assert stats.prefix_hits == 15 * 40
    assert stats.step_tokens == 40 + 16 * (2 + 2)
    assert stats.prompt_tokens == 16 * 42


def test_a_cache_that_was_reset_knows_nothing() -> None:
    engine = make()
    generate(engine, [1] * 20)
    assert generate(engine, [1] * 20).cached == 16

    engine.take(ResetPrefixCache())

    assert generate(engine, [1] * 20).cached == 0


def test_without_prefix_caching_nothing_is_looked_up() -> None:
    engine = make(Options(enable_prefix_caching=False))

    assert [generate(engine, [1] * 20).cached for _ in range(2)] == [0, 0]
    assert engine.stats().prefix_queries == 0


def test_the_engine_tells_what_it_has_done() -> None:
    engine = make()
    engine.add(Add(0, [1, 2, 3], Sampling(max_tokens=3)))
    engine.add(Add(1, [4], Sampling(max_tokens=1)))

    engine.step()
    now = engine.stats()
    finish(engine)
    stats = engine.stats()

    assert (now.running, now.waiting) == (1, 0)
    assert now.kv_usage == pytest.approx(1 / 199)
    assert (stats.steps, stats.step_tokens, stats.prompt_tokens) == (3, 6, 4)
    assert engine.ready.blocks == 200
    assert engine.ready.block_size == SIZE


def test_who_was_preempted_by_a_step_that_was_lost_goes_on() -> None:
    prompts = [list(range(8)), list(range(20, 28))]

    def begin() -> tuple[Engine, FakeRunner]:
        runner = FakeRunner(blocks=7, block_size=SIZE, overlaps=True)
        engine = Engine(runner, FakeSampler(runner), Options())
        for number, prompt in enumerate(prompts):
            engine.add(Add(number, prompt, Sampling(max_tokens=9)))
        return engine, runner

    twin, _ = begin()
    steps = 0
    while not twin.stats().preemptions:
        twin.step()
        steps += 1
    engine, runner = begin()
    tokens = [o.tokens[0] for _ in range(steps - 1) for o in engine.step() if o.number == 1]
    runner.broken = 1
    with pytest.raises(RuntimeError):
        engine.step()

    (lost,) = engine.fail("lost").outputs

    assert lost.number == 0
    assert engine.stats().preemptions == 1
    tokens += [o.tokens[0] for o in finish(engine)[1]]
    assert tokens == written(prompts[1], 9)
