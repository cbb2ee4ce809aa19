"""A rotated decoder computes the same, from activations that 8 bits hold."""

from pathlib import Path

import pytest
import torch
from tests.unit.llm.models.families import FAMILIES, make, save
from tests.unit.llm.native.steps import Driver
from torch import Tensor

from naiad_backends.llm.checkpoint.checkpoint import open_checkpoint
from naiad_backends.llm.checkpoint.weights import Checkpoint
from naiad_backends.llm.models import linear, runner
from naiad_backends.llm.models.rotation import apply, can_rotate, orthogonal
from naiad_backends.llm.models.runner import TorchRunner
from naiad_backends.llm.options import Options

TOKENS = torch.randint(3, 97, (40,), generator=torch.Generator().manual_seed(1)).tolist()


def logits(checkpoint: Checkpoint, tokens: list[int], dtype: str = "auto") -> Tensor:
    options = Options(dtype=dtype, kv_cache_memory_bytes=400 << 20)
    return torch.from_numpy(
        Driver(TorchRunner(checkpoint, options)).pieces(tokens, len(tokens) - 3)
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(save(make(name), tmp_path))
    if not can_rotate(checkpoint.decoder):
        assert name.startswith("gemma")
        return
    wanted = logits(checkpoint, TOKENS, "float32")
    monkeypatch.setattr(runner, "_wants_8_bits", lambda *_: True)
    monkeypatch.setattr(runner, "Int8", linear.Float32)
    torch.testing.assert_close(logits(checkpoint, TOKENS), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 48, 63, 64, 100, 576, 4864])
def test_a_rotation_spreads_one_number_over_all(size: int) -> None:
    matrix = apply(torch.eye(size), orthogonal(size))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size), rtol=1e-5, atol=1e-5)
    odd = size // (size & -size)
    assert matrix.abs().max() <= odd**0.5 / size**0.5 + 1e-6


def test_what_a_file_has_packed_has_8_bits_unless_others_are_asked_for(
    example_repository: Path, tmp_path: Path
) -> None:
    packed = open_checkpoint(example_repository / "smollm2" / "1" / "model.gguf")
    plain = open_checkpoint(save(make("llama"), tmp_path))
    for checkpoint, dtype, found in (
        (packed, "auto", linear.has_fbgemm()),
        (packed, "float32", False),
        (plain, "auto", False),
    ):
        options = Options(dtype=dtype, kv_cache_memory_bytes=400 << 20)
        assert ("8 bits" in TorchRunner(checkpoint, options).description) == found
