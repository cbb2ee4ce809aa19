"""Every family's logits are those of transformers on the same weights."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.unit.llm.models.families import FAMILIES, logits, make, save
from tests.unit.llm.models.stepping import Stepper, Text
from torch import Tensor

from naiad_backends.llm.checkpoint.checkpoint import open_checkpoint
from naiad_backends.llm.engine.runner import Runner
from naiad_backends.llm.engine.runners import make_runner
from naiad_backends.llm.models import linear, runner
from naiad_backends.llm.options import Options

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
OPTIONS = Options(
    dtype="float32", cpu_kernels="torch", block_size=4, kv_cache_memory_bytes=8 << 20, threads=1
)
TOKENS = torch.randint(3, 97, (60,), generator=torch.Generator().manual_seed(1)).tolist()


def runner_of(folder: Path, max_model_len: int = 0) -> Runner:
    options = replace(OPTIONS, max_model_len=max_model_len)
    return make_runner(open_checkpoint(folder), options)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tests run beside each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = make(name)
    expected = logits(model, TOKENS)
    # Up to 64 tokens the short factors of `longrope` are in use.
    stepper = Stepper(runner_of(save(model, tmp_path), 64))

    one, two = Text(), Text()
    whole = stepper.step((one, TOKENS))[0]
    assert_equal(whole, expected)

    # In parts, while the other one's tokens come one by one.
    begun = stepper.step((two, TOKENS[:13]))[0]
    three = Text()
    steps = [
        stepper.step((two, [token]), (three, TOKENS[i * 11 : i * 11 + 11]))
        for i, token in enumerate(TOKENS[13:18])
    ]
    assert_equal(begun, expected[:13])
    assert_equal(torch.cat([a for a, _ in steps]), expected[13:18])
    assert_equal(torch.cat([b for _, b in steps]), expected[:55])

    # Texts of different lengths with one token each, some of them or more.
    last = stepper.step((three, TOKENS[55:56]), (two, TOKENS[18:19]))
    assert_equal(torch.cat(last), expected[[55, 18]])
    last = stepper.step((two, TOKENS[19:20]), (Text(), TOKENS[:1]), (three, TOKENS[56:57]))
    assert_equal(torch.cat(last), expected[[19, 0, 56]])


def test_long_contexts_have_rotations_of_their_own(tmp_path: Path) -> None:
    model = make("phi3-long")
    tokens = [*TOKENS, *TOKENS]
    stepper = Stepper(runner_of(save(model, tmp_path)))

    whole = stepper.step((Text(), tokens))[0]

    assert_equal(whole, logits(model, tokens))


def test_products_that_torch_cannot_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OneDnn(linear.Bfloat16):
        """The same operators, in numbers that every CPU can multiply."""

        dtype = torch.float32

    monkeypatch.setattr(runner, "linear_for", lambda dtype: OneDnn)
    model = make("llama-biased")
    stepper, text = Stepper(runner_of(save(model, tmp_path))), Text()

    found = [stepper.step((text, [token]))[0] for token in TOKENS[:4]]

    assert_equal(torch.cat(found), logits(model, TOKENS)[:4])


@pytest.mark.parametrize("name", ["llama-biased", "gemma3"])
def test_weights_of_16_bits_are_close(name: str, tmp_path: Path) -> None:
    model = make(name)
    checkpoint = open_checkpoint(save(model, tmp_path))
    stepper = Stepper(make_runner(checkpoint, replace(OPTIONS, dtype="auto")))

    whole = stepper.step((Text(), TOKENS))[0]

    torch.testing.assert_close(whole, logits(model, TOKENS), rtol=2e-2, atol=2e-2)
