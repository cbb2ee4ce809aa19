"""v2 inference over HTTP: a body with JSON and binary tensors <-> Request, and Response <-> body.

Source: KServe v2 REST protocol and Triton's binary tensor data extension. The body is a JSON
object of `Inference-Header-Content-Length` bytes, then the binary inputs, end to end. With the
header at 0 there is no JSON: the whole body is the model's only input.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from naiad.core.parameters import interpret
from naiad.core.shared_memory import NO_REGIONS, Lease
from naiad.http import jsondata
from naiad_backends.api import (
    Buffer,
    ModelSpec,
    Parameter,
    Request,
    Response,
    Tensor,
    unknown_datatype,
)
from naiad_backends.datatypes import DATATYPES
from naiad_backends.errors import NaiadError, invalid

MAX_DIMENSIONS = 32
"""Dimensions that a shape may have; every NumPy can make such an array."""

MAX_ELEMENTS = 2**60 - 1
"""Elements that a shape may stand for, zeros left out: their bytes are counted in an int64."""


@dataclass(slots=True)
class OutputForm:
    """How the client wants its outputs: as binary data by default, and by name.

    lease: what knows the outputs that go into shared memory.
    """

    binary: bool = False
    by_name: dict[str, bool] = field(default_factory=dict)
    lease: Lease = NO_REGIONS


def decode(
    model: str,
    version: str,
    body: Buffer,
    header_length: int | None,
    max_json: int,
    lease: Lease = NO_REGIONS,
) -> tuple[Request, OutputForm]:
    """Read an inference request.

    header_length: bytes of JSON in front of the binary part; None if the body is all JSON.
    max_json: the largest JSON part, in bytes.
    lease: gets hold of the shared memory that the request names; has to be read then.
    Raises INVALID_ARG, naming the field, for anything that is not as the protocol says, NOT_FOUND
    for an unknown region of shared memory.
    """
    whole = memoryview(body)
    json_size = len(whole) if header_length is None else header_length
    if json_size > max_json:
        raise invalid(
            f"the JSON part has {json_size} bytes, more than the limit of {max_json}",
            hint="send large tensors as binary data or raise --http-max-input-size",
        )
    document = jsondata.loads(whole[:json_size])
    if not isinstance(document, dict):
        raise invalid("the body is not a JSON object")
    request = Request(model, version, _text(document, "id", ""))
    form = OutputForm(lease=lease)
    if (parameters := document.get("parameters")) is not None:
        _read_parameters(request, form, parameters)
    binary = _Binary(whole[json_size:], header_length is not None)
    inputs = document.get("inputs")
    if not isinstance(inputs, list):
        _wrong("inputs", "an array of inputs", inputs)
    for number, item in enumerate(inputs):
        tensor = _read_input(item, binary, lease, f"inputs[{number}]")
        if tensor.name in request.inputs:
            raise invalid(f"input '{tensor.name}' is given twice", field=f"inputs[{number}].name")
        request.inputs[tensor.name] = tensor
    binary.finish()
    if (outputs := document.get("outputs")) is not None:
        _read_outputs(request, form, outputs)
    return request, form


class _Binary:
    """The binary part of a body, taken from the front input by input."""

    def __init__(self, data: memoryview, announced: bool) -> None:
        self._data = data
        self._announced = announced
        self._at = 0

    def take(self, size: Any, where: str) -> memoryview:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            _wrong(f"{where}.parameters.binary_data_size", "a non-negative integer", size)
        if not self._announced:
            raise invalid(
                "binary data is announced, but the header Inference-Header-Content-Length is"
                " missing",
                field=f"{where}.parameters.binary_data_size",
                hint="set the header to the length of the JSON part in bytes",
            )
        end = self._at + size
        if end > len(self._data):
            raise invalid(
                f"announces {size} bytes, but only {len(self._data) - self._at} are left in the"
                " body",
                field=f"{where}.parameters.binary_data_size",
            )
        view = self._data[self._at : end]
        self._at = end
        return view

    def finish(self) -> None:
        left = len(self._data) - self._at
        if left:
            raise invalid(
                f"the body goes on for {left} bytes behind the last binary input",
                hint="the binary_data_size of all inputs must add up to the binary part, and"
                " Inference-Header-Content-Length be the length of the JSON part",
            )


def _read_input(item: Any, binary: _Binary, lease: Lease, where: str) -> Tensor:
    if not isinstance(item, dict):
        _wrong(where, "an object", item)
    name = _text(item, "name", None, where)
    datatype = _text(item, "datatype", None, where)
    shape = _read_shape(item.get("shape"), where)
    parameters = _tensor_parameters(item, where)
    size = parameters.get("binary_data_size")
    data = item.get("data")
    shared = lease.input(parameters, where, at_once=datatype == "BYTES")
    if (size is not None) + (data is not None) + (shared is not None) != 1:
        raise invalid(
            f"input '{name}' has none or several of data, binary_data_size and"
            " shared_memory_region",
            field=where,
            hint="give the tensor as `data`, as `parameters.binary_data_size` or as"
            " `parameters.shared_memory_region`",
        )
    if data is not None:
        return jsondata.decode(name, datatype, shape, data, where)
    if datatype not in DATATYPES:
        raise unknown_datatype(datatype, f"{where}.datatype")
    wire = binary.take(size, where) if shared is None else shared
    try:
        return Tensor.from_wire(name, datatype, shape, wire)
    except NaiadError as error:
        raise invalid(error.message, field=where, hint=error.hint) from None


def _read_shape(shape: Any, where: str) -> tuple[int, ...]:
    if not isinstance(shape, list):
        _wrong(f"{where}.shape", "an array of integers", shape)
    if len(shape) > MAX_DIMENSIONS:
        raise invalid(
            f"has {len(shape)} dimensions, more than the limit of {MAX_DIMENSIONS}",
            field=f"{where}.shape",
        )
    elements = 1
    for number, size in enumerate(shape):
        if type(size) is not int or size < 0:
            _wrong(f"{where}.shape[{number}]", "a non-negative integer", size)
        elements *= size or 1
    if elements > MAX_ELEMENTS:
        raise invalid("stands for more elements than can be counted", field=f"{where}.shape")
    return tuple(shape)


def _tensor_parameters(item: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The parameters of one input or output."""
    parameters = item.get("parameters")
    if parameters is None:
        return _NO_PARAMETERS
    if not isinstance(parameters, dict):
        _wrong(f"{where}.parameters", "an object", parameters)
    return parameters


_NO_PARAMETERS: Mapping[str, Any] = {}


def _read_parameters(request: Request, form: OutputForm, parameters: Any) -> None:
    if not isinstance(parameters, dict):
        _wrong("parameters", "an object", parameters)
    values: dict[str, Parameter] = {}
    for name, value in parameters.items():
        if name == "binary_data_output":
            if not isinstance(value, bool):
                _wrong('parameters["binary_data_output"]', "true or false", value)
            form.binary = value
        elif isinstance(value, bool | int | float | str):
            values[name] = value
        else:
            _wrong(f'parameters["{name}"]', "a boolean, a number or a string", value)
    interpret(request, values)


def _read_outputs(request: Request, form: OutputForm, outputs: Any) -> None:
    if not isinstance(outputs, list):
        _wrong("outputs", "an array of outputs", outputs)
    names: list[str] = []
    for number, item in enumerate(outputs):
        where = f"outputs[{number}]"
        if not isinstance(item, dict):
            _wrong(where, "an object", item)
        name = _text(item, "name", None, where)
        names.append(name)
        parameters = _tensor_parameters(item, where)
        if (count := parameters.get("classification")) is not None:
            _read_classification(request, name, count, where)
        binary = parameters.get("binary_data")
        if binary is not None:
            if not isinstance(binary, bool):
                _wrong(f"{where}.parameters.binary_data", "true or false", binary)
            form.by_name[name] = binary
        if form.lease.output(name, parameters, where) and (
            binary or name in (request.classes or ())
        ):
            raise invalid(
                f"output '{name}' is to go into shared memory, and also to be binary data or"
                " classes",
                field=f"{where}.parameters",
                hint="ask for one of them",
            )
    request.outputs = names


def _read_classification(request: Request, name: str, count: Any, where: str) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        _wrong(f"{where}.parameters.classification", "a non-negative integer", count)
    if count:
        request.classes = {**(request.classes or {}), name: count}


def _text(item: Mapping[str, Any], key: str, default: str | None, where: str = "") -> str:
    value = item.get(key, default)
    if not isinstance(value, str):
        _wrong(f"{where}.{key}" if where else key, "a string", value)
    return value


def _wrong(where: str, wanted: str, value: Any) -> NoReturn:
    if value is None:
        raise invalid(f"missing; it must be {wanted}", field=where)
    raise invalid(f"must be {wanted}, not {jsondata.show(value)}", field=where)


def decode_raw(spec: ModelSpec, version: str, body: Buffer) -> tuple[Request, OutputForm]:
    """Read a request whose body is nothing but the model's single input, as one batch element.

    Raises INVALID_ARG if the model has several inputs or the shape cannot be told from the size.
    """
    if len(spec.inputs) != 1:
        raise invalid(
            f"a raw request needs a model with exactly one input, '{spec.name}' has"
            f" {len(spec.inputs)}"
        )
    tensor = spec.inputs[0]
    lead = (1,) if spec.max_batch_size else ()
    kind = DATATYPES[tensor.datatype]
    request = Request(spec.name, version)
    if kind.size == 0:
        shape = tuple(1 if dim == -1 else dim for dim in tensor.dims)
        if math.prod(shape) != 1:
            raise invalid(f"a raw BYTES request has one element, but the shape is {list(shape)}")
        wire: Buffer = len(body).to_bytes(4, "little") + bytes(body)
    else:
        shape = _raw_shape(tensor.dims, len(body), kind.size)
        wire = body
    request.inputs[tensor.name] = Tensor.from_wire(tensor.name, tensor.datatype, lead + shape, wire)
    return request, OutputForm(binary=True)


def _raw_shape(dims: tuple[int, ...], size: int, item_size: int) -> tuple[int, ...]:
    if dims.count(-1) > 1:
        raise invalid(f"the shape of a raw request cannot be told for dims {list(dims)}")
    fixed = math.prod(dim for dim in dims if dim != -1) * item_size
    if size % fixed:
        raise invalid(f"the body has {size} bytes, which is no multiple of {fixed}")
    return tuple(size // fixed if dim == -1 else dim for dim in dims)


def encode(request: Request, response: Response, form: OutputForm) -> tuple[bytes, list[Buffer]]:
    """The response as its JSON part and the binary outputs that follow it, in order. The form's
    lease has to be written then.

    Raises INVALID_ARG for an output that has no JSON form or does not fit its shared memory.
    """
    outputs: list[dict[str, Any]] = []
    binary: list[Buffer] = []
    numbers: list[Any] = []
    by_name = form.by_name
    for tensor in response.outputs:
        output: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        outputs.append(output)
        if form.lease.put(tensor):
            continue
        if by_name.get(tensor.name, form.binary):
            wire = tensor.wire()
            size = wire.nbytes if type(wire) is memoryview else len(wire)
            output["parameters"] = {"binary_data_size": size}
            if size:
                binary.append(wire)
        else:
            output["data"] = jsondata.encode(tensor)
            numbers.append(output["data"])
    answer: dict[str, Any] = {
        "model_name": response.model_name,
        "model_version": response.model_version,
        "outputs": outputs,
    }
    if request.id:
        answer["id"] = request.id
    if response.parameters:
        answer["parameters"] = dict(response.parameters)
        numbers.extend(response.parameters.values())
    return jsondata.dumps(answer, numbers), binary
