"""A loaded ONNX model and its instances: requests in, one run of the graph, responses out.

Knows nothing of files or of how a session was configured.
"""

import time
from collections.abc import Callable, Sequence

from naiad_backends.api import (
    Array,
    Execution,
    Instance,
    Model,
    ModelSpec,
    Placement,
    Request,
    Response,
    Tensor,
    TensorSpec,
)
from naiad_backends.batching import batch_sizes, gather, scatter, stackable, wanted_outputs
from naiad_backends.errors import NaiadError
from naiad_backends.onnx.runtime import Runner
from naiad_backends.onnx.types import from_text, to_text
from naiad_backends.ragged import batch_input, flatten, split
from naiad_backends.reshape import to_client, to_model

Step = Callable[[Array], Array]


class OnnxInstance(Instance):
    """One caller of a session that it may share with other instances."""

    def __init__(self, runner: Runner, spec: ModelSpec) -> None:
        batched = spec.max_batch_size > 0
        self._runner = runner
        self._batched = batched
        self._outputs = [output.name for output in spec.outputs]
        self._hidden = [output.name for output in spec.server_outputs]
        inputs = spec.inputs + spec.server_inputs
        outputs = spec.outputs + spec.server_outputs
        self._datatypes = {output.name: output.datatype for output in outputs}
        # Only tensors that need more than a hand-over have a step.
        self._before = _steps(inputs, lambda tensor: _input_step(tensor, batched))
        self._after = _steps(outputs, lambda tensor: _output_step(tensor, batched))
        self._ragged = frozenset(tensor.name for tensor in spec.inputs if tensor.ragged)
        self._made = spec.batch_inputs
        self._split = {
            output.name: (output, cut.source)
            for cut in spec.batch_outputs
            for output in spec.outputs
            if output.name in cut.targets
        }
        self._alone = not (self._ragged or self._made or self._split)

    def execute(self, requests: Sequence[Request]) -> Execution:
        """Run all requests at once where the model batches and their shapes agree, else singly.

        Shapes of ragged inputs need not agree. A model that has any, or tensors that tell of them,
        gets even a single request as a batch.
        """
        if len(requests) == 1 and self._alone:
            return self._run_one(requests[0])
        if self._batched and stackable(requests, self._ragged):
            try:
                return self._run_batch(requests)
            except NaiadError:
                # One request is to blame; alone, the others can still be answered.
                pass
        executions = [self._run_alone(request) for request in requests]
        answered = [execution for execution in executions if execution.compute_end_ns]
        return Execution(
            [execution.responses[0] for execution in executions],
            answered[0].compute_start_ns if answered else 0,
            answered[-1].compute_end_ns if answered else 0,
        )

    def close(self) -> None:
        """The session belongs to the model."""

    def _run_alone(self, request: Request) -> Execution:
        if self._alone:
            return self._run_one(request)
        try:
            return self._run_batch((request,))
        except NaiadError as error:
            return Execution([Response(error=error)])

    def _run_one(self, request: Request) -> Execution:
        wanted = request.outputs or self._outputs
        try:
            feed = {
                name: self._prepare(name, tensor.numpy()) for name, tensor in request.inputs.items()
            }
            start = time.perf_counter_ns()
            arrays = self._runner.run(wanted, feed)
            end = time.perf_counter_ns()
            return Execution([Response(self._finish(wanted, arrays))], start, end)
        except NaiadError as error:
            return Execution([Response(error=error)])

    def _run_batch(self, requests: Sequence[Request]) -> Execution:
        wanted = wanted_outputs(requests, self._outputs, self._hidden)
        feed = {name: self._gathered(requests, name) for name in requests[0].inputs}
        for made in self._made:
            tensor = batch_input(made, requests, self._batched)
            feed |= dict.fromkeys(made.targets, tensor)
        start = time.perf_counter_ns()
        arrays = self._runner.run(wanted, feed)
        end = time.perf_counter_ns()
        parts = {
            name: self._parts(requests, name, array)
            for name, array in zip(wanted, arrays, strict=True)
        }
        responses = []
        for i, request in enumerate(requests):
            names = request.outputs or self._outputs
            responses.append(Response(self._finish(names, [parts[name][i] for name in names])))
        return Execution(responses, start, end)

    def _gathered(self, requests: Sequence[Request], name: str) -> Array:
        if name in self._ragged:
            return flatten(requests, name)
        return self._prepare(name, gather(requests, name))

    def _parts(self, requests: Sequence[Request], name: str, array: Array) -> Sequence[Array]:
        """Each request's part of an output."""
        if name in self._split:
            output, source = self._split[name]
            return split(output, array, requests, source, self._batched)
        return scatter(name, array, batch_sizes(requests)) if self._batched else (array,)

    def _prepare(self, name: str, array: Array) -> Array:
        step = self._before.get(name)
        if step is not None:
            array = step(array)
        # A tensor may start at any byte of a message, but kernels may count on whole elements.
        return array if array.flags.aligned else array.copy()

    def _finish(self, names: Sequence[str], arrays: Sequence[Array]) -> list[Tensor]:
        outputs = []
        for name, array in zip(names, arrays, strict=True):
            step = self._after.get(name)
            if step is not None:
                array = step(array)
            outputs.append(Tensor.from_numpy(name, array, self._datatypes[name]))
        return outputs


class OnnxModel(Model):
    """One version of a model: a session for each device, shared by the instances there."""

    def __init__(self, spec: ModelSpec, open_runner: Callable[[Placement], Runner]) -> None:
        """open_runner: loads the file for a placement's device; may raise NaiadError."""
        self._spec = spec
        self._open_runner = open_runner
        self._runners: dict[tuple[str, int], Runner] = {}
        for placement in spec.placements:
            self._runner(placement)

    def instance(self, placement: Placement) -> OnnxInstance:
        """Raises UNSUPPORTED if onnxruntime cannot run on the placement's device."""
        return OnnxInstance(self._runner(placement), self._spec)

    def close(self) -> None:
        """Drop the sessions; their memory goes with the last output that is a view of it."""
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()

    def _runner(self, placement: Placement) -> Runner:
        device = (placement.kind, placement.device)
        if device not in self._runners:
            self._runners[device] = self._open_runner(placement)
        return self._runners[device]


def _steps(
    tensors: Sequence[TensorSpec], make: Callable[[TensorSpec], Step | None]
) -> dict[str, Step]:
    steps = {tensor.name: make(tensor) for tensor in tensors}
    return {name: step for name, step in steps.items() if step is not None}


def _input_step(tensor: TensorSpec, batched: bool) -> Step | None:
    steps: list[Step] = []
    if tensor.reshape is not None:
        steps.append(lambda array: to_model(array, tensor, batched))
    if tensor.datatype == "BYTES":
        steps.append(lambda array: to_text(tensor.name, array))
    return _chain(steps)


def _output_step(tensor: TensorSpec, batched: bool) -> Step | None:
    steps: list[Step] = []
    if tensor.datatype == "BYTES":
        steps.append(lambda array: from_text(tensor.name, array))
    if tensor.reshape is not None:
        steps.append(lambda array: to_client(array, tensor, batched))
    elif set(tensor.dims) == {1} and not batched:
        # The graph may give a scalar, which the configuration can only call [1].
        steps.append(lambda array: array if array.ndim else array.reshape(tensor.dims))
    return _chain(steps)


def _chain(steps: Sequence[Step]) -> Step | None:
    if len(steps) < 2:
        return steps[0] if steps else None
    first, second = steps
    return lambda array: second(first(array))
