"""GGUF files of every architecture give the logits of the models that they were made of."""

from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from tests.unit.llm.models.families import logits, make
from tests.unit.llm.models.stepping import Stepper, Text
from tests.unit.llm.models.test_families import OPTIONS, TOKENS, assert_equal, runner_of
from tests.unit.llm.models.writing import write_gguf

from naiad_backends.llm.checkpoint.checkpoint import open_checkpoint
from naiad_backends.llm.engine.runners import make_runner

NAMES = [
    "llama",
    "llama-tied",
    "llama-biased",
    "llama-3",
    "llama-linear",
    "mistral",
    "qwen2",
    "qwen2-yarn",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "phi3-window",
    "phi3-partial",
    "phi3-long",
]


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_model(name: str, tmp_path: Path) -> None:
    # The file does not have this scale: llama.cpp knows it.
    scale = {"query_pre_attn_scalar": 16} if name.startswith("gemma") else {}
    model = make(name, **scale)
    path = write_gguf(model, tmp_path / "model.gguf")

    stepper = Stepper(runner_of(path, 64))

    assert_equal(stepper.step((Text(), TOKENS))[0], logits(model, TOKENS))
    assert open_checkpoint(path).defaults.eos == (2,)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"])
def test_packed_weights_are_those_that_the_library_unpacks(kind: str, tmp_path: Path) -> None:
    """In float32 nothing is lost but what the file has lost."""
    model = make("llama", hidden_size=64, intermediate_size=96)
    path = write_gguf(model, tmp_path / "model.gguf", kind)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                packed = gguf.quantize(parameter.numpy(), gguf.GGMLQuantizationType[kind])
                unpacked = gguf.dequantize(packed, gguf.GGMLQuantizationType[kind])
                parameter.copy_(torch.from_numpy(unpacked))

    expected = logits(model, TOKENS)

    exact = Stepper(runner_of(path)).step((Text(), TOKENS))[0]
    fast = make_runner(open_checkpoint(path), replace(OPTIONS, dtype="auto"))

    assert_equal(exact, expected)
    torch.testing.assert_close(
        Stepper(fast).step((Text(), TOKENS))[0], expected, rtol=0.1, atol=0.3
    )
