"""Hugging Face folders: what is read of them, and what is wrong with damaged ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tests.unit.llm.models.families import FAMILIES, SIZES, make, save

from naiad_backends.errors import Code, NaiadError
from naiad_backends.llm.checkpoint.architecture import Architecture, Encoder
from naiad_backends.llm.checkpoint.checkpoint import open_checkpoint
from naiad_backends.llm.checkpoint.weights import Checkpoint


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make("llama"), tmp_path_factory.mktemp("llama"))


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(published, tmp_path / "llama")


def change(folder: Path, **values: Any) -> None:
    """Write other values into config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def fails(folder: Path, message: str, code: Code = Code.INVALID_ARG) -> None:
    with pytest.raises(NaiadError, match=message) as error:
        open_checkpoint(folder)
    assert error.value.code == code
    assert str(folder) in error.value.field


def test_shards_are_one_model(published: Path, tmp_path: Path) -> None:
    model = make("llama")
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1

    one, many = open_checkpoint(published), open_checkpoint(tmp_path)

    assert sorted(one.names()) == sorted(many.names())
    for name in one.names():
        np.testing.assert_array_equal(one.weight(name).float32(), many.weight(name).float32())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_kept_as_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    model = make("llama").to(dtype)
    weight = open_checkpoint(save(model, tmp_path)).weight("layers.1.up")

    assert weight.type == {torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    expected = model.model.layers[1].mlp.up_proj.weight.detach().float().numpy()
    np.testing.assert_array_equal(weight.float32(), expected)


def architecture(folder: Path) -> Architecture:
    return open_checkpoint(folder).decoder


def test_rotations_as_older_files_say_them(folder: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    change(folder, rope_parameters={"rope_theta": 5e5, **scaling})
    new = architecture(folder)
    change(folder, rope_parameters=None, rope_theta=5e5, rope_scaling=scaling)
    assert architecture(folder) == new
    change(folder, rope_scaling={"type": "linear", "factor": 4.0}, rope_theta=1e4)
    plain = 1e4 ** (-np.arange(0, 12, 2) / 12) / 4
    np.testing.assert_allclose(architecture(folder).ropes[0].inv_freq, plain)


def test_yarn_stretches_the_context(folder: Path) -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    change(folder, rope_parameters=None, rope_scaling=yarn)
    assert architecture(folder).max_position == 1024


def test_what_the_author_recommends(folder: Path) -> None:
    assert open_checkpoint(folder).defaults.eos == (2,)
    generation = {"eos_token_id": [5, 6], "temperature": 0.6, "top_k": 20, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(generation))

    defaults = open_checkpoint(folder).defaults

    assert defaults.eos == (5, 6)
    assert defaults.sampling == {"temperature": 0.6, "top_k": 20}


WRONG: dict[str, tuple[dict[str, Any], str, Code]] = {
    "missing": ({"hidden_size": None}, "'hidden_size' is missing", Code.INVALID_ARG),
    "text": ({"hidden_size": "many"}, "'hidden_size' must be", Code.INVALID_ARG),
    "negative": ({"num_hidden_layers": -1}, "'num_hidden_layers' must be", Code.INVALID_ARG),
    "many layers": ({"num_hidden_layers": 10**6}, "at most 4096", Code.INVALID_ARG),
    "huge": ({"vocab_size": 10**30}, "'vocab_size' must be", Code.INVALID_ARG),
    "heads": ({"num_key_value_heads": 3}, "a divisor of 4", Code.INVALID_ARG),
    "no theta": ({"rope_parameters": {"rope_theta": "x"}}, "'rope_theta' must", Code.INVALID_ARG),
    "rope": ({"rope_parameters": {"rope_type": "new"}}, "the type 'new'", Code.UNSUPPORTED),
    "theta": ({"rope_parameters": {"rope_theta": 0}}, "a number above 1", Code.INVALID_ARG),
    "infinite": ({"rms_norm_eps": 10**400}, "'rms_norm_eps' must be", Code.INVALID_ARG),
    "no part": ({"partial_rotary_factor": 1e30}, "an even part", Code.INVALID_ARG),
    "no scale": ({"model_type": "granite", "logits_scaling": 0}, "above 0", Code.INVALID_ARG),
    "no slope": (
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8,
                "low_freq_factor": 4,
                "high_freq_factor": 4,
            }
        },
        "'high_freq_factor' must be a number above 4",
        Code.INVALID_ARG,
    ),
    "factor": ({"rope_parameters": {"rope_type": "linear"}}, "'factor' is", Code.INVALID_ARG),
    "type": ({"model_type": "mamba"}, "models of the type 'mamba'", Code.UNSUPPORTED),
    "class": (
        {"architectures": ["LlamaForSequenceClassification"]},
        "the architecture 'LlamaForSequenceClassification'",
        Code.UNSUPPORTED,
    ),
    "quantized": ({"quantization_config": {"quant_method": "gptq"}}, "by 'gptq'", Code.UNSUPPORTED),
    "activation": ({"hidden_act": "tanh"}, "the activation 'tanh'", Code.UNSUPPORTED),
    "vocabulary": ({"vocab_size": 98}, r"'embed' has shape \[97, 48\]", Code.INVALID_ARG),
    "layers": ({"num_hidden_layers": 4}, "'layers.3.attn_norm' is missing", Code.INVALID_ARG),
}


@pytest.mark.parametrize(("values", "message", "code"), WRONG.values(), ids=WRONG)
def test_a_wrong_configuration(
    folder: Path, values: dict[str, Any], message: str, code: Code
) -> None:
    change(folder, **values)
    fails(folder, message, code)


def test_a_configuration_that_is_no_object(folder: Path) -> None:
    for content in ("", "[1]", "{", "[" * 100_000):
        (folder / "config.json").write_text(content)
        fails(folder, "it")


def rewrite(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    path.unlink()
    save_file(tensors, path)


def test_a_missing_weight(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    fails(folder, "'layers.1.up' is missing")


def test_a_weight_of_another_shape(folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(folder, lambda tensors: tensors.update({name: np.zeros((3, 48), np.float32)}))
    fails(folder, r"'layers.1.up' has shape \[3, 48\], and the model needs \[80, 48\]")


def test_a_weight_of_another_type(folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(folder, lambda tensors: tensors.update({name: np.zeros((80, 48), np.int8)}))
    with pytest.raises(NaiadError, match="has the type I8"):
        open_checkpoint(folder).weight("layers.1.up")


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    fails(folder, "no .*safetensors file", Code.NOT_FOUND)


def test_a_shard_that_is_missing_or_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    for name, code in (("a.safetensors", Code.NOT_FOUND), ("../a", Code.INVALID_ARG)):
        index.write_text(json.dumps({"weight_map": {"x": name}}))
        fails(folder, "a", code)
    index.write_text("[]")
    fails(folder, "'weight_map'")


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10_000), st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255))))
def test_any_bytes_are_read_or_refused(
    folder: Path, published: Path, length: int, changes: list[tuple[int, int]]
) -> None:
    content = bytearray((published / "model.safetensors").read_bytes())
    if length < 5000:
        content = content[:length]
    for place, value in changes:
        if place < len(content):
            content[place] = value
    (folder / "model.safetensors").write_bytes(content)

    try:
        checkpoint = open_checkpoint(folder)
        for name in checkpoint.names():
            checkpoint.weight(name).data.tobytes()
    except NaiadError:
        pass


def test_nothing_to_open(tmp_path: Path) -> None:
    fails(tmp_path, "neither", Code.NOT_FOUND)
    fails(tmp_path / "x", "no such", Code.NOT_FOUND)
    (tmp_path / "a.gguf").write_bytes(b"")
    (tmp_path / "b.gguf").write_bytes(b"")
    fails(tmp_path, "several GGUF files: a.gguf, b.gguf")


def test_an_unknown_load_format(tmp_path: Path) -> None:
    with pytest.raises(NaiadError, match="'new' is not one of auto, dummy"):
        open_checkpoint(tmp_path, "new")


ENCODERS: dict[str, tuple[Callable[..., Any], Callable[..., Any], int]] = {
    "bert": (transformers.BertConfig, transformers.BertModel, 0),
    "roberta": (transformers.RobertaConfig, transformers.RobertaModel, 2),
    "xlm-roberta": (transformers.XLMRobertaConfig, transformers.XLMRobertaModel, 2),
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_encoders(kind: str, tmp_path: Path) -> None:
    config, model, offset = ENCODERS[kind]
    sizes = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 50, "pad_token_id": 1}
    own = model(config(num_hidden_layers=2, num_attention_heads=4, **sizes))
    save(own, tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "models.Pooling"}]))

    checkpoint = open_checkpoint(tmp_path)

    encoder = checkpoint.architecture
    assert isinstance(encoder, Encoder)
    assert (encoder.position_offset, encoder.max_position) == (offset, 512 - offset)
    assert (encoder.pooling, encoder.normalize) == ("cls", False)
    up = checkpoint.weight("layers.1.up.bias").float32()
    np.testing.assert_array_equal(up, own.encoder.layer[1].intermediate.dense.bias.detach())
    with pytest.raises(NaiadError, match="text from an encoder"):
        _ = checkpoint.decoder


def numbers(checkpoint: Checkpoint) -> dict[str, Any]:
    return {name: checkpoint.weight(name).float32() for name in checkpoint.names()}


@pytest.mark.parametrize("name", FAMILIES)
def test_dummy_weights_need_only_the_configuration(name: str, tmp_path: Path) -> None:
    config, own = FAMILIES[name]
    config(**{**SIZES, **own}).save_pretrained(tmp_path)

    weights = numbers(open_checkpoint(tmp_path, "dummy"))

    assert all(np.isfinite(weight).all() for weight in weights.values())
    assert 0.015 < weights["layers.0.up"].std() < 0.025
    again = numbers(open_checkpoint(tmp_path, "dummy"))
    assert all((weights[key] == again[key]).all() for key in weights)
