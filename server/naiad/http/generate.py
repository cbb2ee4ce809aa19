"""The generate extension: one flat JSON object <-> Request, and each response <-> one object.

Source: Triton's generate extension. Members that are inputs of the model become tensors, all others
parameters; shapes follow from the model. Unlike Triton, sequence controls, priority and timeout
mean here what they mean in `infer`.
"""

import math
from typing import Any

from naiad.core.parameters import interpret
from naiad.http import jsondata
from naiad_backends.api import ModelSpec, Parameter, Request, Response, Tensor, TensorSpec
from naiad_backends.errors import invalid

_NAME = "parameters"


def decode(spec: ModelSpec, version: str, document: Any) -> Request:
    """Read a generate request for a model.

    Raises INVALID_ARG, naming the member, for what cannot be an input or a parameter.
    """
    if not isinstance(document, dict):
        raise invalid("the body is not a JSON object")
    inputs = {tensor.name: tensor for tensor in spec.inputs}
    if _NAME in inputs:
        raise invalid(
            f"model '{spec.name}' has an input called '{_NAME}', which generate cannot name",
            hint="use infer",
        )
    identifier = document.get("id", "")
    if not isinstance(identifier, str):
        raise invalid("must be a string", field="id")
    request = Request(spec.name, version, identifier)
    nested = document.get(_NAME, {})
    if not isinstance(nested, dict):
        raise invalid("must be an object", field=_NAME)
    members = {**{k: v for k, v in document.items() if k != _NAME}, **nested}
    parameters: dict[str, Parameter] = {}
    for name, value in members.items():
        if name in inputs:
            request.inputs[name] = _tensor(inputs[name], value, spec.max_batch_size > 0)
        elif isinstance(value, bool | int | float | str):
            parameters[name] = value
        else:
            raise invalid(
                "a parameter is a boolean, a number or a string",
                field=name,
                hint=f"the model's inputs are {', '.join(inputs) or 'none'}",
            )
    interpret(request, parameters)
    return request


def _tensor(spec: TensorSpec, value: Any, batching: bool) -> Tensor:
    data = value if isinstance(value, list) else [value]
    if any(isinstance(element, list | dict) for element in data):
        raise invalid("an input is a scalar or a flat array", field=spec.name)
    shape = shape_of(spec, len(data), batching)
    return jsondata.decode(spec.name, spec.datatype, shape, data, spec.name)


def shape_of(spec: TensorSpec, count: int, batching: bool) -> tuple[int, ...]:
    """The shape of so many elements of an input: its fixed dimensions take their share, the
    innermost open one the rest. Raises INVALID_ARG for a number that does not fit."""
    dims = (-1, *spec.dims) if batching else spec.dims
    fixed = math.prod(dim for dim in dims if dim != -1)
    rest, over = divmod(count, fixed)
    shape: list[int] = []
    for dim in reversed(dims):
        shape.insert(0, dim if dim != -1 else rest)
        rest = 1 if dim == -1 else rest
    if over or math.prod(shape) != count:
        raise invalid(f"{count} elements do not fill the shape {list(dims)}", field=spec.name)
    return tuple(shape)


def encode(request: Request, response: Response) -> bytes:
    """One response as a flat JSON object; an output with one element is a scalar.

    Of members with one name the first stays: id, the model's name and version, parameters, outputs.
    Raises INVALID_ARG for an output that has no JSON form.
    """
    answer: dict[str, Any] = {"id": request.id} if request.id else {}
    answer["model_name"] = response.model_name
    answer["model_version"] = response.model_version
    told = {name: value for name, value in response.parameters.items() if name not in answer}
    for tensor in response.outputs:
        if tensor.name not in answer and tensor.name not in told:
            told[tensor.name] = _data(tensor)
    return jsondata.dumps(answer | told, told.values())


def _data(tensor: Tensor) -> Any:
    data = jsondata.encode(tensor)
    if len(data) != 1:
        return data
    return data[0] if isinstance(data, list) else data[0].item()


def event(document: bytes) -> bytes:
    """A server-sent event with this as its data."""
    return b"data: " + document + b"\n\n"
