"""Lookups by name, the tables of data types, and strings as bytes, as Triton's models know them."""

import numpy as np
import pytest
import tritonclient.utils
from hypothesis import given
from hypothesis import strategies as st

from naiad_backends.datatypes import BY_CONFIG_NAME, BY_NUMPY
from naiad_backends.python.runtime import lookups
from naiad_backends.python.runtime.errors import TritonModelException
from naiad_backends.python.runtime.request import InferenceRequest
from naiad_backends.python.runtime.response import InferenceResponse
from naiad_backends.python.runtime.tensor import Tensor

NUMBERS = {
    1: np.bool_,
    2: np.uint8,
    3: np.uint16,
    4: np.uint32,
    5: np.uint64,
    6: np.int8,
    7: np.int16,
    8: np.int32,
    9: np.int64,
    10: np.float16,
    11: np.float32,
    12: np.float64,
    13: np.object_,
}


def test_tensors_by_name() -> None:
    tensors = [Tensor(name, np.zeros(1, np.int8)) for name in ("a", "b", "a")]
    request = InferenceRequest(inputs=tensors, requested_output_names=["y"], model_name="m")
    assert lookups.get_input_tensor_by_name(request, "b").name() == "b"
    assert lookups.get_input_tensor_by_name(request, "a") is tensors[0]
    assert lookups.get_input_tensor_by_name(request, "c") is None
    response = InferenceResponse(tensors)
    assert lookups.get_output_tensor_by_name(response, "b") is tensors[1]
    assert lookups.get_output_tensor_by_name(response, "c") is None


def test_configuration_by_name() -> None:
    config = {"input": [{"name": "a", "dims": [1]}], "output": [{"name": "b", "dims": [2]}]}
    assert lookups.get_input_config_by_name(config, "a") == {"name": "a", "dims": [1]}
    assert lookups.get_input_config_by_name(config, "b") is None
    assert lookups.get_output_config_by_name(config, "b")["dims"] == [2]
    assert lookups.get_output_config_by_name(config, "a") is None
    assert lookups.get_input_config_by_name({}, "a") is None
    assert lookups.get_output_config_by_name({}, "a") is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, False),
        ({"model_transaction_policy": {}}, False),
        ({"model_transaction_policy": {"decoupled": False}}, False),
        ({"model_transaction_policy": {"decoupled": True}}, True),
    ],
)
def test_decoupled(config: dict[str, dict[str, bool]], expected: bool) -> None:
    assert lookups.using_decoupled_model_transaction_policy(config) is expected


@pytest.mark.parametrize(("number", "kind"), NUMBERS.items())
def test_numbers_of_types(number: int, kind: type) -> None:
    assert lookups.triton_to_numpy_type(number) is kind
    assert lookups.numpy_to_triton_type(kind) == number
    assert lookups.numpy_to_triton_type(np.dtype(kind)) == number
    if number != 13:
        assert lookups.numpy_to_triton_type(np.dtype(kind).newbyteorder(">")) == number


def test_other_names_of_types() -> None:
    assert lookups.numpy_to_triton_type(np.bytes_) == 13
    assert lookups.numpy_to_triton_type(np.array([b"abc"]).dtype) == 13
    assert lookups.numpy_to_triton_type(np.longlong) == 9
    assert lookups.numpy_to_triton_type(bool) == 1
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert lookups.numpy_to_triton_type(ml_dtypes.bfloat16) == 14


@pytest.mark.parametrize("kind", [np.str_, np.complex64, np.dtype("M8[s]"), None])
def test_types_that_triton_does_not_have(kind: object) -> None:
    with pytest.raises(KeyError):
        lookups.numpy_to_triton_type(kind)


@pytest.mark.parametrize("number", [0, 14, 15])
def test_numbers_that_numpy_does_not_have(number: int) -> None:
    with pytest.raises(KeyError):
        lookups.triton_to_numpy_type(number)


@pytest.mark.parametrize("name", BY_CONFIG_NAME)
def test_names_of_types(name: str) -> None:
    if name == "TYPE_BF16":
        with pytest.raises(KeyError):
            lookups.triton_string_to_numpy(name)
        return
    kind = lookups.triton_string_to_numpy(name)
    assert BY_NUMPY[np.dtype(kind)].config_name == name
    assert lookups.TRITON_STRING_TO_NUMPY[name] is kind


def test_unknown_name_of_a_type() -> None:
    with pytest.raises(KeyError):
        lookups.triton_string_to_numpy("FP32")


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=20))
def test_bytes_come_back(elements: list[bytes]) -> None:
    array = np.empty(len(elements), object)
    array[:] = elements
    encoded = lookups.serialize_byte_tensor(array)
    assert encoded == tritonclient.utils.serialize_byte_tensor(array).item()
    assert encoded
    back = lookups.deserialize_bytes_tensor(encoded)
    assert back.dtype == object and back.shape == (len(elements),)
    assert back.tolist() == elements
    assert back.tolist() == tritonclient.utils.deserialize_bytes_tensor(encoded).tolist()
    assert lookups.deserialize_bytes_tensor(memoryview(encoded)).tolist() == elements


def test_texts_and_numbers_are_written_as_texts() -> None:
    array = np.array([["ä", b"\xff"], [3, None]], object)
    encoded = lookups.serialize_byte_tensor(array)
    assert encoded
    back = lookups.deserialize_bytes_tensor(encoded)
    assert back.tolist() == ["ä".encode(), b"\xff", b"3", b"None"]


def test_fixed_size_bytes_and_order() -> None:
    array = np.array([[b"a", b"bc"], [b"d", b""]], np.bytes_).T
    encoded = lookups.serialize_byte_tensor(array)
    assert encoded
    assert lookups.deserialize_bytes_tensor(encoded).tolist() == [b"a", b"d", b"bc", b""]


def test_arrays_of_no_bytes() -> None:
    assert lookups.serialize_byte_tensor(np.array([], object)) == ()
    assert lookups.serialize_byte_tensor(np.array([], np.float32)) == ()
    assert lookups.serialize_byte_tensor(np.zeros(2, np.float32)) is None
    assert lookups.serialize_byte_tensor(np.array(["a"])) is None
    assert lookups.deserialize_bytes_tensor(b"").shape == (0,)


@pytest.mark.parametrize("data", [b"\1", b"\1\0\0\0", b"\1\0\0\0a\2\0\0\0b", b"\xff\xff\xff\xff"])
def test_bytes_that_are_cut_off(data: bytes) -> None:
    with pytest.raises(TritonModelException, match="cut off"):
        lookups.deserialize_bytes_tensor(data)
