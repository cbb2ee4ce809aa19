"""Triton's `onnxruntime` backend: finds the model's file and opens it as its spec says."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from naiad_backends.api import Backend, Completion, ModelSpec, Placement
from naiad_backends.errors import invalid
from naiad_backends.onnx.devices import cpu_cores, cuda_devices
from naiad_backends.onnx.model import OnnxModel
from naiad_backends.onnx.options import FOR_READING, session_settings
from naiad_backends.onnx.providers import CPU, CUDA, missing, providers
from naiad_backends.onnx.runtime import Runner, available_providers, open_session
from naiad_backends.onnx.signature import check, complete, read_signature

_DEFAULT_FILE = "model.onnx"
_MAX_BATCH_OPTION = "default-max-batch-size"


class OnnxBackend(Backend):
    """Options: `default-max-batch-size` (4), for models whose configuration does not say."""

    default_cpu_instances = 2

    def __init__(self, options: Mapping[str, str]) -> None:
        """Raises INVALID_ARG if an option's value is no number."""
        super().__init__(options)
        text = options.get(_MAX_BATCH_OPTION, "4")
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise invalid(
                f"'{text}' is not a whole number of 0 or more",
                field=f"--backend-config=onnxruntime,{_MAX_BATCH_OPTION}",
            )
        self._default_max_batch_size = int(text)

    def gpus(self) -> Sequence[int]:
        """The CUDA devices, if this onnxruntime was built for CUDA."""
        return cuda_devices() if CUDA in available_providers() else ()

    def complete(self, spec: ModelSpec) -> Completion:
        """Read inputs, outputs and whether the model batches from the file's graph.

        Does nothing, as in Triton, when both inputs and outputs are given: then max_batch_size 0
        means that the model does not batch. `load` checks what was given.
        """
        if spec.inputs and spec.outputs:
            return Completion(spec.inputs, spec.outputs, spec.max_batch_size)
        session = open_session(model_file(spec), FOR_READING, [(CPU, {})])
        return complete(read_signature(session), spec, self._default_max_batch_size)

    def load(self, spec: ModelSpec) -> OnnxModel:
        """Open the file once for each device among the placements and check it against `spec`."""
        path = model_file(spec)

        def open_runner(placement: Placement) -> Runner:
            chosen = providers(spec, placement)
            self._require_device(placement)
            settings = session_settings(spec, placement, cpu_cores())
            session = open_session(path, settings, chosen)
            check(read_signature(session), spec)
            return Runner(session, settings.run_entries)

        return OnnxModel(spec, open_runner)

    def _require_device(self, placement: Placement) -> None:
        if placement.kind == "GPU" and CUDA not in available_providers():
            raise missing(CUDA)
        self.require_device(placement)


def model_file(spec: ModelSpec) -> Path:
    """The ONNX file of a version; a folder stands for the `model.onnx` inside it.

    Raises INVALID_ARG if there is none, or if the name leads out of the version's folder.
    """
    name = spec.filename or _DEFAULT_FILE
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise invalid(
            f"'{name}' does not lie in the version's folder", field="default_model_filename"
        )
    path = spec.path / name
    if path.is_dir():
        path = path / _DEFAULT_FILE
    if not path.is_file():
        raise invalid(
            f"model '{spec.name}' version {spec.version} has no file {path}",
            field="default_model_filename",
        )
    if path.stat().st_size == 0:
        raise invalid(f"the file {path} is empty")
    return path
