"""SmolLM2 as its GGUF file has it, unpacked, writes what transformers writes."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from benchmarks.llm.convert import unpacked
from tests.unit.llm.models.stepping import Stepper, Text
from tests.unit.llm.models.test_families import OPTIONS

from naiad_backends.llm.checkpoint.checkpoint import open_checkpoint
from naiad_backends.llm.checkpoint.weights import Checkpoint
from naiad_backends.llm.engine.runners import make_runner

PROMPT = [1, 4093, 198, 2683, 359, 253, 5356, 5646, 11173, 2, 198, 1, 520, 9531, 198, 504]
PROMPT += [3575, 282]
GREEDY = [
    260,
    1797,
    1918,
    314,
    1315,
    2863,
    4206,
    30,
    2,
    198,
    2,
    1,
    9690,
    198,
    2,
    198,
    1,
    4093,
    198,
    57,
    5248,
    3946,
    288,
    7198,
    253,
    725,
    1406,
    281,
    260,
    2342,
    30,
    1812,
    3301,
    868,
    339,
    1188,
    288,
    2381,
    253,
    3424,
    7198,
    47,
    2,
    198,
    1,
    520,
    9531,
    198,
    2068,
    7198,
    253,
    3424,
    1406,
    281,
    260,
    2342,
    28,
    357,
    506,
    1895,
    288,
    457,
    253,
    4367,
    1252,
    284,
    253,
    876,
    29,
    25733,
    2424,
    30,
    3508,
    28,
    5879,
    469,
    1406,
    506,
    2370,
    5936,
    284,
    260,
    2342,
    346,
    2316,
    13048,
    30,
    669,
    523,
    724,
    346,
    3346,
    260,
    1450,
    8162,
    8247,
    284,
    12330,
    288,
    722,
    30,
    198,
    198,
    8693,
    28,
    2662,
    2342,
    1151,
    288,
    1044,
    469,
    6445,
    28,
    2342,
    6165,
    28,
    284,
    1566,
    6348,
    30,
    669,
    523,
    724,
    346,
    2669,
    10134,
    281,
    260,
    2342,
    284,
    1464,
    253,
    2116,
    9417,
    20723,
    30,
    1206,
    3060,
    597,
    737,
    288,
    799,
    253,
    1861,
    1252,
    338,
    17314,
    469,
    3949,
    28,
    2370,
    5936,
    28,
    8162,
    4799,
    28,
    16426,
    28,
    284,
    3216,
    18812,
    30,
    198,
    198,
    2696,
    28,
    1303,
    506,
    3015,
    563,
    260,
    7198,
    980,
    30,
    669,
    314,
    837,
    346,
    3060,
    1593,
    335,
    22832,
    469,
    1252,
    30,
    1206,
    3060,
    737,
    288,
    1464,
    253,
    7198,
    1252,
    338,
    17314,
    260,
    17239,
    28,
    6050,
    28,
]
"""What follows."""


@pytest.fixture(scope="module")
def checkpoint(example_repository: Path) -> Iterator[Checkpoint]:
    threads = torch.get_num_threads()
    yield open_checkpoint(example_repository / "smollm2" / "1")
    torch.set_num_threads(threads)


@torch.inference_mode()
def test_greedy_text_of_200_tokens_is_that_of_transformers(checkpoint: Checkpoint) -> None:
    """Each token is the best one behind those before it: so both write this text, and to look at
    many of its places in one step is to write it."""
    tokens = PROMPT + GREEDY[:-1]
    options = replace(OPTIONS, max_model_len=256, kv_cache_memory_bytes=64 << 20)
    stepper, text = Stepper(make_runner(checkpoint, options)), Text()
    ends = [len(PROMPT), *range(len(PROMPT) + 1, 25), 40, 77, 130, len(tokens)]
    parts = [tokens[start:end] for start, end in pairwise([0, *ends])]
    ours = torch.cat([stepper.step((text, part))[0] for part in parts])

    theirs = unpacked(checkpoint)(torch.tensor([tokens])).logits[0]

    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-3)
    assert theirs[len(PROMPT) - 1 :].argmax(-1).tolist() == GREEDY
    assert ours[len(PROMPT) - 1 :].argmax(-1).tolist() == GREEDY


@torch.inference_mode()
def test_weights_of_8_bits_choose_nearly_the_same(checkpoint: Checkpoint) -> None:
    """On a text, the distance between what both expect next, in nats."""
    tokens = PROMPT + GREEDY
    options = replace(OPTIONS, max_model_len=256, kv_cache_memory_bytes=64 << 20)
    exact, packed = (
        Stepper(make_runner(checkpoint, replace(options, dtype=dtype))).step((Text(), tokens))[0]
        for dtype in ("float32", "auto")
    )

    expected, got = torch.log_softmax(exact, -1), torch.log_softmax(packed, -1)

    # Activations have a bit less where the CPU has no VNNI.
    divergence = float((expected.exp() * (expected - got)).sum(-1).mean())
    assert 1e-5 < divergence < (0.01 if torch.cpu._is_vnni_supported() else 0.02), divergence
