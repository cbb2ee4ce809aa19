"""Warms an instance up: runs what the configuration says on it, before anybody else uses it.

Straight to the instance, on the caller's thread: no queue, no statistics. Source: Triton's
`ModelWarmup`.
"""

import logging
import math
import threading
from collections.abc import Callable, Sequence

import numpy as np

from naiad.repository.warmup import Warmup, WarmupInput, stored
from naiad_backends.api import (
    Array,
    Instance,
    ModelSpec,
    Request,
    Responder,
    Response,
    StreamingInstance,
    Tensor,
)
from naiad_backends.datatypes import DATATYPES
from naiad_backends.errors import NaiadError, internal

logger = logging.getLogger(__name__)


def warmer(spec: ModelSpec, warmups: Sequence[Warmup]) -> Callable[[Instance], None]:
    """A function that warms an instance of this version up; it raises the model's error, with the
    field that it is about.

    Raises INVALID_ARG for a file that cannot be read or is too short.
    """
    ready = [
        (one, [_tensor(spec, given) for given in one.inputs] + _of_server(spec, one))
        for one in warmups
    ]

    def warm(instance: Instance) -> None:
        for warmup, tensors in ready:
            for _ in range(warmup.count):
                requests = [_request(spec, tensors) for _ in range(warmup.batch_size)]
                try:
                    _execute(spec, instance, requests)
                except NaiadError as error:
                    raise _failure(warmup, error) from error
                except Exception as error:
                    logger.exception("model '%s' failed to warm up", spec.name)
                    found = internal(f"{type(error).__name__}: {error}")
                    raise _failure(warmup, found) from error

    return warm


def _failure(warmup: Warmup, error: NaiadError) -> NaiadError:
    message = f"warm-up '{warmup.name}' failed: {error.message}"
    return NaiadError(error.code, message, field=warmup.path, hint=error.hint)


def _request(spec: ModelSpec, tensors: Sequence[Tensor]) -> Request:
    inputs = {tensor.name: tensor for tensor in tensors}
    return Request(spec.name, str(spec.version), inputs=inputs)


def _execute(spec: ModelSpec, instance: Instance, requests: Sequence[Request]) -> None:
    """Run requests, all at once if the model can. Raises what one of them ended with."""
    if spec.decoupled and isinstance(instance, StreamingInstance):
        for request in requests:
            listener = _Listener()
            instance.stream(request, listener)
            listener.wait()
        return
    for response in instance.execute(requests).responses:
        if response.error is not None:
            raise response.error


class _Listener(Responder):
    """Takes the responses of a decoupled model, and keeps only what went wrong."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._error: NaiadError | None = None

    def send(self, response: Response | None, final: bool = False) -> None:
        if response is not None and response.error is not None:
            self._error = self._error or response.error
        if final:
            self._ended.set()

    @property
    def cancelled(self) -> bool:
        return False

    def wait(self) -> None:
        """Until the final response. Raises the first error."""
        self._ended.wait()
        if self._error is not None:
            raise self._error


def _tensor(spec: ModelSpec, given: WarmupInput) -> Tensor:
    shape = (1, *given.dims) if spec.max_batch_size else given.dims
    if given.file is None:
        make = _random if given.random else _zeros
        return Tensor.from_numpy(given.name, make(given.datatype, shape), given.datatype)
    try:
        data = stored(given.file, given.datatype, math.prod(shape))
    except NaiadError as error:
        error.field = f"{given.path}.input_data_file"
        raise
    return Tensor.from_wire(given.name, given.datatype, shape, data)


def _of_server(spec: ModelSpec, warmup: Warmup) -> list[Tensor]:
    """Zeros for what the server adds to requests, where the warm-up does not say."""
    given = {tensor.name for tensor in warmup.inputs}
    lead = (1,) if spec.max_batch_size else ()
    return [
        Tensor.from_numpy(
            tensor.name,
            _zeros(tensor.datatype, (*lead, *(max(size, 1) for size in tensor.dims))),
            tensor.datatype,
        )
        for tensor in spec.server_inputs
        if tensor.name not in given
    ]


def _zeros(datatype: str, shape: tuple[int, ...]) -> Array:
    if datatype == "BYTES":
        return np.full(shape, b"", object)
    return np.zeros(shape, DATATYPES[datatype].numpy)


def _random(datatype: str, shape: tuple[int, ...]) -> Array:
    """Numbers that most models can take: floats from 0 to 1, whole numbers from 0 to 127, words."""
    generator = np.random.default_rng()
    if datatype == "BYTES":
        words = np.empty(shape, object)
        words.ravel()[:] = [b"%08x" % n for n in generator.integers(2**32, size=words.size)]
        return words
    kind = DATATYPES[datatype].numpy
    if datatype == "BF16":
        # The upper half of a FP32 number.
        return (generator.random(shape, np.float32).view(np.uint32) >> 16).astype(kind)
    if kind.kind == "f":
        return np.asarray(generator.random(shape)).astype(kind)
    return generator.integers(0, 2 if datatype == "BOOL" else 128, shape).astype(kind)
