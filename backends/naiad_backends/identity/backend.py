"""Triton's `identity` backend: output i is input i, after an optional delay.

It has no file and no framework, so it measures what the server itself costs. Outputs share the
memory of their inputs.
"""

from collections.abc import Sequence

from naiad_backends.api import (
    Backend,
    Completion,
    Execution,
    Instance,
    Model,
    ModelSpec,
    Placement,
    Request,
    Response,
)
from naiad_backends.errors import invalid, unsupported
from naiad_backends.waiting import pause


class IdentityInstance(Instance):
    """Echoes; holds nothing."""

    def __init__(self, pairs: Sequence[tuple[str, str]], delay_s: float) -> None:
        """pairs: (input, output) names.  delay_s: how many seconds each `execute` sleeps; less if
        nobody waits for any of its requests any more."""
        self._pairs = pairs
        self._delay_s = delay_s
        self.blocking = delay_s > 0

    def execute(self, requests: Sequence[Request]) -> Execution:
        """Echo every request; an optional input that was left out has no output."""
        if self._delay_s:
            pause(self._delay_s, lambda: all(request.cancelled for request in requests))
        responses = []
        for request in requests:
            inputs, wanted = request.inputs, request.outputs
            outputs = [
                inputs[source].renamed(target)
                for source, target in self._pairs
                if source in inputs and (not wanted or target in wanted)
            ]
            responses.append(Response(outputs))
        return Execution(responses)

    def close(self) -> None:
        """Nothing to give back."""


class IdentityModel(Model):
    """The pairs of names and the delays of one configuration."""

    def __init__(self, spec: ModelSpec) -> None:
        _check(spec)
        self._pairs = tuple(
            (given.name, made.name) for given, made in zip(spec.inputs, spec.outputs, strict=True)
        )
        self._delay_s = _whole_number(spec, "execute_delay_ms") / 1000
        self._multiplier = _whole_number(spec, "instance_wise_delay_multiplier")
        self._instances = 0

    def instance(self, placement: Placement) -> IdentityInstance:
        """Raises UNSUPPORTED for a GPU: there is nothing to put on it."""
        if placement.kind == "GPU":
            raise unsupported(
                "the identity backend does not run on GPUs",
                field="instance_group",
                hint="use kind: KIND_CPU",
            )
        # As in Triton: instance n sleeps n times the multiplier, but never less than once.
        times = max(1, self._multiplier * self._instances)
        self._instances += 1
        return IdentityInstance(self._pairs, self._delay_s * times)

    def close(self) -> None:
        """Nothing to give back."""


class IdentityBackend(Backend):
    """Model parameters: `execute_delay_ms` and `instance_wise_delay_multiplier`, whole numbers."""

    def complete(self, spec: ModelSpec) -> Completion | None:
        """There is no file to read: what the configuration gives is all there is."""
        if not (spec.inputs and spec.outputs):
            return None
        return Completion(spec.inputs, spec.outputs, spec.max_batch_size)

    def load(self, spec: ModelSpec) -> IdentityModel:
        """Raises INVALID_ARG unless inputs and outputs pair up and the delays are numbers."""
        return IdentityModel(spec)


def _check(spec: ModelSpec) -> None:
    if not spec.inputs or len(spec.inputs) != len(spec.outputs):
        raise invalid(
            f"identity model '{spec.name}' has {len(spec.inputs)} inputs and"
            f" {len(spec.outputs)} outputs",
            field="output",
            hint="give at least one input, and one output for each input",
        )
    for i, (given, made) in enumerate(zip(spec.inputs, spec.outputs, strict=True)):
        if given.datatype != made.datatype:
            raise invalid(
                f"output '{made.name}' is {made.datatype}, but echoes input '{given.name}',"
                f" which is {given.datatype}",
                field=f"output[{i}].data_type",
            )
        if given.dims != made.dims:
            raise invalid(
                f"output '{made.name}' has dims {list(made.dims)}, but echoes input"
                f" '{given.name}' with dims {list(given.dims)}",
                field=f"output[{i}].dims",
            )


def _whole_number(spec: ModelSpec, key: str) -> int:
    text = spec.parameters.get(key, "0")
    if not (text.isascii() and text.isdigit()):
        raise invalid(f"'{text}' is not a whole number of 0 or more", field=f'parameters["{key}"]')
    return int(text)
