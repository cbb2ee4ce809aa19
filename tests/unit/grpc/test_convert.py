"""ModelInferRequest -> Request and back: all datatypes, all ways to get it wrong."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.grpc.convert import (
    from_response,
    from_stream_error,
    from_stream_response,
    to_request,
)
from naiad_backends.api import Parameter, Response, Tensor
from naiad_backends.datatypes import DATATYPES
from naiad_backends.errors import Code, NaiadError, not_found
from naiad_proto import grpc_service_pb2 as pb

Input = pb.ModelInferRequest.InferInputTensor
Output = pb.ModelInferRequest.InferRequestedOutputTensor


def request(*inputs: Input, **rest: Any) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(model_name="m", inputs=inputs, **rest)


def refused(message: pb.ModelInferRequest, stream: bool = False) -> NaiadError:
    with pytest.raises(NaiadError) as caught:
        to_request(message, message.raw_input_contents, stream)
    return caught.value


def typed(datatype: str, shape: list[int], **contents: list[Any]) -> Input:
    return Input(
        name="x", datatype=datatype, shape=shape, contents=pb.InferTensorContents(**contents)
    )


TYPED: dict[str, tuple[str, list[Any]]] = {
    "BOOL": ("bool_contents", [True, False, True]),
    "INT8": ("int_contents", [-128, 0, 127]),
    "INT16": ("int_contents", [-(2**15), 0, 2**15 - 1]),
    "INT32": ("int_contents", [-(2**31), 0, 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 0, 2**63 - 1]),
    "UINT8": ("uint_contents", [0, 1, 255]),
    "UINT16": ("uint_contents", [0, 1, 2**16 - 1]),
    "UINT32": ("uint_contents", [0, 1, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 1, 2**64 - 1]),
    "FP32": ("fp32_contents", [-1.5, 0.0, math.inf]),
    "FP64": ("fp64_contents", [-1.5, 0.1, math.inf]),
    "BYTES": ("bytes_contents", [b"", b"a\0b", b"\xff"]),
}


def test_every_datatype_is_typed_or_raw_only() -> None:
    assert DATATYPES.keys() - TYPED.keys() == {"FP16", "BF16"}


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents_become_arrays(datatype: str) -> None:
    contents, values = TYPED[datatype]
    tensor = to_request(request(typed(datatype, [1, 3], **{contents: values})), []).inputs["x"]
    assert (tensor.datatype, tensor.shape) == (datatype, (1, 3))
    assert tensor.numpy().dtype == DATATYPES[datatype].numpy
    assert tensor.numpy().tolist() == [values]


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_and_raw_contents_mean_the_same(datatype: str) -> None:
    contents, values = TYPED[datatype]
    first = to_request(request(typed(datatype, [3], **{contents: values})), []).inputs["x"]
    raw = bytes(first.wire())
    second = to_request(request(Input(name="x", datatype=datatype, shape=[3])), [raw]).inputs["x"]
    assert second.numpy().tolist() == values


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_travel_raw_only(datatype: str) -> None:
    raw = Input(name="x", datatype=datatype, shape=[2])
    assert to_request(request(raw), [b"\0\0\1\0"]).inputs["x"].numpy().shape == (2,)
    error = refused(request(typed(datatype, [2], fp32_contents=[1.0, 2.0])))
    assert error.field == "inputs[0].datatype"
    assert "raw_input_contents" in error.hint


@pytest.mark.parametrize(
    ("datatype", "contents", "value"),
    [
        ("INT8", "int_contents", 128),
        ("INT8", "int_contents", -129),
        ("INT16", "int_contents", 2**15),
        ("INT16", "int_contents", -(2**31)),
        ("UINT8", "uint_contents", 256),
        ("UINT16", "uint_contents", 2**32 - 1),
    ],
)
def test_values_outside_the_range_are_refused_not_cut(
    datatype: str, contents: str, value: int
) -> None:
    error = refused(request(typed(datatype, [2], **{contents: [0, value]})))
    assert error.code is Code.INVALID_ARG
    assert error.field == f"inputs[0].contents.{contents}[1]"
    assert str(value) in error.message


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (request(typed("FP32", [2], fp32_contents=[1.0])), "inputs[0].contents.fp32_contents"),
        (request(typed("FP32", [1], fp64_contents=[1.0])), "inputs[0].contents.fp64_contents"),
        (
            request(typed("INT64", [1], int64_contents=[1], int_contents=[1])),
            "inputs[0].contents.int_contents",
        ),
        (request(Input(name="x", datatype="FP32", shape=[1])), "inputs[0].contents.fp32_contents"),
        (request(typed("FLOAT", [1], fp32_contents=[1.0])), "inputs[0].datatype"),
        (
            request(Input(name="x", datatype="", shape=[1]), raw_input_contents=[b"1234"]),
            "inputs[0].datatype",
        ),
        (
            request(typed("FP32", [1], fp32_contents=[1.0]), raw_input_contents=[b"1234"]),
            "inputs[0].contents",
        ),
        (
            request(Input(name="x", datatype="FP32", shape=[1]), raw_input_contents=[b"123"]),
            "raw_input_contents[0]",
        ),
        (
            request(Input(name="x", datatype="FP32", shape=[1]), raw_input_contents=[b"1234", b""]),
            "raw_input_contents",
        ),
        (request(raw_input_contents=[b""]), "raw_input_contents"),
        (
            request(
                Input(name="x", datatype="INT8", shape=[1]),
                Input(name="x", datatype="INT8", shape=[1]),
                raw_input_contents=[b"1", b"2"],
            ),
            "inputs[1].name",
        ),
        (
            request(Input(name="x", datatype="INT8", shape=[1, -1]), raw_input_contents=[b""]),
            "inputs[0].shape[1]",
        ),
        (
            request(Input(name="x", datatype="INT8", shape=[0, 2**62]), raw_input_contents=[b""]),
            "inputs[0].shape[1]",
        ),
        (
            request(Input(name="x", datatype="BYTES", shape=[2**62] * 3), raw_input_contents=[b""]),
            "raw_input_contents[0]",
        ),
        (
            request(Input(name="x", datatype="BYTES", shape=[1] * 33), raw_input_contents=[b""]),
            "inputs[0].shape",
        ),
        (
            request(Input(name="x", datatype="BYTES", shape=[1]), raw_input_contents=[b"\5\0\0\0"]),
            "raw_input_contents[0]",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_field(message: pb.ModelInferRequest, field: str) -> None:
    error = refused(message)
    assert (error.code, error.field) == (Code.INVALID_ARG, field)


def test_zero_elements_need_no_contents() -> None:
    inputs = to_request(request(Input(name="x", datatype="INT32", shape=[0, 3])), []).inputs
    assert inputs["x"].numpy().shape == (0, 3)


def test_a_scalar_has_one_element() -> None:
    inputs = to_request(request(typed("INT32", [], int_contents=[5])), []).inputs
    assert inputs["x"].numpy().shape == ()


def test_names_and_outputs_are_taken_over() -> None:
    message = request(model_version="3", id="7", outputs=[Output(name="b"), Output(name="a")])
    got = to_request(message, [])
    assert (got.model_name, got.model_version, got.id) == ("m", "3", "7")
    assert list(got.outputs) == ["b", "a"]


def parameter(**choice: Any) -> pb.InferParameter:
    return pb.InferParameter(**choice)


PLACE = {
    "shared_memory_region": parameter(string_param="r"),
    "shared_memory_byte_size": parameter(int64_param=4),
}


def test_a_region_that_nobody_registered() -> None:
    error = refused(request(outputs=[Output(name="a", parameters=PLACE)]))
    assert error.code is Code.NOT_FOUND
    assert error.field == 'outputs[0].parameters["shared_memory_region"]'
    error = refused(request(Input(name="x", datatype="INT8", parameters=PLACE)))
    assert error.code is Code.NOT_FOUND
    assert error.field == 'inputs[0].parameters["shared_memory_region"]'


def test_an_offset_without_a_region() -> None:
    offset = {"shared_memory_offset": parameter(int64_param=1)}
    error = refused(request(outputs=[Output(name="a", parameters=offset)]))
    assert error.code is Code.INVALID_ARG
    assert error.field == 'outputs[0].parameters["shared_memory_region"]'


def classified(*counts: pb.InferParameter) -> pb.ModelInferRequest:
    return request(
        outputs=[
            Output(name=f"y{number}", parameters={"classification": count})
            for number, count in enumerate(counts)
        ]
    )


def test_class_counts_by_output() -> None:
    message = classified(parameter(int64_param=3), parameter(int64_param=2**63 - 1))
    assert to_request(message, []).classes == {"y0": 3, "y1": 2**63 - 1}
    assert not to_request(request(outputs=[Output(name="y")]), []).classes


@pytest.mark.parametrize(
    "count",
    [
        parameter(int64_param=0),
        parameter(int64_param=-1),
        parameter(uint64_param=1),
        parameter(bool_param=True),
        parameter(string_param="1"),
        parameter(),
    ],
)
def test_what_is_no_class_count(count: pb.InferParameter) -> None:
    error = refused(classified(parameter(int64_param=1), count))
    assert error.code is Code.INVALID_ARG
    assert error.field == 'outputs[1].parameters["classification"]'


def test_other_parameters_of_tensors_are_ignored() -> None:
    parameters = {"binary_data": parameter(bool_param=True)}
    message = request(outputs=[Output(name="a", parameters=parameters)])
    assert list(to_request(message, []).outputs) == ["a"]


def test_parameters_find_their_places() -> None:
    got = to_request(
        request(
            parameters={
                "sequence_id": parameter(int64_param=5),
                "sequence_start": parameter(bool_param=True),
                "sequence_end": parameter(bool_param=True),
                "priority": parameter(uint64_param=2),
                "timeout": parameter(int64_param=99),
                "flag": parameter(bool_param=False),
                "count": parameter(int64_param=-1),
                "text": parameter(string_param="t"),
                "number": parameter(double_param=0.5),
            }
        ),
        [],
    )
    assert (got.correlation_id, got.sequence_start, got.sequence_end) == (5, True, True)
    assert (got.priority, got.timeout_us) == (2, 99)
    assert got.parameters == {"flag": False, "count": -1, "text": "t", "number": 0.5}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (parameter(int64_param=-1), 2**64 - 1),
        (parameter(int64_param=-(2**63)), 2**63),
        (parameter(string_param="abc"), "abc"),
    ],
)
def test_sequence_ids_are_unsigned_or_text(choice: pb.InferParameter, expected: object) -> None:
    assert to_request(request(parameters={"sequence_id": choice}), []).correlation_id == expected


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        ("sequence_id", parameter(uint64_param=1)),
        ("sequence_id", parameter(double_param=1.0)),
        ("timeout", parameter(uint64_param=1)),
        ("timeout", parameter(int64_param=-1)),
        ("priority", parameter(int64_param=-1)),
        ("mine", parameter(uint64_param=1)),
        ("mine", parameter()),
        ("sequence_start", parameter(int64_param=1)),
        ("headers", parameter(string_param="")),
        ("triton_x", parameter(bool_param=True)),
        ("triton_enable_empty_final_response", parameter(bool_param=True)),
    ],
)
def test_parameters_of_the_wrong_type_or_name_are_refused(
    name: str, choice: pb.InferParameter
) -> None:
    error = refused(request(parameters={name: choice}))
    assert (error.code, error.field) == (Code.INVALID_ARG, f'parameters["{name}"]')


def test_streams_know_one_parameter_more() -> None:
    name = "triton_enable_empty_final_response"
    message = request(parameters={name: parameter(bool_param=True)})
    assert to_request(message, [], stream=True).parameters == {}
    error = refused(request(parameters={name: parameter(int64_param=1)}), stream=True)
    assert error.field == f'parameters["{name}"]'


choices = st.one_of(
    st.builds(parameter, bool_param=st.booleans()),
    st.builds(parameter, int64_param=st.integers(-(2**63), 2**63 - 1)),
    st.builds(parameter, uint64_param=st.integers(0, 2**64 - 1)),
    st.builds(parameter, double_param=st.floats()),
    st.builds(parameter, string_param=st.text(max_size=4)),
    st.just(pb.InferParameter()),
)
maps = st.dictionaries(
    st.sampled_from(["sequence_id", "priority", "timeout", "classification", "x", "triton_y"]),
    choices,
    max_size=3,
)
anything = st.builds(
    lambda inputs, outputs, parameters, raw: pb.ModelInferRequest(
        inputs=inputs, outputs=outputs, parameters=parameters, raw_input_contents=raw
    ),
    st.lists(
        st.builds(
            lambda name, datatype, shape, parameters, contents: Input(
                name=name,
                datatype=datatype,
                shape=shape,
                parameters=parameters,
                contents=contents,
            ),
            st.sampled_from("ab"),
            st.sampled_from([*DATATYPES, "", "TYPE_FP32"]),
            st.lists(st.integers(-1, 3) | st.sampled_from([2**31, 2**62, 2**63 - 1]), max_size=4),
            st.just({}) | maps,
            st.none()
            | st.builds(
                pb.InferTensorContents,
                bool_contents=st.lists(st.booleans(), max_size=2),
                int_contents=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
                bytes_contents=st.lists(st.binary(max_size=3), max_size=2),
            ),
        ),
        max_size=3,
    ),
    st.lists(st.builds(Output, name=st.sampled_from("ab"), parameters=maps), max_size=2),
    maps,
    st.lists(st.binary(max_size=24), max_size=3),
)


@given(anything, st.booleans())
def test_any_message_is_a_request_or_an_error_of_the_caller(
    message: pb.ModelInferRequest, stream: bool
) -> None:
    try:
        got = to_request(message, message.raw_input_contents, stream)
    except NaiadError as error:
        assert error.code in (Code.INVALID_ARG, Code.UNSUPPORTED)
        assert error.field
        return
    for tensor in got.inputs.values():
        assert tensor.numpy().shape == tensor.shape


def test_responses_carry_names_shapes_bytes_and_parameters() -> None:
    parameters: dict[str, Parameter] = {
        "flag": True,
        "count": -(2**63),
        "large": 2**64 - 1,
        "number": 0.5,
        "text": "t",
    }
    response = Response(
        [
            Tensor.from_numpy("a", np.arange(6, dtype=np.int32).reshape(2, 3)),
            Tensor.from_numpy("b", np.array([b"x", b""], dtype=object)),
            Tensor.from_numpy("c", np.empty((0, 2), np.float32)),
        ],
        parameters,
        model_name="m",
        model_version="2",
    )
    got = pb.ModelInferResponse.FromString(b"".join(from_response("9", response)))
    assert (got.model_name, got.model_version, got.id) == ("m", "2", "9")
    assert [(o.name, o.datatype, list(o.shape)) for o in got.outputs] == [
        ("a", "INT32", [2, 3]),
        ("b", "BYTES", [2]),
        ("c", "FP32", [0, 2]),
    ]
    assert list(got.raw_output_contents) == [
        np.arange(6, dtype="<i4").tobytes(),
        b"\1\0\0\0x\0\0\0\0",
        b"",
    ]
    assert got.parameters["flag"] == parameter(bool_param=True)
    assert got.parameters["count"] == parameter(int64_param=-(2**63))
    assert got.parameters["large"] == parameter(uint64_param=2**64 - 1)
    assert got.parameters["number"] == parameter(double_param=0.5)
    assert got.parameters["text"] == parameter(string_param="t")
    streamed = pb.ModelStreamInferResponse.FromString(
        b"".join(from_stream_response("9", response, True))
    )
    assert streamed.error_message == ""
    assert streamed.infer_response.parameters.pop("triton_final_response").bool_param
    assert streamed.infer_response == got


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, b"bytes", None])
def test_a_parameter_that_no_message_can_hold_is_the_models_fault(value: Any) -> None:
    with pytest.raises(NaiadError) as caught:
        from_response("", Response(parameters={"p": value}))
    assert caught.value.code is Code.INTERNAL


def test_errors_on_streams_say_whose_they_are() -> None:
    message = pb.ModelInferRequest(model_name="m", model_version="1", id="7")
    got = pb.ModelStreamInferResponse.FromString(
        b"".join(from_stream_error(message, not_found("no")))
    )
    assert got.error_message == "no"
    assert got.infer_response.parameters.pop("triton_final_response").bool_param
    assert got.infer_response == pb.ModelInferResponse(model_name="m", model_version="1", id="7")
