"""Writes one model repository per server, each in that server's own form.

Owns the configurations, kept as alike as the servers allow: one instance on the CPU, one thread in
onnxruntime. Knows nothing of processes and ports.
"""

import json
import os
import shutil
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

PEER_MODELS = Path(__file__).parent / "peer_models"


def _instances(count: int) -> str:
    return f"instance_group [ {{ count: {count} kind: KIND_CPU }} ]\n"


_INSTANCE = _instances(1)
_ONE_THREAD = "".join(
    f'parameters {{ key: "{key}" value {{ string_value: "1" }} }}\n'
    for key in ("intra_op_thread_count", "inter_op_thread_count")
)
_BATCHING = "dynamic_batching { }\n"
_DELAY = "dynamic_batching {{ max_queue_delay_microseconds: {} }}\n"
_AUTO = (
    f"{_BATCHING}parameters {{ "
    'key: "max_queue_delay_microseconds" value { string_value: "auto" } }\n'
)

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
    "minilm": (
        'input [ { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] },\n'
        '        { name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ] } ]\n'
        'output [ { name: "embedding" data_type: TYPE_FP32 dims: [ 384 ] } ]\n'
    ),
    "silero": (
        'input [ { name: "input" data_type: TYPE_FP32 dims: [ 576 ] } ]\n'
        'output [ { name: "output" data_type: TYPE_FP32 dims: [ 1 ] } ]\n'
    ),
}

_ADD_SUB = "".join(
    f'{way} [ {{ name: "{kind}{number}" data_type: TYPE_INT32 dims: [ -1 ] }} ]\n'
    for way, kind in (("input", "INPUT"), ("output", "OUTPUT"))
    for number in (0, 1)
)
_PARAMETER = 'parameters {{ key: "{}" value {{ string_value: "{}" }} }}\n'
RESPONSES = 1000
"""Of each request to the model `responses`."""

# The rest of the configuration, the text of model.py, and the number of instances.
_PYTHON = {
    "identity": (_TENSORS["identity"], "identity", 1),
    "identity_4": (_TENSORS["identity"], "identity", 4),
    "add_sub": (_ADD_SUB, "add_sub", 1),
    "calls_1": (_TENSORS["identity"] + _PARAMETER.format("CALLS", 1), "calls", 1),
    "calls_10": (_TENSORS["identity"] + _PARAMETER.format("CALLS", 10), "calls", 1),
    "responses": (
        _TENSORS["identity"]
        + _PARAMETER.format("RESPONSES", RESPONSES)
        + "model_transaction_policy { decoupled: true }\n",
        "responses",
        1,
    ),
}
# Ensembles of so many steps, all of them `identity`.
_CHAINS = {"steps_1": 1, "steps_3": 3}
PYTHON_MODELS = (*_PYTHON, *_CHAINS)

_STREAM = (
    'input [ { name: "audio" data_type: TYPE_FP32 dims: [ 512 ] } ]\n'
    'output [ { name: "speech" data_type: TYPE_FP32 dims: [ 1 ] } ]\n'
)
_SEQUENCES = """
sequence_batching {{
  max_sequence_idle_microseconds: 60000000
  oldest {{ max_candidate_sequences: 1024 }}
  {}
}}
"""
_STATES = """
  state [
    { input_name: "state_in" output_name: "state_out" data_type: TYPE_FP32 dims: [ 2, 128 ] },
    { input_name: "context" output_name: "context_out" data_type: TYPE_FP32 dims: [ 64 ] }
  ]
"""
_CONTROLS = """
  control_input [
    { name: "START" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } },
    { name: "END" control { kind: CONTROL_SEQUENCE_END fp32_false_true: [ 0, 1 ] } },
    { name: "CORRID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }
  ]
"""


def write_naiad(
    root: Path, models: Iterable[str], onnx_files: dict[str, Path], batching: bool
) -> None:
    """A repository for Naiad's own backends."""
    for model in models:
        _write_naiad_model(
            root / model, model, onnx_files.get(model), _BATCHING if batching else ""
        )


def write_delays(root: Path, model: str, onnx: Path | None, delays: Iterable[str]) -> list[str]:
    """A repository for Naiad with `model` once for each queue delay; returns their names.

    delays: microseconds, or "auto".
    """
    names = []
    for delay in delays:
        names.append(f"{model}_{delay}")
        batching = _AUTO if delay == "auto" else _DELAY.format(delay)
        _write_naiad_model(root / names[-1], model, onnx, batching)
    return names


def _write_naiad_model(folder: Path, model: str, onnx: Path | None, batching: str) -> None:
    lines = [f'backend: "{"onnxruntime" if onnx else "identity"}"\n', "max_batch_size: 64\n"]
    lines += [_TENSORS[model], batching, _INSTANCE, _ONE_THREAD if onnx else ""]
    _write_config(folder, lines)
    _link_graph(onnx, folder)


def write_triton(
    root: Path, models: Iterable[str], onnx_files: dict[str, Path], batching: bool
) -> None:
    """A repository for Triton's Python backend; ONNX files run in onnxruntime inside it."""
    for model in models:
        onnx = onnx_files.get(model)
        lines = [f'name: "{model}"\n', 'backend: "python"\n', "max_batch_size: 64\n"]
        lines += [_TENSORS[model], _INSTANCE, _BATCHING if batching else ""]
        _write_config(root / model, lines)
        code = "triton_onnx.py" if onnx else "triton_identity.py"
        shutil.copy(PEER_MODELS / code, root / model / "1" / "model.py")
        _link_graph(onnx, root / model)


def write_python(root: Path, execution: str = "") -> None:
    """All of PYTHON_MODELS, the same files for every server.

    execution: where Naiad is to run them, `process` or `thread`; empty for Triton.
    """
    kind = _PARAMETER.format("EXECUTION", execution) if execution else ""
    for model, (lines, code, instances) in _PYTHON.items():
        head = f'backend: "python"\nmax_batch_size: 64\n{_instances(instances)}'
        _write_config(root / model, [head, lines, kind])
        shutil.copy(PEER_MODELS / f"triton_{code}.py", root / model / "1" / "model.py")
    for model, number in _CHAINS.items():
        _write_config(root / model, ["max_batch_size: 64\n", _TENSORS["identity"], _chain(number)])


def _chain(number: int) -> str:
    """An ensemble's steps, one behind the other."""
    names = ["INPUT0", *(f"between{step}" for step in range(1, number)), "OUTPUT0"]
    steps = ",\n".join(
        f'    {{ model_name: "identity" model_version: -1\n'
        f'      input_map {{ key: "INPUT0" value: "{before}" }}\n'
        f'      output_map {{ key: "OUTPUT0" value: "{behind}" }} }}'
        for before, behind in pairwise(names)
    )
    return f'platform: "ensemble"\nensemble_scheduling {{\n  step [\n{steps}\n  ]\n}}\n'


def write_streams(root: Path, server: str, onnx: Path) -> None:
    """A repository with silero-vad as the model `streams`, which keeps 1,024 sequences.

    server: naiad keeps the states itself; in triton the Python model does, because implicit states
    are not for its Python backend.
    """
    if server == "naiad":
        lines = ['backend: "onnxruntime"\n', _ONE_THREAD, _SEQUENCES.format(_STATES)]
    else:
        lines = ['backend: "python"\n', _SEQUENCES.format(_CONTROLS)]
    folder = root / "streams"
    _write_config(folder, [*lines, "max_batch_size: 64\n", _STREAM, _INSTANCE])
    _link_graph(onnx, folder)
    if server == "triton":
        shutil.copy(PEER_MODELS / "triton_streams.py", folder / "1" / "model.py")


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


def _link_graph(onnx: Path | None, folder: Path) -> None:
    """The file and all beside it, such as its weights, as version 1."""
    for file in onnx.parent.iterdir() if onnx else ():
        os.link(file, folder / "1" / file.name)
