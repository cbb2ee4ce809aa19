"""Writes one model repository per server, each in that server's own form.

Owns the configurations, kept as alike as the servers allow: one instance on the CPU, one thread in
onnxruntime. Knows nothing of processes and ports.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

PEER_MODELS = Path(__file__).parent / "peer_models"

_INSTANCE = "instance_group [ { count: 1 kind: KIND_CPU } ]\n"
_ONE_THREAD = "".join(
    f'parameters {{ key: "{key}" value {{ string_value: "1" }} }}\n'
    for key in ("intra_op_thread_count", "inter_op_thread_count")
)
_BATCHING = "dynamic_batching { }\n"

# Input and output as a peer's Python model shows them, without the batch dimension.
_TENSORS = {
    "identity": (
        'input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] } ]\n'
        'output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] } ]\n'
    ),
    "magika": (
        'input [ { name: "bytes" data_type: TYPE_INT32 dims: [ 2048 ] } ]\n'
        'output [ { name: "target_label" data_type: TYPE_FP32 dims: [ 214 ] } ]\n'
    ),
    "silero": (
        'input [ { name: "input" data_type: TYPE_FP32 dims: [ 576 ] } ]\n'
        'output [ { name: "output" data_type: TYPE_FP32 dims: [ 1 ] } ]\n'
    ),
}
# The bare graph: its state has the batch on the second axis, so the server must not form batches.
_SILERO_GRAPH = (
    "max_batch_size: 0\n"
    'input [ { name: "input" data_type: TYPE_FP32 dims: [ -1, 576 ] },\n'
    '        { name: "state" data_type: TYPE_FP32 dims: [ 2, -1, 128 ] },\n'
    '        { name: "sr" data_type: TYPE_INT64 dims: [ 1 ] } ]\n'
    'output [ { name: "output" data_type: TYPE_FP32 dims: [ -1, 1 ] } ]\n'
)


def write_naiad(
    root: Path, models: Iterable[str], onnx_files: dict[str, Path], batching: bool
) -> None:
    """A repository for Naiad's own backends."""
    for model in models:
        onnx = onnx_files.get(model)
        lines = [f'name: "{model}"\n', f'backend: "{"onnxruntime" if onnx else "identity"}"\n']
        if model == "silero":
            lines += [_SILERO_GRAPH]
        else:
            lines += ["max_batch_size: 64\n", _TENSORS[model], _BATCHING if batching else ""]
        lines += [_INSTANCE, _ONE_THREAD if onnx else ""]
        _write_config(root / model, lines)
        if onnx:
            shutil.copy(onnx, root / model / "1" / "model.onnx")


def write_triton(
    root: Path, models: Iterable[str], onnx_files: dict[str, Path], batching: bool
) -> None:
    """A repository for Triton's Python backend; magika and silero run onnxruntime inside it."""
    for model in models:
        onnx = onnx_files.get(model)
        lines = [f'name: "{model}"\n', 'backend: "python"\n', "max_batch_size: 64\n"]
        lines += [_TENSORS[model], _INSTANCE, _BATCHING if batching else ""]
        _write_config(root / model, lines)
        code = "triton_onnx.py" if onnx else "triton_identity.py"
        shutil.copy(PEER_MODELS / code, root / model / "1" / "model.py")
        if onnx:
            shutil.copy(onnx, root / model / "1" / "model.onnx")


def write_mlserver(root: Path, models: Iterable[str], onnx_files: dict[str, Path]) -> None:
    """A repository for MLServer; its runtime classes are found through PYTHONPATH."""
    for model in models:
        onnx = onnx_files.get(model)
        settings: dict[str, object] = {
            "name": model,
            "implementation": f"mlserver_runtime.{'Onnx' if onnx else 'Identity'}",
        }
        if onnx:
            settings["parameters"] = {"uri": str(onnx.resolve())}
        (root / model).mkdir(parents=True)
        (root / model / "model-settings.json").write_text(json.dumps(settings))


def _write_config(folder: Path, lines: list[str]) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text("".join(lines))
