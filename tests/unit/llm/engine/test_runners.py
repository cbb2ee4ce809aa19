"""Which runner a model gets, and what is refused before any weight is read."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.llm.models.families import make, save
from tests.unit.llm.models.test_families import OPTIONS

from naiad_backends.errors import Code, NaiadError
from naiad_backends.llm.checkpoint.checkpoint import open_checkpoint
from naiad_backends.llm.checkpoint.weights import Checkpoint
from naiad_backends.llm.engine.runners import make_runner


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(save(make("llama"), tmp_path_factory.mktemp("llama")))


@pytest.mark.parametrize(
    ("options", "message", "field"),
    [
        ({"dtype": "int8"}, "'int8' is not one of", "dtype"),
        ({"kv_cache_dtype": "x"}, "'x' is not one of", "kv_cache_dtype"),
        ({"cpu_kernels": "fast"}, "'fast' is not one of", "cpu_kernels"),
        ({"max_model_len": 257}, "257 is more than the 256 tokens", "max_model_len"),
        (
            {"kv_cache_memory_bytes": 50_000, "block_size": 16},
            r"256 tokens needs 0.1 MiB of KV cache, .* max_model_len to 64 or less",
            "kv_cache_memory_bytes",
        ),
    ],
)
def test_options_that_do_not_fit(
    checkpoint: Checkpoint, options: dict[str, Any], message: str, field: str
) -> None:
    with pytest.raises(NaiadError, match=message) as error:
        make_runner(checkpoint, replace(OPTIONS, **options))
    assert (error.value.code, error.value.field) == (Code.INVALID_ARG, field)


def test_the_cache_has_what_all_sequences_can_use_and_no_more(checkpoint: Checkpoint) -> None:
    options = replace(OPTIONS, max_num_seqs=2, max_model_len=10, kv_cache_memory_bytes=0)
    runner = make_runner(checkpoint, options)
    assert (runner.blocks, runner.block_size, runner.max_model_len) == (7, 4, 10)


def test_without_a_compiler_torch_runs_the_model(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PATH", "")
    options = replace(OPTIONS, cpu_kernels="auto", block_size=16)
    with caplog.at_level(logging.WARNING):
        runner = make_runner(checkpoint, options, built=tmp_path)
    assert runner.description.startswith("torch")
    assert "the model runs on torch's operators" in caplog.text

    with pytest.raises(NaiadError) as error:
        make_runner(checkpoint, replace(options, cpu_kernels="native"), built=tmp_path)
    assert error.value.code == Code.UNSUPPORTED


def test_torch_keeps_keys_and_values_in_float32_only(checkpoint: Checkpoint) -> None:
    with pytest.raises(NaiadError, match="a KV cache of float16") as error:
        make_runner(checkpoint, replace(OPTIONS, kv_cache_dtype="float16"))
    assert (error.value.code, error.value.field) == (Code.UNSUPPORTED, "kv_cache_dtype")
