"""The native runner of each kind of CPU against a decoder in 64-bit floats, switch by switch."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from tests.unit.llm.native import decoder
from tests.unit.llm.native.decoder import ROPE, TINY, variant
from tests.unit.llm.native.steps import Driver, make_step

from naiad_backends.errors import NaiadError
from naiad_backends.llm.checkpoint.architecture import Architecture, Layer, Rope
from naiad_backends.llm.native.runner import NativeRunner

pytestmark = pytest.mark.usefixtures("variant")

Runners = Callable[..., NativeRunner]

PARTIAL = Rope(8, ROPE.inv_freq[:4], scale=1.2)
INTERLEAVED = Rope(16, ROPE.inv_freq, interleaved=True)

SWITCHES = {
    "plain": TINY,
    "own head": variant(tied=False),
    "norm offset": variant(norm_offset=1.0),
    "post norms": variant(post_norm=True, norm_offset=1.0),
    "post norms only": variant(post_norm=True, pre_norm=False),
    "qk norm": variant(qk_norm=True),
    "biases": variant(qkv_bias=True, output_bias=True, mlp_bias=True),
    "gelu by tanh": variant(activation="gelu_tanh"),
    "gelu": variant(activation="gelu"),
    "softcaps": variant(score_softcap=2.0, logit_softcap=3.0),
    "scales": variant(
        embedding_scale=3.0, residual_scale=0.5, logit_scale=0.25, attention_scale=0.4
    ),
    "windows": variant(layers=(Layer(window=7), Layer(window=150), Layer())),
    "ropes": variant(
        ropes=(ROPE, PARTIAL, INTERLEAVED),
        layers=(Layer(), Layer(rope=1), Layer(rope=2), Layer(rope=None)),
    ),
    "odd sizes": variant(
        vocab_size=77,
        hidden_size=36,
        intermediate_size=50,
        num_heads=3,
        num_kv_heads=1,
        head_dim=12,
        ropes=(Rope(12, ROPE.inv_freq[:6]),),
    ),
    "many heads": variant(num_heads=14, num_kv_heads=1),
    "large heads": variant(
        num_heads=2,
        num_kv_heads=2,
        head_dim=80,
        ropes=(Rope(80, tuple(np.geomspace(1, 1e-4, 40).tolist())),),
    ),
}


def some_tokens(architecture: Architecture, count: int, seed: int = 1) -> list[int]:
    random = np.random.default_rng(seed)
    return [int(i) for i in random.integers(0, architecture.vocab_size, count)]


def error(ours: npt.NDArray[np.float32], reference: npt.NDArray[np.float64]) -> float:
    """The greatest difference, measured by the size of the reference."""
    return float(np.abs(ours - reference).max() / np.abs(reference).std())


def typical_error(ours: npt.NDArray[np.float32], reference: npt.NDArray[np.float64]) -> float:
    """The median: a number on the edge between two steps may be rounded to either."""
    return float(np.median(np.abs(ours - reference)) / np.abs(reference).std())


@pytest.mark.parametrize("architecture", SWITCHES.values(), ids=SWITCHES.keys())
def test_logits_are_those_of_the_reference(architecture: Architecture, runner: Runners) -> None:
    point = decoder.checkpoint(architecture)
    tokens = some_tokens(architecture, 200)

    logits = Driver(runner(point)).whole(tokens)

    assert error(logits, decoder.logits(point, tokens)) < 2e-5


def test_the_kernels_are_those_that_are_meant(variant: str, runner: Runners) -> None:
    names = {"avx512-vnni": "(AVX-512 VNNI)", "x86-64-v3": "(AVX2)", "portable": "(portable)"}

    assert names[variant] in runner(decoder.checkpoint(TINY)).description


@pytest.mark.parametrize("type_", ["F16", "BF16"])
def test_short_floats_are_kept_as_they_are(type_: str, runner: Runners) -> None:
    point = decoder.checkpoint(TINY, type_)
    tokens = some_tokens(TINY, 50)

    logits = Driver(runner(point, kv_cache_dtype="float32")).whole(tokens)

    assert error(logits, decoder.logits(point, tokens)) < 2e-5


@pytest.mark.parametrize("type_", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"])
def test_quantized_weights_are_exact(type_: str, runner: Runners) -> None:
    """But for the roundings that the reference makes too."""
    point = decoder.checkpoint(TINY, type_)
    tokens = some_tokens(TINY, 12)

    logits = Driver(runner(point, kv_cache_dtype="float32")).whole(tokens)

    assert typical_error(logits, decoder.logits(point, tokens, rounded=True)) < 1e-5
    assert error(logits, decoder.logits(point, tokens)) < 0.2


WIDE = variant(hidden_size=256, intermediate_size=256, num_heads=16)


@pytest.mark.parametrize(
    ("type_", "limit"),
    [("Q4_K", 0.005), ("Q5_K", 0.005), ("Q6_K", 0.1), ("Q2_K", 0.1), ("Q3_K", 0.1)],
)
def test_k_quants_lose_little(type_: str, limit: float, runner: Runners) -> None:
    """Products of scales are rounded to half floats; groups of 16, here with scales as different
    as can be, are joined and rounded to 8 bits."""
    point = decoder.checkpoint(WIDE, type_)
    tokens = some_tokens(WIDE, 40)

    logits = Driver(runner(point, kv_cache_dtype="float32")).whole(tokens)

    assert typical_error(logits, decoder.logits(point, tokens, rounded=True)) < limit


def test_a_file_may_mix_types(runner: Runners) -> None:
    types = {"embed": "Q8_0", "v": "Q8_0", "o": "BF16", "up": "F16", "down": "Q5_0"}
    point = decoder.checkpoint(TINY, "Q4_1", types)
    tokens = some_tokens(TINY, 12)

    logits = Driver(runner(point, kv_cache_dtype="float32")).whole(tokens)

    assert typical_error(logits, decoder.logits(point, tokens, rounded=True)) < 1e-5


def test_float32_dequantizes(runner: Runners) -> None:
    point = decoder.checkpoint(TINY, "Q4_1", {"embed": "Q8_0"})
    tokens = some_tokens(TINY, 40)

    logits = Driver(runner(point, dtype="float32")).whole(tokens)

    assert error(logits, decoder.logits(point, tokens)) < 2e-5


@pytest.mark.parametrize(("dtype", "limit"), [("float16", 0.01), ("bfloat16", 0.05)])
def test_the_cache_may_be_short(dtype: str, limit: float, runner: Runners) -> None:
    point = decoder.checkpoint(TINY)
    tokens = some_tokens(TINY, 100)

    logits = Driver(runner(point, kv_cache_dtype=dtype)).whole(tokens)

    assert error(logits, decoder.logits(point, tokens)) < limit


BATCH = {
    "4 bits": (SWITCHES["plain"], "Q4_1", 32),
    "8 bits": (SWITCHES["plain"], "Q8_0", 16),
    "floats": (SWITCHES["plain"], "F32", 32),
    "bfloat16": (SWITCHES["plain"], "BF16", 128),
    "windows": (SWITCHES["windows"], "Q4_0", 16),
    "odd heads": (SWITCHES["many heads"], "Q4_1", 64),
}


@pytest.mark.parametrize(("architecture", "type_", "block_size"), BATCH.values(), ids=BATCH.keys())
def test_a_row_never_depends_on_its_neighbours(
    architecture: Architecture, type_: str, block_size: int, runner: Runners
) -> None:
    """The same bits: alone or in a batch, in one step or in many, on one thread or two."""
    point = decoder.checkpoint(architecture, type_)
    options = {"block_size": block_size, "max_num_batched_tokens": 512}
    lengths = [1, 2, 15, 16, 17, 31, 33, 127, 128, 129, 290]
    texts = [some_tokens(architecture, n, seed=n) for n in lengths]
    alone = Driver(runner(point, threads=1, **options))
    expected = [alone.whole(tokens) for tokens in texts]
    together = Driver(runner(point, threads=2, **options), seed=5)

    for tokens, logits in zip(texts, expected, strict=True):
        for size in (1, 5, 64):
            if len(tokens) < 40 or size == 64:
                assert (together.pieces(tokens, size) == logits).all()
    sequences = [together.text(tokens) for tokens in texts]
    while work := [
        (s, min(37, len(s.tokens) - s.computed)) for s in sequences if s.computed < len(s.tokens)
    ]:
        before = [s.computed for s, _ in work]
        for (s, _), at, logits in zip(work, before, together.run(work), strict=True):
            assert (logits == expected[sequences.index(s)][at : s.computed]).all()


def test_decoding_beside_others_changes_nothing(runner: Runners) -> None:
    point = decoder.checkpoint(TINY, "Q4_1")
    one = Driver(runner(point, max_num_batched_tokens=512))
    texts = [some_tokens(TINY, 100 + 13 * i, seed=i) for i in range(9)]
    expected = [one.whole(tokens)[-20:] for tokens in texts]

    for count in (1, 2, 3, 4, 5, 9):
        sequences = [one.text(tokens) for tokens in texts[:count]]
        for s in sequences:
            one.run([(s, len(s.tokens) - 20)])
        for i in range(20):
            found = one.run([(s, 1) for s in sequences])
            assert all((x[0] == e[i]).all() for x, e in zip(found, expected, strict=False))
        for s in sequences:
            one.free += s.blocks


def test_logits_of_some_rows(runner: Runners) -> None:
    point = decoder.checkpoint(TINY, "Q4_1")
    driver = Driver(runner(point))
    tokens = some_tokens(TINY, 50)
    expected = driver.whole(tokens)
    step = make_step([(driver.text(tokens), 50)], driver.runner.block_size)

    step.rows = np.array([3, 49], np.int32)
    assert (driver.runner.forward(step) == expected[[3, 49]]).all()
    step.rows = np.array([], np.int32)
    assert driver.runner.forward(step).shape == (0, TINY.vocab_size)


def test_what_a_block_s_last_owner_left_does_no_harm(runner: Runners) -> None:
    """Infinities, here: without a norm before, token 99 is too large for the cache."""
    point = decoder.checkpoint(SWITCHES["post norms only"])
    point.weight("embed").data[99] *= 1e30
    tokens = [t % 99 for t in some_tokens(TINY, 45)]
    driver = Driver(runner(point, kv_cache_dtype="float16"))
    expected = driver.whole(tokens)
    poisoned = driver.text([99] * 64)
    driver.run([(poisoned, 64)])

    driver.free += poisoned.blocks
    assert (driver.whole(tokens) == expected).all()
    driver.free += poisoned.blocks
    assert (driver.pieces(tokens, 1) == expected).all()


def test_a_step_that_does_not_fit_is_an_error(runner: Runners) -> None:
    one = runner(decoder.checkpoint(TINY), max_num_batched_tokens=64)
    driver = Driver(one)

    def broken(name: str, value: Sequence[object]) -> None:
        step = make_step([(driver.text([1, 2, 3]), 3)], one.block_size)
        setattr(step, name, np.array(value, np.int32))
        with pytest.raises(NaiadError, match="do not belong together"):
            one.forward(step)

    broken("tokens", [1, 2, 100])
    broken("tokens", [1, 2, -1])
    broken("tokens", [1, 2])
    broken("slots", [1, 2, one.blocks * one.block_size])
    broken("rows", [3])
    broken("starts", [0, 2])
    broken("starts", [0, 0, 3])
    broken("blocks", [[one.blocks]])
    broken("lengths", [1000])
    broken("positions", [5, 6, 7])
    with pytest.raises(NaiadError, match="do not belong together"):
        driver.whole([1] * 65)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 8}, "blocks have 16, 32, 64, 128 tokens"),
        ({"kv_cache_memory_bytes": 1000}, "one sequence of 512 tokens needs"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, object], message: str, runner: Runners) -> None:
    with pytest.raises(NaiadError, match=message):
        runner(decoder.checkpoint(TINY), **options)


def test_a_closed_runner_says_so(runner: Runners) -> None:
    driver = Driver(runner(decoder.checkpoint(TINY)))
    driver.runner.close()

    with pytest.raises(NaiadError, match="closed"):
        driver.whole([1])
