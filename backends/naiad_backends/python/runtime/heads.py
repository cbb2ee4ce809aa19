"""Requests and responses between a worker and the server: what stands in a message's head.

A tensor is (name, datatype, shape, place, offset, size), a request (id, correlation id, flags,
timeout, parameters, outputs, tensors), a response one of the lists below.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from naiad_backends.datatypes import DATATYPES
from naiad_backends.python.runtime.errors import ErrorCode, TritonError, TritonModelException
from naiad_backends.python.runtime.frames import encode
from naiad_backends.python.runtime.parcel import Packer, Unpacker
from naiad_backends.python.runtime.request import InferenceRequest
from naiad_backends.python.runtime.response import InferenceResponse
from naiad_backends.python.runtime.runner import Left
from naiad_backends.python.runtime.sender import Sink
from naiad_backends.python.runtime.tensor import Tensor

OUTPUTS, ERROR = 0, 1
"""[OUTPUTS, tensors, parameters] and [ERROR, code, message]."""

AGAIN, LATER, STREAM = 2, 3, 4
LEFT = {Left.AGAIN: f"[{AGAIN}]", Left.LATER: f"[{LATER}]", Left.STREAM: f"[{STREAM}]"}
"""[number]: there is no response yet."""

_MOST_KNOWN = 1024

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
        self._known: dict[tuple[str, str, tuple[int, ...]], str] = {}

    def choose(
        self, response: InferenceResponse, wanted: Sequence[str]
    ) -> list[Tensor] | TritonError:
        """The outputs that are wanted; an error for what the configuration does not have."""
        error = response.error()
        if error is not None:
            return error
        for tensor in response.tensors:
            described = tensor.described()
            if described not in self._known:
                wrong = self._learn(*described)
                if wrong is not None:
                    return wrong
        return [tensor for tensor in response.tensors if tensor.name() in wanted]

    def pack(self, response: InferenceResponse, wanted: Sequence[str], packer: Packer) -> str:
        """The head of a response as JSON text; its tensors go into the packer."""
        error = response.error()
        if error is not None:
            return error_head(error.code(), error.message())
        known = self._known
        parts = []
        named = len(packer.named)
        try:
            for tensor in response.tensors:
                described = tensor.described()
                if described not in known:
                    wrong = self._learn(*described)
                    if wrong is not None:
                        packer.forget(named)
                        return error_head(wrong.code(), wrong.message())
                if described[0] in wanted:
                    place = packer.add(tensor.wire())
                    parts.append("%s%d,%d,%d]" % (known[described], *place))  # noqa: UP031
        except TritonModelException as failure:
            packer.forget(named)
            return error_head(ErrorCode.INTERNAL, str(failure))
        values = response.values()
        return f"[{OUTPUTS},[{','.join(parts)}],{encode(values) if values else '{}'}]"

    def _learn(self, name: str, datatype: str, shape: tuple[int, ...]) -> TritonError | None:
        """Hold an output against the configuration, and remember its head if it may go out."""
        spec = self._specs.get(name)
        if spec is None:
            return TritonError(
                f"the model gave an output '{name}' that its configuration does not have;"
                f" it has {', '.join(self._specs)}",
                ErrorCode.INVALID_ARG,
            )
        if datatype != spec[0] or not _fits(shape, spec[1]):
            text = (
                f"output '{name}' is {datatype} {list(shape)}, but its configuration says"
                f" {spec[0]} {list(spec[1])}"
            )
            if self._strict:
                return TritonError(text, ErrorCode.INVALID_ARG)
            if name not in self._warned:
                self._warned.add(name)
                self._complain(text)
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[name, datatype, shape] = f"{encode([name, datatype, shape])[:-1]},"
        return None


def error_head(code: int, message: str) -> str:
    """The head of an error response as JSON text."""
    # Half a surrogate pair, as in a file's name, is no text that JSON readers take.
    return encode([ERROR, int(code), message.encode("utf-8", "replace").decode()])


def _fits(shape: Sequence[int], dims: Sequence[int]) -> bool:
    if len(shape) != len(dims):
        return False
    return all(dim in (-1, size) for size, dim in zip(shape, dims, strict=True))


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


def pack_request(request: InferenceRequest, packer: Packer) -> Head:
    """A request for another model: its name and version, the same as of any request, and what the
    server finds the trace of the one that led to it by."""
    return (
        request.model_name(),
        request.model_version(),
        request.request_id(),
        request.correlation_id(),
        request.flags(),
        request.timeout(),
        request.values(),
        request.wanted,
        [(*tensor.described(), *packer.add(tensor.wire())) for tensor in request.inputs()],
        request.trace().origin,
    )


def read_response(head: Head, unpacker: Unpacker) -> InferenceResponse:
    """A response of another model."""
    if head[0] == ERROR:
        return InferenceResponse.received((), TritonError(head[2], head[1]), {})
    return InferenceResponse.received(read_tensors(head[1], unpacker), None, head[2])


def fits(datatype: str, shape: Sequence[int], size: int) -> bool:
    """Whether so many bytes can be such a tensor. BYTES are looked at when somebody reads them."""
    kind = DATATYPES[datatype]
    return size >= 4 * math.prod(shape) if not kind.size else size == kind.size * math.prod(shape)
