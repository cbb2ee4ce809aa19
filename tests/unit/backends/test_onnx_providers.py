"""Configuration to execution providers, as Triton maps it."""

from pathlib import Path

import pytest

from naiad_backends.api import Accelerator, ModelSpec, Placement
from naiad_backends.errors import Code, NaiadError
from naiad_backends.onnx.providers import (
    CPU,
    CUDA,
    OPENVINO,
    TENSORRT,
    Provider,
    providers,
    require,
)

ON_CPU = Placement("m_0")
ON_GPU = Placement("m_0", "GPU", 1)
FIELD = "optimization.execution_accelerators"


def spec(
    gpu: tuple[Accelerator, ...] = (),
    cpu: tuple[Accelerator, ...] = (),
    parameters: dict[str, str] | None = None,
) -> ModelSpec:
    return ModelSpec(
        "m",
        1,
        Path(),
        parameters=parameters or {},
        gpu_accelerators=gpu,
        cpu_accelerators=cpu,
    )


TRT = Accelerator(
    "tensorrt",
    {
        "precision_mode": "FP16",
        "max_workspace_size_bytes": "1073741824",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/cache",
    },
)
TRT_OPTIONS = {
    "device_id": "1",
    "trt_fp16_enable": "1",
    "trt_max_workspace_size": "1073741824",
    "trt_engine_cache_enable": "1",
    "trt_engine_cache_path": "/cache",
}
CUDA_GIVEN = Accelerator("cuda", {"cudnn_conv_algo_search": "1", "use_tf32": "0"})
OV = Accelerator("openvino", {"num_of_threads": "2"})


@pytest.mark.parametrize(
    ("model", "place", "expected"),
    [
        (spec(), ON_CPU, [(CPU, {})]),
        (spec(gpu=(TRT,)), ON_CPU, [(CPU, {})]),
        (spec(), Placement("m_0", "MODEL"), [(CPU, {})]),
        (
            spec(cpu=(OV,)),
            ON_CPU,
            [(OPENVINO, {"device_type": "CPU", "num_of_threads": "2"}), (CPU, {})],
        ),
        (spec(), ON_GPU, [(CUDA, {"device_id": "1"}), (CPU, {})]),
        (
            spec(gpu=(TRT,)),
            ON_GPU,
            [(TENSORRT, TRT_OPTIONS), (CUDA, {"device_id": "1"}), (CPU, {})],
        ),
        (
            spec(gpu=(CUDA_GIVEN,), parameters={"gpu_mem_limit": "1"}),
            ON_GPU,
            [
                (
                    CUDA,
                    {"device_id": "1", "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"},
                ),
                (CPU, {}),
            ],
        ),
        (
            spec(
                parameters={
                    "gpu_mem_limit": "99",
                    "arena_extend_strategy": "1",
                    "cudnn_conv_algo_search": "EXHAUSTIVE",
                    "do_copy_in_default_stream": "1",
                    "intra_op_thread_count": "1",
                }
            ),
            ON_GPU,
            [
                (
                    CUDA,
                    {
                        "device_id": "1",
                        "cudnn_conv_algo_search": "EXHAUSTIVE",
                        "gpu_mem_limit": "99",
                        "arena_extend_strategy": "kSameAsRequested",
                        "do_copy_in_default_stream": "1",
                    },
                ),
                (CPU, {}),
            ],
        ),
        (
            spec(gpu=(TRT,), cpu=(OV,)),
            ON_GPU,
            [
                (TENSORRT, TRT_OPTIONS),
                (CUDA, {"device_id": "1"}),
                (OPENVINO, {"device_type": "CPU", "num_of_threads": "2"}),
                (CPU, {}),
            ],
        ),
    ],
)
def test_order_and_options(model: ModelSpec, place: Placement, expected: list[Provider]) -> None:
    assert providers(model, place) == expected


@pytest.mark.parametrize(
    ("mode", "options"),
    [("FP32", {}), ("FP16", {"trt_fp16_enable": "1"}), ("INT8", {"trt_int8_enable": "1"})],
)
def test_tensorrt_precision(mode: str, options: dict[str, str]) -> None:
    chosen = providers(spec(gpu=(Accelerator("tensorrt", {"precision_mode": mode}),)), ON_GPU)
    assert chosen[0] == (TENSORRT, {"device_id": "1"} | options)


@pytest.mark.parametrize(
    ("model", "field"),
    [
        (spec(gpu=(Accelerator("rocket", {}),)), f"{FIELD}.gpu_execution_accelerator[0].name"),
        (spec(cpu=(OV, Accelerator("cuda", {}))), f"{FIELD}.cpu_execution_accelerator[1].name"),
        (
            spec(gpu=(Accelerator("tensorrt", {"precision_mode": "FP8"}),)),
            f'{FIELD}.gpu_execution_accelerator[0].parameters["precision_mode"]',
        ),
        (
            spec(gpu=(CUDA_GIVEN, Accelerator("tensorrt", {"nix": "1"}))),
            f'{FIELD}.gpu_execution_accelerator[1].parameters["nix"]',
        ),
    ],
)
def test_what_does_not_exist_is_named(model: ModelSpec, field: str) -> None:
    with pytest.raises(NaiadError) as caught:
        providers(model, ON_GPU)
    assert caught.value.code is Code.INVALID_ARG
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("name", "remedy"),
    [(CUDA, "naiad[onnx-gpu]"), (TENSORRT, "naiad[onnx-gpu]"), (OPENVINO, "onnxruntime-openvino")],
)
def test_a_provider_that_this_build_lacks(name: str, remedy: str) -> None:
    with pytest.raises(NaiadError) as caught:
        require([(name, {}), (CPU, {})], [CPU])
    assert caught.value.code is Code.UNSUPPORTED
    assert name in str(caught.value)
    assert remedy in str(caught.value)
    require([(name, {}), (CPU, {})], [name, CPU])
