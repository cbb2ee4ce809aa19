"""A stream of tritonclient's blocking client, and inputs for the models that tests send on it."""

import queue
from collections.abc import Sequence
from typing import Any

import numpy as np
import tritonclient.grpc
from tests.e2e.tensors import Array


def tensor(name: str, values: Array) -> Any:
    kind = {"float32": "FP32", "int32": "INT32", "uint32": "UINT32"}[values.dtype.name]
    return tritonclient.grpc.InferInput(name, list(values.shape), kind).set_data_from_numpy(values)


def repeat(values: Sequence[int], delays: Sequence[int]) -> list[Any]:
    """Inputs of `repeat`: what to say and how many milliseconds later, each."""
    return [
        tensor("IN", np.array(values, np.int32)),
        tensor("DELAY", np.array(delays, np.uint32)),
        tensor("WAIT", np.zeros(1, np.uint32)),
    ]


class Stream:
    """A stream of a client, and what comes back on it, in that order."""

    def __init__(self, client: Any, **options: Any) -> None:
        self._client = client
        self._answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        client.start_stream(lambda result, error: self._answers.put((result, error)), **options)

    def send(self, model: str, given: Sequence[Any], **options: Any) -> None:
        self._client.async_stream_infer(model, given, **options)

    def next(self) -> tuple[Any, Any]:
        return self._answers.get(timeout=30)

    def result(self) -> Any:
        """The next answer, which is no error."""
        result, error = self.next()
        assert error is None
        return result

    @property
    def empty(self) -> bool:
        return self._answers.empty()
