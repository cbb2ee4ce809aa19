"""Triton's `repeat` backend: one response for each element of the input, each after its delay.

Inputs: `IN` (any fixed-size datatype, [n]), `DELAY` (UINT32, [n], milliseconds before each
response), `WAIT` (UINT32, [1], milliseconds before the instance takes its next request). Outputs:
`OUT` (one element of IN, [1]) and `IDX` (UINT32, its index, [1]). It has no file.
"""

import threading
from collections.abc import Sequence

import numpy as np

from naiad_backends.api import (
    Backend,
    Completion,
    Execution,
    Model,
    ModelSpec,
    Placement,
    Request,
    Responder,
    Response,
    StreamingInstance,
    Tensor,
)
from naiad_backends.errors import internal, invalid
from naiad_backends.waiting import pause


class RepeatInstance(StreamingInstance):
    """Answers from a thread of its own for each request, so that requests overlap."""

    def stream(self, request: Request, responder: Responder) -> None:
        """Raises INVALID_ARG if DELAY is not as long as IN."""
        values, delays = request.inputs["IN"], request.inputs["DELAY"].numpy()
        if delays.size != values.numpy().size:
            raise invalid(
                f"DELAY has {delays.size} elements, IN {values.numpy().size}",
                field="DELAY",
                hint="give a delay for each element",
            )
        work = threading.Thread(target=_respond, args=(request, responder), daemon=True)
        work.start()
        pause(int(request.inputs["WAIT"].numpy().ravel()[0]) / 1000, lambda: responder.cancelled)

    def execute(self, requests: Sequence[Request]) -> Execution:
        """Never called: the model is decoupled."""
        raise internal("a decoupled model has no single response")

    def close(self) -> None:
        """Nothing to give back."""


def _respond(request: Request, responder: Responder) -> None:
    values = request.inputs["IN"].numpy().ravel()
    delays = request.inputs["DELAY"].numpy().ravel()
    for index, delay in enumerate(delays):
        pause(int(delay) / 1000, lambda: responder.cancelled)
        if responder.cancelled:
            break
        outputs = [
            Tensor.from_numpy("OUT", values[index : index + 1], request.inputs["IN"].datatype),
            Tensor.from_numpy("IDX", np.array([index], np.uint32)),
        ]
        wanted = request.outputs
        responder.send(Response([t for t in outputs if not wanted or t.name in wanted]))
    responder.send(None, final=True)


class RepeatModel(Model):
    """Nothing is shared."""

    def instance(self, placement: Placement) -> RepeatInstance:
        """Runs anywhere."""
        return RepeatInstance()

    def close(self) -> None:
        """Nothing to give back."""


class RepeatBackend(Backend):
    """No options."""

    def complete(self, spec: ModelSpec) -> Completion | None:
        """There is no file to read."""
        return None

    def load(self, spec: ModelSpec) -> RepeatModel:
        """Raises INVALID_ARG unless the model is decoupled and has the three inputs."""
        names = {tensor.name for tensor in spec.inputs}
        if not spec.decoupled or names != {"IN", "DELAY", "WAIT"}:
            raise invalid(
                "a repeat model is decoupled and has the inputs IN, DELAY and WAIT",
                field="model_transaction_policy.decoupled" if not spec.decoupled else "input",
            )
        return RepeatModel()
