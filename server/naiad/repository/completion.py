"""Fills in what a configuration leaves out: the backend from the files, the tensors from the
model, and Triton's defaults.

Works on ModelConfig messages in place; the caller hands it a copy. Reports nothing: what is still
missing afterwards is for the rules to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import cast

from naiad_backends.api import Completion, TensorSpec
from naiad_backends.datatypes import DATATYPES
from naiad_proto import model_config_pb2 as pb

ENSEMBLE = "ensemble"
"""The platform of models that are made of other models."""

Tensor = pb.ModelInput | pb.ModelOutput

_IDLE_MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file or folder in a version folder, and who serves it. `platform` may be empty."""

    name: str
    backend: str
    platform: str = ""


MODEL_FILES = (
    ModelFile("model.savedmodel", "tensorflow", "tensorflow_savedmodel"),
    ModelFile("model.graphdef", "tensorflow", "tensorflow_graphdef"),
    ModelFile("model.plan", "tensorrt", "tensorrt_plan"),
    ModelFile("model.onnx", "onnxruntime", "onnxruntime_onnx"),
    ModelFile("model.xml", "openvino"),
    ModelFile("model.pt", "pytorch", "pytorch_libtorch"),
    ModelFile("model.pt2", "pytorch", "torch_aoti"),
    ModelFile("model.py", "python"),
)
"""Looked for in this order."""

PLATFORM_BACKENDS = {row.platform: row.backend for row in MODEL_FILES if row.platform}
"""Older name of a backend -> the backend."""


def fill_backend(message: pb.ModelConfig, version_path: Path) -> None:
    """Stage 1: backend, platform and file name, as far as each tells the others.

    With none of them given, what lies in the version folder decides, and last the model's name
    when it is `<x>.<backend>`. May leave everything empty. Ensembles stay as they are.
    """
    if message.platform == ENSEMBLE:
        return
    if not message.backend and not message.platform:
        row = _row_by_files(message.default_model_filename, version_path)
        if row is None:
            _fill_by_name(message, version_path)
            return
    else:
        row = _row_by_names(message, version_path)
        if row is None:
            return
    message.backend = message.backend or row.backend
    message.platform = message.platform or row.platform
    message.default_model_filename = message.default_model_filename or row.name


def _row_by_files(filename: str, version_path: Path) -> ModelFile | None:
    if filename:
        return _row_by_suffix(MODEL_FILES, filename)
    return next((row for row in MODEL_FILES if (version_path / row.name).exists()), None)


def _row_by_names(message: pb.ModelConfig, version_path: Path) -> ModelFile | None:
    rows = [
        row
        for row in MODEL_FILES
        if message.backend in ("", row.backend) and message.platform in ("", row.platform)
    ]
    by_files = [row for row in rows if (version_path / row.name).exists()]
    by_suffix = _row_by_suffix(rows, message.default_model_filename)
    return by_suffix or next(iter(by_files or rows), None)


def _row_by_suffix(rows: Sequence[ModelFile], filename: str) -> ModelFile | None:
    suffix = PurePath(filename).suffix
    return next((row for row in rows if suffix and PurePath(row.name).suffix == suffix), None)


def _fill_by_name(message: pb.ModelConfig, version_path: Path) -> None:
    _, dot, backend = message.name.rpartition(".")
    if not dot or not backend:
        return
    message.backend = backend
    # Backends without a file of their own have none to be checked.
    if not message.default_model_filename and (version_path / f"model.{backend}").exists():
        message.default_model_filename = f"model.{backend}"


def needs_tensors(message: pb.ModelConfig) -> bool:
    """Whether inputs or outputs are missing, wholly or in part, so that stage 2 has work."""
    tensors: list[Tensor] = [*message.input, *message.output]
    partly = any(not tensor.data_type or not tensor.dims for tensor in tensors)
    return partly or not (message.input or message.batch_input) or not message.output


def fill_completion(message: pb.ModelConfig, completion: Completion) -> None:
    """Stage 2: inputs, outputs and batch size as the model's file tells them.

    What the configuration gives stays. A batch size above 1 that came from the model brings
    dynamic batching with it, if there is no scheduler yet. A completion that says itself whether
    there is to be a batcher is what the model's author wants, also where nothing is missing.
    """
    batcher = completion.dynamic_batching
    if batcher is None and not needs_tensors(message):
        return
    if batcher is not None:
        message.max_batch_size = max(message.max_batch_size, completion.max_batch_size)
    elif message.max_batch_size == 0:
        message.max_batch_size = completion.max_batch_size
        batcher = completion.max_batch_size > 1
    if batcher and message.WhichOneof("scheduling_choice") is None:
        message.dynamic_batching.SetInParent()
    if completion.decoupled and not message.HasField("model_transaction_policy"):
        message.model_transaction_policy.decoupled = True
    _fill_ports(message, completion)


def _fill_ports(message: pb.ModelConfig, completion: Completion) -> None:
    made, kept = _of_the_server(message)
    inputs = {tensor.name: tensor for tensor in message.input}
    outputs = {tensor.name: tensor for tensor in message.output}
    for spec in completion.inputs:
        if spec.name not in made:
            tensor = inputs.get(spec.name) or message.input.add(name=spec.name)
            if not tensor.dims or completion.dynamic_batching is not None:
                tensor.optional = tensor.optional or spec.optional
            _fill_tensor(tensor, spec)
    for spec in completion.outputs:
        if spec.name in outputs or spec.name not in kept:
            _fill_tensor(outputs.get(spec.name) or message.output.add(name=spec.name), spec)


def _of_the_server(message: pb.ModelConfig) -> tuple[set[str], set[str]]:
    """Inputs that the server makes and outputs that it keeps, so that clients do not see them."""
    batching = message.sequence_batching
    made = {name for batch_input in message.batch_input for name in batch_input.target_name}
    made |= {control_input.name for control_input in batching.control_input}
    made |= {state.input_name for state in batching.state}
    return made, {state.output_name for state in batching.state}


def _fill_tensor(tensor: Tensor, spec: TensorSpec) -> None:
    if not tensor.data_type:
        config_name = DATATYPES[spec.datatype].config_name
        tensor.data_type = cast(pb.DataType, pb.DataType.Value(config_name))
    if not tensor.dims:
        tensor.dims.extend(spec.dims)
        if spec.reshape is not None and not tensor.HasField("reshape"):
            tensor.reshape.SetInParent()
            tensor.reshape.shape.extend(spec.reshape)


def fill_defaults(message: pb.ModelConfig, gpus: Sequence[int], default_cpu_instances: int) -> None:
    """The values that Triton takes where nothing is said.

    gpus: those that the backend can use.  default_cpu_instances: of a group on the CPU.
    """
    policy = message.version_policy
    if policy.WhichOneof("policy_choice") is None or policy.HasField("latest"):
        policy.latest.num_versions = policy.latest.num_versions or 1
    _fill_schedulers(message)
    if message.platform == ENSEMBLE:
        return
    optimization = message.optimization
    if not optimization.HasField("input_pinned_memory"):
        optimization.input_pinned_memory.enable = True
    if not optimization.HasField("output_pinned_memory"):
        optimization.output_pinned_memory.enable = True
    _fill_groups(message, gpus, default_cpu_instances)


def _fill_schedulers(message: pb.ModelConfig) -> None:
    preferred = [message.max_batch_size] if message.max_batch_size > 0 else []
    if message.HasField("dynamic_batching") and not message.dynamic_batching.preferred_batch_size:
        message.dynamic_batching.preferred_batch_size.extend(preferred)
    if message.HasField("sequence_batching"):
        batching = message.sequence_batching
        if not batching.max_sequence_idle_microseconds:
            batching.max_sequence_idle_microseconds = _IDLE_MICROSECONDS
        if batching.HasField("oldest") and not batching.oldest.preferred_batch_size:
            batching.oldest.preferred_batch_size.extend(preferred)


def _fill_groups(message: pb.ModelConfig, gpus: Sequence[int], default_cpu_instances: int) -> None:
    if not message.instance_group:
        message.instance_group.add(name=message.name)
    for index, group in enumerate(message.instance_group):
        group.name = group.name or f"{message.name}_{index}"
        if group.kind == pb.ModelInstanceGroup.KIND_AUTO:
            usable = bool(gpus) and set(group.gpus) <= set(gpus)
            kinds = pb.ModelInstanceGroup
            group.kind = kinds.KIND_GPU if usable else kinds.KIND_CPU
            if not usable:
                del group.gpus[:]
        if group.kind == pb.ModelInstanceGroup.KIND_GPU and not group.gpus:
            group.gpus.extend(gpus)
        if group.count < 1:
            on_cpu = group.kind == pb.ModelInstanceGroup.KIND_CPU
            group.count = default_cpu_instances if on_cpu else 1
