"""ModelInferRequest -> Request, Response -> ModelInferResponse.

Reads what the protocol says about the message itself: names given once, contents typed or raw,
parameters of the right type. What a model takes is not known here.
Source: KServe v2 protocol over gRPC; Triton's parameters and sequence extensions.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from naiad.core.parameters import interpret
from naiad.core.shared_memory import NO_REGIONS, Lease
from naiad.grpc import wire
from naiad_backends.api import Array, Buffer, Parameter, Request, Response, Tensor, unknown_datatype
from naiad_backends.datatypes import DATATYPES
from naiad_backends.errors import NaiadError, internal, invalid
from naiad_proto import grpc_service_pb2 as pb

_MOST_DIMENSIONS = 32
"""NumPy's limit, in the oldest version that the server runs with."""

_EMPTY_FINAL = "triton_enable_empty_final_response"
_FINAL = "triton_final_response"
_CLASSES = "classification"

_CONTENTS: Final[Mapping[str, str]] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field of InferTensorContents for each datatype that has one."""

_SMALL: Final[Mapping[str, tuple[int, int]]] = {
    "INT8": (-(2**7), 2**7 - 1),
    "INT16": (-(2**15), 2**15 - 1),
    "UINT8": (0, 2**8 - 1),
    "UINT16": (0, 2**16 - 1),
}
"""The ranges of the integers that travel in a field with more room."""


def to_request(
    message: pb.ModelInferRequest,
    raw: Sequence[Buffer],
    stream: bool = False,
    lease: Lease = NO_REGIONS,
) -> Request:
    """The request that a message holds, with `raw` as its raw contents.

    stream: it came on a stream, where one more parameter is known.
    lease: gets hold of the shared memory that the request names; has to be read then.
    Raises INVALID_ARG, naming the field, or NOT_FOUND for an unknown region of shared memory.
    """
    request = Request(message.model_name, message.model_version, message.id)
    request.inputs = _inputs(message, raw, lease)
    if message.outputs:
        request.outputs = [
            _output(request, number, output, lease) for number, output in enumerate(message.outputs)
        ]
    if message.parameters:
        parameters = _parameters(message.parameters)
        if stream and not isinstance(parameters.pop(_EMPTY_FINAL, False), bool):
            raise invalid("must be true or false", field=f'parameters["{_EMPTY_FINAL}"]')
        interpret(request, parameters)
    return request


def _inputs(
    message: pb.ModelInferRequest, raw: Sequence[Buffer], lease: Lease
) -> dict[str, Tensor]:
    inputs: dict[str, Tensor] = {}
    taken = 0
    for number, tensor in enumerate(message.inputs):
        name = tensor.name
        if name in inputs:
            raise invalid(f"input '{name}' is given twice", field=f"inputs[{number}].name")
        place = _place(tensor.parameters) if tensor.parameters else None
        at_once = tensor.datatype == "BYTES"
        shared = lease.input(place, f"inputs[{number}]", at_once) if place else None
        if shared is not None:
            inputs[name] = _raw_tensor(number, name, tensor, shared, "shared memory")
        elif raw:
            if taken == len(raw):
                raise _miscounted(len(raw), "more")
            field = f"raw_input_contents[{taken}]"
            inputs[name] = _raw_tensor(number, name, tensor, raw[taken], field)
            taken += 1
        else:
            inputs[name] = _typed_tensor(number, name, tensor)
    if taken != len(raw):
        raise _miscounted(len(raw), str(taken))
    return inputs


def _miscounted(contents: int, inputs: str) -> NaiadError:
    return invalid(
        f"there are {contents} raw contents for {inputs} inputs",
        field="raw_input_contents",
        hint="give one for each input that is not in shared memory, in their order",
    )


def _place(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    """What the parameters of a tensor say of shared memory, as plain values."""
    return {
        name: getattr(parameter, parameter.WhichOneof("parameter_choice") or "bool_param")
        for name, parameter in parameters.items()
        if name.startswith("shared_memory_")
    }


def _output(
    request: Request,
    number: int,
    output: pb.ModelInferRequest.InferRequestedOutputTensor,
    lease: Lease,
) -> str:
    """The output's name; what else is said of it goes into the request."""
    if output.parameters:
        where = f"outputs[{number}]"
        shared = lease.output(output.name, _place(output.parameters), where)
        if shared and _CLASSES in output.parameters:
            raise invalid(
                f"output '{output.name}' is to be classes, and also to go into shared memory",
                field=f"{where}.parameters",
                hint="ask for one of them",
            )
        if _CLASSES in output.parameters:
            count = _class_count(output.parameters[_CLASSES], number)
            request.classes = {**(request.classes or {}), output.name: count}
    return output.name


def _class_count(parameter: pb.InferParameter, number: int) -> int:
    if parameter.WhichOneof("parameter_choice") != "int64_param" or parameter.int64_param < 1:
        raise invalid(
            "must be an int64 of 1 or more",
            field=f'outputs[{number}].parameters["{_CLASSES}"]',
            hint="leave the parameter out to get the output itself",
        )
    return parameter.int64_param


def _shape(number: int, tensor: pb.ModelInferRequest.InferInputTensor) -> tuple[int, ...]:
    """The tensor's shape, of which an array can be made if enough bytes come along."""
    shape = tuple(tensor.shape)
    if shape and min(shape) <= 0:
        _check_dimensions(number, shape)
    if len(shape) > _MOST_DIMENSIONS:
        raise invalid(
            f"the shape has {len(shape)} dimensions, but {_MOST_DIMENSIONS} are the most",
            field=f"inputs[{number}].shape",
        )
    return shape


def _check_dimensions(number: int, shape: tuple[int, ...]) -> None:
    """Refuse a negative dimension, and one that is huge beside a zero: no count of bytes would
    show that no array can have it."""
    elements = 1
    for axis, size in enumerate(shape):
        elements *= max(size, 1)
        if size < 0 or elements >= 2**60:
            raise invalid(
                f"{size} is {'negative' if size < 0 else 'too large'}",
                field=f"inputs[{number}].shape[{axis}]",
                hint="a request must give the real size of every dimension",
            )


def _raw_tensor(
    number: int,
    name: str,
    tensor: pb.ModelInferRequest.InferInputTensor,
    content: Buffer,
    source: str,
) -> Tensor:
    """source: where the content comes from, for errors."""
    if tensor.HasField("contents"):
        raise invalid(
            f"input '{name}' has typed contents beside {source}",
            field=f"inputs[{number}].contents",
            hint="use raw_input_contents for all inputs that are not in shared memory, or for none",
        )
    datatype = tensor.datatype
    try:
        return Tensor.from_wire(name, datatype, _shape(number, tensor), content)
    except NaiadError as error:
        if not error.field:
            field = source if datatype in DATATYPES else f"inputs[{number}].datatype"
            raise NaiadError(error.code, error.message, field=field, hint=error.hint) from None
        raise


def _typed_tensor(number: int, name: str, tensor: pb.ModelInferRequest.InferInputTensor) -> Tensor:
    datatype = tensor.datatype
    if datatype not in DATATYPES:
        raise unknown_datatype(datatype, f"inputs[{number}].datatype")
    wanted = _CONTENTS.get(datatype)
    if wanted is None:
        raise invalid(
            f"{datatype} has no typed contents",
            field=f"inputs[{number}].datatype",
            hint="send it in raw_input_contents",
        )
    for descriptor, _ in tensor.contents.ListFields():
        if descriptor.name != wanted:
            raise invalid(
                f"{datatype} goes into {wanted}",
                field=f"inputs[{number}].contents.{descriptor.name}",
            )
    shape = _shape(number, tensor)
    values = getattr(tensor.contents, wanted)
    count = math.prod(shape)
    if len(values) != count:
        raise invalid(
            f"there are {len(values)} elements, but shape {list(shape)} needs {count}",
            field=f"inputs[{number}].contents.{wanted}",
        )
    array = _array(values, datatype, f"inputs[{number}].contents.{wanted}")
    return Tensor.from_numpy(name, array.reshape(shape), datatype)


def _array(values: Sequence[Any], datatype: str, field: str) -> Array:
    """The elements in one dimension. Raises INVALID_ARG for one outside the datatype's range."""
    target = DATATYPES[datatype].numpy
    limits = _SMALL.get(datatype)
    if limits is None:
        return np.fromiter(values, target, len(values))
    array: Array = np.fromiter(values, np.int64, len(values))
    outside = (array < limits[0]) | (array > limits[1])
    if outside.any():
        worst = int(np.argmax(outside))
        raise invalid(
            f"{array[worst]} does not fit {datatype}, which goes from {limits[0]} to {limits[1]}",
            field=f"{field}[{worst}]",
        )
    return array.astype(target)


def _parameters(values: Mapping[str, pb.InferParameter]) -> dict[str, Parameter]:
    """Plain values; a sequence id as the unsigned number that clients squeeze into an int64."""
    plain: dict[str, Parameter] = {}
    for name, parameter in values.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None or (choice == "uint64_param" and name != "priority"):
            raise invalid(
                "no value" if choice is None else "uint64_param is for 'priority' only",
                field=f'parameters["{name}"]',
                hint="use one of bool_param, int64_param, string_param, double_param",
            )
        plain[name] = getattr(parameter, choice)
    correlation = plain.get("sequence_id")
    if type(correlation) is int and correlation < 0:
        plain["sequence_id"] = correlation + 2**64
    return plain


def from_response(
    request_id: str, response: Response, lease: Lease = NO_REGIONS
) -> Sequence[Buffer]:
    """The parts of a ModelInferResponse. Raises INTERNAL if the model gave an impossible parameter,
    INVALID_ARG if the response is larger than a message, or an output than its shared memory.

    lease: of the request; knows the outputs that go into shared memory, and has to be written then.
    """
    head, raw = _response(request_id, response, lease)
    return wire.write_response(head, raw)


def from_stream_response(
    request_id: str, response: Response, final: bool, lease: Lease = NO_REGIONS
) -> Sequence[Buffer]:
    """The parts of a ModelStreamInferResponse. Raises as `from_response`.

    final: no other response to the request follows.
    """
    head, raw = _response(request_id, response, lease)
    head.parameters[_FINAL].bool_param = final
    return wire.write_stream_response(head, raw)


def wants_empty_final(message: pb.ModelInferRequest) -> bool:
    """Whether the client wants to hear of the end of its responses in a message without one."""
    return _EMPTY_FINAL in message.parameters and message.parameters[_EMPTY_FINAL].bool_param


def empty_final(message: pb.ModelInferRequest) -> Sequence[Buffer]:
    """A ModelStreamInferResponse that only says that no response follows."""
    answer = pb.ModelStreamInferResponse(
        infer_response=pb.ModelInferResponse(
            model_name=message.model_name, model_version=message.model_version, id=message.id
        )
    )
    answer.infer_response.parameters[_FINAL].bool_param = True
    return (answer.SerializeToString(),)


def from_stream_error(message: pb.ModelInferRequest, error: NaiadError) -> Sequence[Buffer]:
    """A ModelStreamInferResponse that says what became of one request of a stream."""
    answer = pb.ModelStreamInferResponse(
        error_message=str(error),
        infer_response=pb.ModelInferResponse(
            model_name=message.model_name, model_version=message.model_version, id=message.id
        ),
    )
    answer.infer_response.parameters[_FINAL].bool_param = True
    return (answer.SerializeToString(),)


def _response(
    request_id: str, response: Response, lease: Lease
) -> tuple[pb.ModelInferResponse, list[Buffer]]:
    """Everything but the tensors' bytes, and those; none for what goes into shared memory."""
    head = pb.ModelInferResponse(
        model_name=response.model_name, model_version=response.model_version, id=request_id
    )
    raw: list[Buffer] = []
    for tensor in response.outputs:
        head.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        raw.append(b"" if lease.put(tensor) else tensor.wire())
    for name, value in response.parameters.items():
        _set(head.parameters[name], name, value)
    return head, raw


def _set(target: pb.InferParameter, name: str, value: Parameter) -> None:
    match value:
        case bool():
            target.bool_param = value
        case int() if -(2**63) <= value < 2**63:
            target.int64_param = value
        case int() if 0 <= value < 2**64:
            target.uint64_param = value
        case float():
            target.double_param = value
        case str():
            target.string_param = value
        case _:
            raise internal(
                f"the model gave response parameter '{name}' the value {value!r}, which is not a"
                " boolean, a 64-bit integer, a number or a text"
            )


def log_setting(value: pb.LogSettingsRequest.SettingValue) -> bool | int | str | None:
    """A setting of the log as the client gave it; None leaves it as it is."""
    kind = value.WhichOneof("parameter_choice")
    if kind == "bool_param":
        return value.bool_param
    if kind == "uint32_param":
        return value.uint32_param
    return value.string_param if kind == "string_param" else None
