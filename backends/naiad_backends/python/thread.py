"""An instance of a model in the server's own process, on the thread that the server gives it: for
trusted, light models. An exception is caught, a crash takes the server along."""

import asyncio
import concurrent.futures
import inspect
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from naiad_backends.api import (
    Execution,
    ModelSpec,
    Request,
    Responder,
    Response,
    StreamingInstance,
    Tensor,
)
from naiad_backends.errors import internal
from naiad_backends.python.calls import Calls
from naiad_backends.python.local import Running, running
from naiad_backends.python.runtime import errors, module
from naiad_backends.python.runtime import tensor as tensors
from naiad_backends.python.runtime.errors import TritonError, TritonModelException
from naiad_backends.python.runtime.heads import Outputs
from naiad_backends.python.runtime.request import InferenceRequest
from naiad_backends.python.runtime.response import InferenceResponse
from naiad_backends.python.runtime.runner import Left, ModelFailed, Runner, silent
from naiad_backends.python.runtime.sender import Sink
from naiad_backends.python.wire import (
    client_shape,
    flags,
    model_shape,
    output_specs,
    reshaped,
)
from naiad_backends.services import Services

logger = logging.getLogger(__name__)

_OPINION_SECONDS = 5.0


class _Batch(Sink):
    """Where the answers to requests go that `execute` does not return."""

    def __init__(
        self,
        instance: "ThreadInstance",
        requests: Sequence[Request],
        responders: Sequence[Responder],
    ) -> None:
        self._instance = instance
        self._requests = requests
        self._responders = responders
        self.late: list[concurrent.futures.Future[Response]] = [
            concurrent.futures.Future() for _ in requests if not responders
        ]

    def respond(self, index: int, response: InferenceResponse | None, final: bool) -> None:
        wanted = self._requests[index].outputs
        answer = None if response is None else self._instance.response(response, wanted)
        if self._responders:
            self._responders[index].send(answer, final)
        elif answer is not None:
            self.late[index].set_result(answer)

    def origin(self, index: int) -> object:
        return self._requests[index].trace

    def cancelled(self, index: int) -> bool:
        if self._responders and self._responders[index].cancelled:
            return True
        return self._requests[index].cancelled


class ThreadInstance(StreamingInstance):
    """One object of the author's class."""

    def __init__(
        self,
        spec: ModelSpec,
        name: str,
        found: Any,
        args: dict[str, str],
        services: Services,
        complain: Callable[[str], None],
        strict: bool,
    ) -> None:
        """found: the class.  args: for `initialize`. Raises INVALID_ARG with the model's error."""
        self._folder = str(spec.path)
        self._decoupled = spec.decoupled
        # An async execute of a decoupled model lets the thread go on.
        self._waits = not (spec.decoupled and inspect.iscoroutinefunction(found.execute))
        self._names = tuple(output.name for output in spec.outputs)
        self._outputs = Outputs(output_specs(spec), complain, strict)
        self._out_reshapes = reshaped(spec.outputs + spec.server_outputs)
        batched = spec.max_batch_size > 0
        self._reshapes = reshaped(spec.inputs + spec.server_inputs)
        self._batched = batched
        self._calls = Calls(services, spec.name, name)
        with self._here("initialize"):
            self._runner = Runner(found(), spec.decoupled, complain)
            self._runner.initialize(args)

    def _here(self, forbidden: str = "", requests: Sequence[Request] = ()) -> "_Here":
        text = (
            f"other models can be called in execute, and in threads that it has begun, not in"
            f" {forbidden}"
        )
        callers = dict.fromkeys(caller for request in requests for caller in request.callers)
        waiting = (*callers, self) if self._waits else ()
        mark = Running(self._calls, waiting, text if forbidden else "", requests)
        return _Here(self._folder, mark)

    def execute(self, requests: Sequence[Request]) -> Execution:
        """Run the model on this thread."""
        batch = _Batch(self, requests, ())
        given = [self._request(batch, index, one) for index, one in enumerate(requests)]
        start = time.perf_counter_ns()
        with self._here(requests=requests):
            try:
                outcomes = self._runner.run(given)
            except ModelFailed as error:
                raise internal(str(error)) from None
        end = time.perf_counter_ns()
        responses = [
            self._finish(batch, index, outcome, requests[index].outputs)
            for index, outcome in enumerate(outcomes)
        ]
        return Execution(responses, start, end)

    def _finish(
        self, batch: _Batch, index: int, outcome: InferenceResponse | Left, wanted: Sequence[str]
    ) -> Response:
        if isinstance(outcome, InferenceResponse):
            return self.response(outcome, wanted)
        if outcome is Left.AGAIN:
            return Response(reschedule=True)
        # A sender answers later. The thread waits: its next request would not be any sooner.
        return batch.late[index].result()

    def stream(self, request: Request, responder: Responder) -> None:
        """Run the model on this thread; responses go to the responder."""
        batch = _Batch(self, (request,), (responder,))
        with self._here(requests=(request,)):
            try:
                self._runner.run([self._request(batch, 0, request)])
            except ModelFailed as error:
                # The request's conversation has ended with it already.
                del error

    def _request(self, batch: _Batch, index: int, request: Request) -> InferenceRequest:
        return InferenceRequest.received(
            batch,
            index,
            self._decoupled,
            request.id,
            request.correlation_id,
            flags(request),
            request.timeout_us,
            tuple(request.outputs) or self._names,
            dict(request.parameters),
            tuple([self._input(tensor) for tensor in request.inputs.values()]),
        )

    def _input(self, tensor: Tensor) -> tensors.Tensor:
        shape = tensor.shape
        spec = self._reshapes.get(tensor.name)
        if spec is not None:
            shape = model_shape(shape, spec, self._batched)
        return tensors.Tensor.of_wire(tensor.name, tensor.datatype, shape, tensor.wire())

    def response(self, response: InferenceResponse, wanted: Sequence[str]) -> Response:
        """What the model answered, for the server."""
        chosen = self._outputs.choose(response, wanted or self._names)
        if isinstance(chosen, TritonError):
            return Response(error=errors.to_naiad(chosen))
        try:
            return Response([self._output(tensor) for tensor in chosen], response.values())
        except TritonModelException as error:
            return Response(error=internal(str(error)))

    def _output(self, tensor: tensors.Tensor) -> Tensor:
        shape = tuple(tensor.shape())
        spec = self._out_reshapes.get(tensor.name())
        if spec is not None:
            shape = client_shape(shape, spec, self._batched)
        return Tensor(tensor.name(), tensor.datatype, shape, None, tensor.kept())

    async def unready(self) -> str:
        if not self._runner.has_opinion:
            return ""
        opinion = asyncio.wrap_future(self._runner.opinion())
        try:
            async with asyncio.timeout(_OPINION_SECONDS):
                return await asyncio.shield(opinion)
        except TimeoutError:
            return silent(_OPINION_SECONDS)

    def close(self) -> None:
        """Call `finalize`."""
        with self._here("finalize"):
            self._runner.finalize()
        self._calls.forget()


class _Here:
    """Marks this thread as working for a model."""

    def __init__(self, folder: str, mark: Running) -> None:
        self._folder = folder
        self._mark = mark

    def __enter__(self) -> None:
        self._tokens = module.folder.set(self._folder), running.set(self._mark)

    def __exit__(self, *_: object) -> None:
        module.folder.reset(self._tokens[0])
        running.reset(self._tokens[1])
