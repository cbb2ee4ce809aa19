"""Which execution providers a session gets, in order, with which options; a pure mapping.

Follows Triton: on a GPU its accelerators, then CUDA; everywhere the CPU accelerators, then CPU.
Knows nothing of onnxruntime itself, so that what it decides can be tested on any machine.
"""

from collections.abc import Collection, Mapping, Sequence

from naiad_backends.api import Accelerator, ModelSpec, Placement
from naiad_backends.errors import NaiadError, invalid, unsupported

Provider = tuple[str, dict[str, str]]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"

_FIELD = "optimization.execution_accelerators"

# CUDA options that Triton reads from the model's parameters, and its numbers for their values.
_CUDA_PARAMETERS: dict[str, dict[str, str]] = {
    "cudnn_conv_algo_search": {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"},
    "gpu_mem_limit": {},
    "arena_extend_strategy": {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"},
    "do_copy_in_default_stream": {},
}

# Triton's names for TensorRT options that onnxruntime calls otherwise.
_TENSORRT_NAMES = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}

_PRECISIONS: dict[str, dict[str, str]] = {
    "FP32": {},
    "FP16": {"trt_fp16_enable": "1"},
    "INT8": {"trt_int8_enable": "1"},
}


def providers(spec: ModelSpec, placement: Placement) -> list[Provider]:
    """Name and options of each provider for an instance at `placement`, best first.

    Raises INVALID_ARG for an accelerator or option that does not exist.
    """
    chosen: dict[str, dict[str, str]] = {}
    if placement.kind == "GPU":
        device = {"device_id": str(placement.device)}
        for i, accelerator in enumerate(spec.gpu_accelerators):
            name, options = _gpu_provider(accelerator, f"{_FIELD}.gpu_execution_accelerator[{i}]")
            chosen[name] = device | options
        if CUDA not in chosen:
            chosen[CUDA] = device | _cuda_parameters(spec.parameters)
    for i, accelerator in enumerate(spec.cpu_accelerators):
        field = f"{_FIELD}.cpu_execution_accelerator[{i}]"
        if accelerator.name != "openvino":
            raise _unknown(accelerator, field, "openvino")
        chosen[OPENVINO] = {"device_type": "CPU"} | dict(accelerator.parameters)
    chosen[CPU] = {}
    return list(chosen.items())


def require(wanted: Sequence[Provider], available: Collection[str]) -> None:
    """Raise UNSUPPORTED if this build of onnxruntime lacks a wanted provider."""
    for name, _ in wanted:
        if name not in available:
            raise missing(name)


def missing(name: str) -> NaiadError:
    """The error for a provider that cannot be used here."""
    if name == OPENVINO:
        hint = "install onnxruntime-openvino in place of onnxruntime"
    else:
        hint = (
            "for NVIDIA GPUs run: pip uninstall onnxruntime; pip install 'naiad[onnx-gpu]';"
            " or place the model with instance_group { kind: KIND_CPU }"
        )
    return unsupported(f"this onnxruntime does not have the {name}", hint=hint)


def _gpu_provider(accelerator: Accelerator, field: str) -> Provider:
    match accelerator.name:
        case "tensorrt":
            return TENSORRT, _tensorrt_options(accelerator.parameters, field)
        case "cuda":
            return CUDA, {
                key: _CUDA_PARAMETERS.get(key, {}).get(value, value)
                for key, value in accelerator.parameters.items()
            }
    raise _unknown(accelerator, field, "tensorrt or cuda")


def _cuda_parameters(parameters: Mapping[str, str]) -> dict[str, str]:
    return {
        key: numbers.get(parameters[key], parameters[key])
        for key, numbers in _CUDA_PARAMETERS.items()
        if key in parameters
    }


def _tensorrt_options(parameters: Mapping[str, str], field: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for key, value in parameters.items():
        where = f'{field}.parameters["{key}"]'
        if key == "precision_mode":
            if value not in _PRECISIONS:
                raise invalid(
                    f"unknown precision mode '{value}'", field=where, hint="use FP32, FP16 or INT8"
                )
            options |= _PRECISIONS[value]
        elif key in _TENSORRT_NAMES or key.startswith("trt_"):
            options[_TENSORRT_NAMES.get(key, key)] = value
        else:
            raise invalid(
                f"unknown TensorRT option '{key}'",
                field=where,
                hint=f"use precision_mode, {', '.join(_TENSORRT_NAMES)} or an option of"
                " onnxruntime's TensorRT provider, whose names start with trt_",
            )
    return options


def _unknown(accelerator: Accelerator, field: str, known: str) -> NaiadError:
    return invalid(
        f"unknown execution accelerator '{accelerator.name}'",
        field=f"{field}.name",
        hint=f"use {known}",
    )
