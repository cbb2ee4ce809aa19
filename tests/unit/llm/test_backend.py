"""Configurations that a language model cannot be loaded with."""

import json
from importlib import metadata
from pathlib import Path

import pytest

from naiad_backends.api import ModelSpec
from naiad_backends.errors import Code, NaiadError
from naiad_backends.llm import backend
from naiad_backends.llm.backend import LlmBackend

DECODER = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
ENCODER = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}


@pytest.mark.parametrize(
    ("model", "decoupled", "batch", "field"),
    [
        (DECODER, True, 8, "max_batch_size"),
        (DECODER, False, 0, "model_transaction_policy.decoupled"),
        (ENCODER, False, 0, "max_batch_size"),
        (ENCODER, True, 8, "model_transaction_policy.decoupled"),
    ],
)
def test_what_does_not_fit_the_kind_of_model_fails_the_load(
    model: dict[str, object], decoupled: bool, batch: int, field: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(model))
    options = {"load_format": "dummy"}
    spec = ModelSpec(
        "m", 1, tmp_path, max_batch_size=batch, decoupled=decoupled, parameters=options
    )
    with pytest.raises(NaiadError) as caught:
        LlmBackend({}).load(spec)
    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARG, field)
    assert caught.value.hint


def test_gpus_that_nothing_can_use_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(backend, "_nvidia", lambda: 2)
    monkeypatch.setattr(metadata, "version", lambda name: "2.11.0+cu130")
    assert list(LlmBackend({}).gpus()) == [0, 1]
    assert not caplog.text

    monkeypatch.setattr(metadata, "version", missing)
    assert list(LlmBackend({}).gpus()) == []
    assert "pip install 'naiad[torch]'" in caplog.text
