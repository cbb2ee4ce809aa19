"""The module that models import has Triton's names, under both of Triton's module names."""

import c_python_backend_utils as c_pb_utils
import numpy as np
import pytest
import triton_python_backend_utils as pb_utils

from naiad_backends.python.runtime import pb_utils as ours

NAMES = [
    "InferenceRequest",
    "InferenceResponse",
    "InferenceResponseSender",
    "InferenceTrace",
    "Logger",
    "MemoryType",
    "Metric",
    "MetricFamily",
    "MetricKind",
    "ModelConfig",
    "PreferredMemory",
    "ResponseIterator",
    "TRITONSERVER_MEMORY_CPU",
    "TRITONSERVER_MEMORY_GPU",
    "TRITON_STRING_TO_NUMPY",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "deserialize_bytes_tensor",
    "get_input_config_by_name",
    "get_input_tensor_by_name",
    "get_model_dir",
    "get_output_config_by_name",
    "get_output_tensor_by_name",
    "is_model_ready",
    "load_model",
    "numpy_to_triton_type",
    "serialize_byte_tensor",
    "triton_string_to_numpy",
    "triton_to_numpy_type",
    "unload_model",
    "using_decoupled_model_transaction_policy",
]

NUMBERS = {
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_START": 1,
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_END": 2,
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL": 1,
    "TRITONSERVER_REQUEST_RELEASE_ALL": 1,
    "TRITONSERVER_REQUEST_RELEASE_RESCHEDULE": 2,
}


@pytest.mark.parametrize("name", [*NAMES, *NUMBERS])
def test_both_modules_have_the_name(name: str) -> None:
    assert getattr(pb_utils, name) is getattr(c_pb_utils, name) is getattr(ours, name)
    assert name in ours.__all__


@pytest.mark.parametrize(("name", "value"), NUMBERS.items())
def test_numbers_are_tritons(name: str, value: int) -> None:
    assert getattr(pb_utils, name) == value


def test_exports_are_sorted_and_there() -> None:
    assert len(set(ours.__all__)) == len(ours.__all__)
    assert all(hasattr(ours, name) for name in ours.__all__)


def test_a_model_can_be_tried_without_a_server() -> None:
    array = np.arange(3, dtype=np.float32)
    request = pb_utils.InferenceRequest(
        inputs=[pb_utils.Tensor("x", array)], requested_output_names=["y"], model_name="m"
    )
    tensor = pb_utils.get_input_tensor_by_name(request, "x")
    response = pb_utils.InferenceResponse([pb_utils.Tensor("y", tensor.as_numpy() * 2)])
    found = pb_utils.get_output_tensor_by_name(response, "y")
    assert found.as_numpy().tolist() == [0, 2, 4]
