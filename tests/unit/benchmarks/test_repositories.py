"""The generated repositories are what each server reads."""

import json
from pathlib import Path

import pytest
from benchmarks import repositories
from google.protobuf import text_format

from naiad_proto.model_config_pb2 import ModelConfig

MODELS = ["identity", "magika", "minilm", "silero"]


@pytest.fixture
def onnx_files(tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "model.safetensors").write_bytes(b"numbers")
    return {name: folder / "model.onnx" for name in ("magika", "minilm", "silero")}


def _config(root: Path, model: str) -> ModelConfig:
    return text_format.Parse((root / model / "config.pbtxt").read_text(), ModelConfig())


@pytest.mark.parametrize("batching", [True, False])
def test_both_triton_forms_parse_and_batch_alike(
    tmp_path: Path, onnx_files: dict[str, Path], batching: bool
) -> None:
    repositories.write_naiad(tmp_path / "naiad", MODELS, onnx_files, batching)
    repositories.write_triton(tmp_path / "triton", MODELS, onnx_files, batching)
    for model in MODELS:
        mine, theirs = (_config(tmp_path / name, model) for name in ("naiad", "triton"))
        assert mine.input == theirs.input
        assert mine.HasField("dynamic_batching") == theirs.HasField("dynamic_batching") == batching
        assert mine.max_batch_size == theirs.max_batch_size == 64


def test_naiad_serves_the_files_with_its_own_backends(
    tmp_path: Path, onnx_files: dict[str, Path]
) -> None:
    repositories.write_naiad(tmp_path, MODELS, onnx_files, batching=False)
    backends = [_config(tmp_path, model).backend for model in MODELS]
    assert backends == ["identity", *["onnxruntime"] * 3]
    assert (tmp_path / "silero" / "1" / "model.onnx").read_bytes() == b"graph"
    assert (tmp_path / "minilm" / "1" / "model.safetensors").read_bytes() == b"numbers"
    assert (tmp_path / "identity" / "1").is_dir()


def test_a_model_once_for_each_delay(tmp_path: Path, onnx_files: dict[str, Path]) -> None:
    names = repositories.write_delays(tmp_path, "silero", onnx_files["silero"], ["500", "auto"])
    assert names == ["silero_500", "silero_auto"]
    fixed, auto = (_config(tmp_path, name) for name in names)
    assert fixed.dynamic_batching.max_queue_delay_microseconds == 500
    assert auto.HasField("dynamic_batching")
    assert auto.parameters["max_queue_delay_microseconds"].string_value == "auto"


def test_triton_runs_python_models(tmp_path: Path, onnx_files: dict[str, Path]) -> None:
    repositories.write_triton(tmp_path, MODELS, onnx_files, batching=False)
    assert {_config(tmp_path, model).backend for model in MODELS} == {"python"}
    assert "InferenceSession" in (tmp_path / "magika" / "1" / "model.py").read_text()


def test_streams_are_sequences_in_both(tmp_path: Path, onnx_files: dict[str, Path]) -> None:
    for name in ("naiad", "triton"):
        repositories.write_streams(tmp_path / name, name, onnx_files["silero"])
    mine, theirs = (_config(tmp_path / name, "streams") for name in ("naiad", "triton"))
    assert mine.input == theirs.input
    assert mine.max_batch_size == theirs.max_batch_size == 64
    assert mine.sequence_batching.oldest == theirs.sequence_batching.oldest
    assert [state.output_name for state in mine.sequence_batching.state] == [
        "state_out",
        "context_out",
    ]
    assert not theirs.sequence_batching.state
    assert (tmp_path / "triton" / "streams" / "1" / "model.py").is_file()


def test_mlserver_settings(tmp_path: Path, onnx_files: dict[str, Path]) -> None:
    repositories.write_mlserver(tmp_path, MODELS, onnx_files)
    settings = json.loads((tmp_path / "silero" / "model-settings.json").read_text())
    assert settings["implementation"] == "mlserver_runtime.Onnx"
    assert settings["parameters"]["uri"] == str(onnx_files["silero"].resolve())


def test_python_models_are_the_same_but_for_where_they_run(tmp_path: Path) -> None:
    for name, execution in (("triton", ""), ("process", "process"), ("thread", "thread")):
        repositories.write_python(tmp_path / name, execution)
    for model in repositories.PYTHON_MODELS:
        theirs, mine = (_config(tmp_path / name, model) for name in ("triton", "thread"))
        if mine.platform == "ensemble":
            assert mine == theirs
            assert len(mine.ensemble_scheduling.step) == int(model[-1])
            continue
        assert mine.parameters.pop("EXECUTION").string_value == "thread"
        assert mine == theirs
        compile((tmp_path / "triton" / model / "1" / "model.py").read_text(), model, "exec")
    assert _config(tmp_path / "triton", "identity_4").instance_group[0].count == 4
    assert _config(tmp_path / "triton", "responses").model_transaction_policy.decoupled
