"""Requests and responses between a worker and the server: what stands in a message's head.

A tensor is (name, datatype, shape, place, offset, size), a request (id, correlation id, flags,
timeout, parameters, outputs, tensors), a response one of the lists below.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from naiad_backends.datatypes import DATATYPES
from naiad_backends.python.runtime.errors import ErrorCode, TritonError, TritonModelException
from naiad_backends.python.runtime.parcel import Packer, Unpacker
from naiad_backends.python.runtime.request import InferenceRequest
from naiad_backends.python.runtime.response import InferenceResponse
from naiad_backends.python.runtime.runner import Left
from naiad_backends.python.runtime.sender import Sink
from naiad_backends.python.runtime.tensor import Tensor

OUTPUTS, ERROR = 0, 1
"""[OUTPUTS, tensors, parameters] and [ERROR, code, message]."""

LEFT = {Left.AGAIN: 2, Left.LATER: 3, Left.STREAM: 4}
"""[number]: there is no response yet."""

AGAIN, LATER, STREAM = LEFT.values()

Head = Sequence[Any]


class Outputs:
    """What a model may answer, by its configuration."""

    def __init__(
        self,
        specs: Mapping[str, tuple[str, Sequence[int]]],
        complain: Callable[[str], None],
        strict: bool,
    ) -> None:
        """specs: by name, datatype and shape, -1 for any size.
        complain: writes a warning to the log.
        strict: outputs of another datatype or shape are errors; else they go out with a warning,
            once for each output."""
        self._specs = specs
        self._complain = complain
        self._strict = strict
        self._warned: set[str] = set()

    def choose(
        self, response: InferenceResponse, wanted: Sequence[str]
    ) -> list[Tensor] | TritonError:
        """The outputs that are wanted; an error for what the configuration does not have."""
        error = response.error()
        if error is not None:
            return error
        tensors = []
        for tensor in response.output_tensors():
            name = tensor.name()
            spec = self._specs.get(name)
            if spec is None:
                return TritonError(
                    f"the model gave an output '{name}' that its configuration does not have;"
                    f" it has {', '.join(self._specs)}",
                    ErrorCode.INVALID_ARG,
                )
            if name not in wanted:
                continue
            if tensor.datatype != spec[0] or not _fits(tensor.shape(), spec[1]):
                wrong = self._wrong(tensor, spec)
                if wrong is not None:
                    return wrong
            tensors.append(tensor)
        return tensors

    def _wrong(self, tensor: Tensor, spec: tuple[str, Sequence[int]]) -> TritonError | None:
        text = (
            f"output '{tensor.name()}' is {tensor.datatype} {tensor.shape()}, but its configuration"
            f" says {spec[0]} {list(spec[1])}"
        )
        if self._strict:
            return TritonError(text, ErrorCode.INVALID_ARG)
        if tensor.name() not in self._warned:
            self._warned.add(tensor.name())
            self._complain(text)
        return None

    def pack(self, response: InferenceResponse, wanted: Sequence[str], packer: Packer) -> Head:
        """The head of a response; its tensors go into the packer."""
        chosen = self.choose(response, wanted)
        if isinstance(chosen, TritonError):
            return error_head(chosen.code(), chosen.message())
        try:
            tensors = [
                (tensor.name(), tensor.datatype, tensor.shape(), *packer.add(tensor.wire()))
                for tensor in chosen
            ]
        except TritonModelException as error:
            return error_head(ErrorCode.INTERNAL, str(error))
        return OUTPUTS, tensors, response.values()


def error_head(code: int, message: str) -> Head:
    """The head of an error response."""
    # Half a surrogate pair, as in a file's name, is no text that JSON readers take.
    return ERROR, int(code), message.encode("utf-8", "replace").decode()


def _fits(shape: Sequence[int], dims: Sequence[int]) -> bool:
    if len(shape) != len(dims):
        return False
    # A loop, because this runs for each output of each response.
    for size, dim in zip(shape, dims, strict=True):  # noqa: SIM110
        if dim not in (-1, size):
            return False
    return True


def read_tensors(heads: Sequence[Head], unpacker: Unpacker) -> tuple[Tensor, ...]:
    """The tensors of a message from the server."""
    return tuple(
        [
            Tensor.of_wire(name, datatype, shape, unpacker.get(place, offset, size))
            for name, datatype, shape, place, offset, size in heads
        ]
    )


def read_request(
    head: Head,
    unpacker: Unpacker,
    sink: Sink,
    index: int,
    decoupled: bool,
    outputs: tuple[str, ...],
) -> InferenceRequest:
    """A request for `execute`.  outputs: all of the model's, for one that names none."""
    id, correlation, flags, timeout, parameters, wanted, tensors = head
    inputs = read_tensors(tensors, unpacker)
    return InferenceRequest.received(
        sink,
        index,
        decoupled,
        id,
        correlation,
        flags,
        timeout,
        wanted or outputs,
        parameters,
        inputs,
    )


def pack_request(request: InferenceRequest, packer: Packer) -> dict[str, Any]:
    """A request for another model."""
    return {
        "model_name": request.model_name(),
        "model_version": request.model_version(),
        "id": request.request_id(),
        "correlation_id": request.correlation_id(),
        "flags": request.flags(),
        "timeout": request.timeout(),
        "parameters": request.values(),
        "outputs": request.requested_output_names(),
        "inputs": [
            (tensor.name(), tensor.datatype, tensor.shape(), *packer.add(tensor.wire()))
            for tensor in request.inputs()
        ],
    }


def read_response(head: Head, unpacker: Unpacker) -> InferenceResponse:
    """A response of another model."""
    if head[0] == ERROR:
        return InferenceResponse.received((), TritonError(head[2], head[1]), {})
    return InferenceResponse.received(read_tensors(head[1], unpacker), None, head[2])


def fits(datatype: str, shape: Sequence[int], size: int) -> bool:
    """Whether so many bytes can be such a tensor. BYTES are looked at when somebody reads them."""
    kind = DATATYPES[datatype]
    return size >= 4 * math.prod(shape) if not kind.size else size == kind.size * math.prod(shape)
