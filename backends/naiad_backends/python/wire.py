"""The contract's requests and responses as a worker's messages have them, from the server's side.

What comes from a worker is held against what it must be: a model may have damaged its process.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from naiad_backends.api import ModelSpec, Request, Response, Tensor, TensorSpec
from naiad_backends.errors import Code, NaiadError
from naiad_backends.python.runtime import heads
from naiad_backends.python.runtime.errors import ErrorCode
from naiad_backends.python.runtime.parcel import Packer, Unpacker
from naiad_backends.reshape import fits, translate

_MOST_DIMS, _MOST_ELEMENTS = 32, 1 << 48
"""Of any array that NumPy can make, also if one of its dimensions is 0."""

START, END = 1, 2
"""Flags of a sequence."""


def model_shape(shape: tuple[int, ...], spec: TensorSpec, batched: bool) -> tuple[int, ...]:
    """A shape that fits the configuration's dims, as its reshape wants it."""
    return translate(shape, spec.dims, spec.model_dims, batched)


def client_shape(shape: tuple[int, ...], spec: TensorSpec, batched: bool) -> tuple[int, ...]:
    """The other way; a shape that does not fit stays as it is."""
    if not fits(shape, spec.model_dims, batched):
        return shape
    return translate(shape, spec.model_dims, spec.dims, batched)


def reshaped(specs: Sequence[TensorSpec]) -> Mapping[str, TensorSpec]:
    """Those that have a reshape, by name."""
    return {spec.name: spec for spec in specs if spec.reshape is not None}


def flags(request: Request) -> int:
    """Triton's flags of a request."""
    return START * request.sequence_start + END * request.sequence_end


class Writer:
    """Requests for the worker of one model version."""

    def __init__(self, spec: ModelSpec) -> None:
        self._batched = spec.max_batch_size > 0
        self._reshaped = reshaped(spec.inputs + spec.server_inputs)

    def request(self, request: Request, packer: Packer) -> tuple[Any, ...]:
        """The head of a request; its tensors go into the packer."""
        tensors = [
            (tensor.name, tensor.datatype, tensor.shape, *packer.add(tensor.wire()))
            for tensor in request.inputs.values()
        ]
        if self._reshaped:
            tensors = [self._reshape(*tensor) for tensor in tensors]
        return (
            request.id,
            request.correlation_id,
            flags(request),
            request.timeout_us,
            dict(request.parameters),
            tuple(request.outputs),
            tensors,
        )

    def _reshape(self, name: str, datatype: str, shape: tuple[int, ...], *place: int) -> Any:
        spec = self._reshaped.get(name)
        if spec is not None:
            shape = model_shape(shape, spec, self._batched)
        return (name, datatype, shape, *place)


class Reader:
    """Responses of the worker of one model version."""

    def __init__(self, spec: ModelSpec) -> None:
        self._batched = spec.max_batch_size > 0
        self._names = {spec.name for spec in spec.outputs + spec.server_outputs}
        self._reshaped = reshaped(spec.outputs + spec.server_outputs)

    def response(self, head: Any, unpacker: Unpacker) -> Response:
        """Raises ValueError, LookupError, TypeError or AttributeError for what no worker of ours
        says."""
        kind = head[0]
        if kind == heads.OUTPUTS:
            outputs = [read_tensor(one, unpacker) for one in head[1]]
            if not self._names.issuperset([tensor.name for tensor in outputs]):
                raise ValueError("a worker sent an output that its model does not have")
            for tensor in outputs if self._reshaped else ():
                spec = self._reshaped.get(tensor.name)
                if spec is not None:
                    tensor.shape = client_shape(tensor.shape, spec, self._batched)
            return Response(outputs, _parameters(head[2]) if head[2] else {})
        if kind == heads.ERROR:
            return Response(error=NaiadError(Code[ErrorCode(head[1]).name], str(head[2])))
        if kind == heads.AGAIN:
            return Response(reschedule=True)
        if kind not in (heads.LATER, heads.STREAM):
            raise ValueError(f"a worker sent a response of kind {kind}")
        return Response()


def _parameters(given: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, value in given.items():
        if not isinstance(value, bool | int | float | str):
            raise ValueError(f"a worker sent the parameter '{name}' as {type(value).__name__}")
    return given


def read_tensor(head: Any, unpacker: Unpacker) -> Tensor:
    """A tensor from a worker. Raises as `Reader.response`."""
    name, datatype, sizes, place, offset, size = head
    shape = tuple(sizes)
    for dim in shape:
        if type(dim) is not int or dim < 0:
            raise ValueError(f"a worker sent the shape {sizes}")
    if len(shape) > _MOST_DIMS or (not size and math.prod(filter(None, shape)) > _MOST_ELEMENTS):
        raise ValueError(f"a worker sent the shape {str(sizes)[:200]}, which no array has")
    if not heads.fits(datatype, shape, size):
        raise ValueError(f"a worker sent {size} bytes as {datatype} {sizes}")
    return Tensor(name, datatype, shape, None, unpacker.get(place, offset, size))


def read_request(head: Sequence[Any], unpacker: Unpacker) -> Request:
    """A request that a model makes for another one."""
    name, version, id, correlation, bits, timeout, parameters, outputs, inputs, _ = head
    tensors = [read_tensor(one, unpacker) for one in inputs]
    return Request(
        model_name=str(name),
        model_version="" if version == -1 else str(version),
        id=str(id),
        inputs={tensor.name: tensor for tensor in tensors},
        outputs=[str(name) for name in outputs],
        correlation_id=correlation,
        sequence_start=bool(bits & START),
        sequence_end=bool(bits & END),
        timeout_us=int(timeout),
        parameters=dict(parameters),
    )


def response_head(response: Response, packer: Packer) -> tuple[Any, ...]:
    """The response of another model, for the model that called it."""
    error = response.error
    if error is not None:
        return heads.ERROR, int(ErrorCode[error.code.name]), str(error)
    tensors = [
        (tensor.name, tensor.datatype, tuple(tensor.shape), *packer.add(tensor.wire()))
        for tensor in response.outputs
    ]
    return heads.OUTPUTS, tensors, dict(response.parameters)


def output_specs(spec: ModelSpec) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What the model may answer: datatype and shape by name, the client's outputs first."""
    lead = (-1,) if spec.max_batch_size > 0 else ()
    return {
        one.name: (one.datatype, (*lead, *one.model_dims))
        for one in spec.outputs + spec.server_outputs
    }
