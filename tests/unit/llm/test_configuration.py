"""Options of a model, from its configuration and from a model.json of Triton's vLLM backend."""

import json
from pathlib import Path
from typing import Any

import pytest

from naiad_backends.api import ModelSpec
from naiad_backends.errors import Code, NaiadError
from naiad_backends.llm.configuration import location, options
from naiad_backends.llm.options import Options


def spec(folder: Path, **parameters: str) -> ModelSpec:
    return ModelSpec("m", 1, folder, parameters=parameters)


def write(folder: Path, document: Any) -> None:
    (folder / "model.json").write_text(json.dumps(document))


def test_nothing_said(tmp_path: Path) -> None:
    assert options(spec(tmp_path)) == Options()


def test_both_may_speak_and_the_configuration_has_the_last_word(tmp_path: Path) -> None:
    given = {"model": "weights", "max_num_seqs": 4, "enforce_eager": True}
    write(tmp_path, {**given, "gpu_memory_utilization": 0.5, "tensor_parallel_size": 1})
    chosen = options(spec(tmp_path, max_num_seqs="8", enable_prefix_caching="false"))
    assert chosen == Options(
        model="weights",
        max_num_seqs=8,
        enforce_eager=True,
        gpu_memory_utilization=0.5,
        enable_prefix_caching=False,
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("max_num_seqs", "0"),
        ("max_num_seqs", "many"),
        ("max_model_len", "-1"),
        ("max_model_len", "1e3"),
        ("max_logprobs", "-2"),
        ("dtype", "int3"),
        ("enable_prefix_caching", "perhaps"),
        ("gpu_memory_utilization", "1.5"),
        ("gpu_memory_utilization", "nan"),
        ("gpu_memory_utilization", "x"),
    ],
)
def test_a_wrong_value_is_refused_by_name(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(NaiadError) as caught:
        options(spec(tmp_path, **{name: text}))
    assert caught.value.code == Code.INVALID_ARG
    assert caught.value.field == f'parameters["{name}"]'


@pytest.mark.parametrize(
    "document", [{"dtype": 5}, {"max_num_seqs": True}, {"enforce_eager": 1}, {"model": None}, []]
)
def test_a_wrong_type_in_model_json(tmp_path: Path, document: Any) -> None:
    write(tmp_path, document)
    with pytest.raises(NaiadError, match=r"model\.json"):
        options(spec(tmp_path))


def test_a_broken_model_json(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_bytes(b"\xff{")
    with pytest.raises(NaiadError, match=r"model\.json: it cannot be read"):
        options(spec(tmp_path))


def test_what_would_change_the_model_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"tensor_parallel_size": 2})
    with pytest.raises(NaiadError) as caught:
        options(spec(tmp_path))
    assert caught.value.code == Code.UNSUPPORTED
    assert options(spec(tmp_path / "other", tensor_parallel_size="1")) == Options()


def test_what_is_unknown_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options(spec(tmp_path, max_num_seq="5"))
    assert "max_num_seq" in caplog.text and "did you mean 'max_num_seqs'?" in caplog.text


def test_where_the_model_lies(tmp_path: Path) -> None:
    assert location(spec(tmp_path), Options()) == tmp_path
    named = ModelSpec("m", 1, tmp_path, filename="a.gguf")
    assert location(named, Options()) == tmp_path / "a.gguf"
    (tmp_path / "weights").mkdir()
    assert location(named, Options(model="weights")) == tmp_path / "weights"
    assert location(named, Options(model=str(tmp_path))) == tmp_path
    with pytest.raises(NaiadError, match="not fetched from a hub"):
        location(named, Options(model="facebook/opt-125m"))
