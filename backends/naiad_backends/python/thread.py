"""An instance of a model in the server's own process, on the thread that the server gives it: for
trusted, light models. An exception is caught, a crash takes the server along."""

import asyncio
import concurrent.futures
import contextvars
import inspect
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from queue import SimpleQueue
from typing import Any

from naiad_backends.api import (
    Execution,
    Instance,
    ModelSpec,
    Request,
    Responder,
    Response,
    StreamingInstance,
    Tensor,
    Trace,
)
from naiad_backends.errors import Code, NaiadError, internal
from naiad_backends.python.calls import Calls, text
from naiad_backends.python.runtime import errors, module
from naiad_backends.python.runtime import tensor as tensors
from naiad_backends.python.runtime.errors import TritonError, TritonModelException
from naiad_backends.python.runtime.heads import Outputs
from naiad_backends.python.runtime.link import Call, Link, Plain
from naiad_backends.python.runtime.request import InferenceRequest
from naiad_backends.python.runtime.response import InferenceResponse
from naiad_backends.python.runtime.runner import Left, ModelFailed, Runner, silent
from naiad_backends.python.runtime.sender import Sink
from naiad_backends.python.wire import (
    END,
    START,
    client_shape,
    flags,
    model_shape,
    output_specs,
    reshaped,
)
from naiad_backends.services import Services

logger = logging.getLogger(__name__)

_OPINION_SECONDS = 5.0

running: contextvars.ContextVar["_Running"] = contextvars.ContextVar("running")
"""What the calling thread executes."""


class _Running:
    """An execution, for the calls of other models that it makes.

    callers: see `Request`.
    requests: when nobody waits for any of them any more, the calls are cancelled.
    """

    def __init__(
        self,
        calls: Calls,
        callers: tuple[Instance, ...],
        forbidden: str = "",
        requests: Sequence[Request] = (),
    ) -> None:
        self.calls = calls
        self.callers = callers
        self.forbidden = forbidden
        self._requests = requests
        self._inferences: set[_Inference] = set()
        for request in requests:
            request.on_cancel = self._look

    def add(self, inference: "_Inference") -> None:
        self._inferences.add(inference)
        inference.when_done(lambda: self._inferences.discard(inference))
        self._look()

    def _look(self) -> None:
        if self._requests and all(request.cancelled for request in self._requests):
            for inference in tuple(self._inferences):
                inference.cancel()


class LocalLink(Link):
    """The link of all models in the server."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._anybody = Calls(services, "", "model")

    def _calls(self) -> Calls:
        found = running.get(None)
        return self._anybody if found is None else found.calls

    def bound(self) -> Link:
        return _BoundLink(self._services, self._calls())

    def call(self, what: str, *arguments: Plain) -> Plain:
        work = self._calls().call(what, arguments)
        try:
            return asyncio.run_coroutine_threadsafe(_plain(work), self._services.loop).result()
        except NaiadError as error:
            raise TritonModelException(str(error)) from None

    def tell(self, what: str, *arguments: Plain) -> None:
        calls = self._calls()

        def told() -> None:
            try:
                calls.tell(what, arguments)
            except NaiadError as error:
                calls.tell("log", ("WARNING", text(error), "", 0, ""))

        self._services.loop.call_soon_threadsafe(told)

    def infer(self, request: InferenceRequest, decoupled: bool) -> Call:
        found = running.get(None)
        if found is not None and found.forbidden:
            raise TritonModelException(found.forbidden)
        callers = () if found is None else found.callers
        inference = _Inference(self._services, _to_server(request, callers), decoupled)
        if found is not None:
            found.add(inference)
        return inference


class _BoundLink(LocalLink):
    """The link of one model, whoever uses it."""

    def __init__(self, services: Services, calls: Calls) -> None:
        self._services = services
        self._bound = calls

    def _calls(self) -> Calls:
        return self._bound


async def _plain(work: Any) -> Plain:
    found: Plain = await work
    return found


class _Inference(Call):
    """The responses of another model."""

    def __init__(self, services: Services, request: Request, decoupled: bool) -> None:
        self._services = services
        self._request = request
        self._responses: SimpleQueue[tuple[InferenceResponse | None, bool]] = SimpleQueue()
        self._woken: Callable[[], None] = lambda: None
        work = self._stream() if decoupled else self._single()
        self._work = asyncio.run_coroutine_threadsafe(work, services.loop)
        self._work.add_done_callback(self._ended)

    async def _single(self) -> None:
        try:
            self._put(_from_server(await self._services.infer(self._request)), True)
        except BaseException as error:
            self._put(_failed(error), True)

    async def _stream(self) -> None:
        try:
            async with aclosing(self._services.stream(self._request)) as parts:
                async for response, final in parts:
                    self._put(None if response is None else _from_server(response), final)
        except BaseException as error:
            self._put(_failed(error), True)

    def _ended(self, work: concurrent.futures.Future[None]) -> None:
        # What is cancelled before it has begun says nothing itself.
        if work.cancelled():
            self._put(_failed(asyncio.CancelledError()), True)

    def _put(self, response: InferenceResponse | None, final: bool) -> None:
        self._responses.put((response, final))
        self._woken()

    def parts(self) -> Iterator[InferenceResponse]:
        final = False
        while not final:
            response, final = self._responses.get()
            if response is not None:
                yield response

    async def async_parts(self) -> AsyncIterator[InferenceResponse]:
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        self._woken = lambda: _wake(loop, woken)
        final = False
        while not final:
            woken.clear()
            if self._responses.empty():
                await woken.wait()
                continue
            response, final = self._responses.get_nowait()
            if response is not None:
                yield response

    def when_done(self, callback: Callable[[], None]) -> None:
        """Call it when all responses are there. Any thread."""
        self._work.add_done_callback(lambda _: callback())

    def cancel(self) -> None:
        self._work.cancel()


def _wake(loop: asyncio.AbstractEventLoop, woken: asyncio.Event) -> None:
    loop.call_soon_threadsafe(woken.set)


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
        mark = _Running(self._calls, waiting, text if forbidden else "", requests)
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


def _to_server(request: InferenceRequest, callers: tuple[Instance, ...]) -> Request:
    version, origin = request.model_version(), request.trace().origin
    return Request(
        model_name=request.model_name(),
        model_version="" if version == -1 else str(version),
        id=request.request_id(),
        inputs={
            tensor.name(): Tensor(
                tensor.name(), tensor.datatype, tuple(tensor.shape()), None, tensor.kept()
            )
            for tensor in request.inputs()
        },
        outputs=request.requested_output_names(),
        correlation_id=request.correlation_id(),
        sequence_start=bool(request.flags() & START),
        sequence_end=bool(request.flags() & END),
        timeout_us=request.timeout(),
        parameters=request.values(),
        callers=callers,
        trace=origin if isinstance(origin, Trace) else None,
    )


def _from_server(response: Response) -> InferenceResponse:
    if response.error is not None:
        return _failed(response.error)
    made = tuple(
        tensors.Tensor.of_wire(one.name, one.datatype, tuple(one.shape), one.wire())
        for one in response.outputs
    )
    return InferenceResponse.received(made, None, dict(response.parameters))


def _failed(error: BaseException) -> InferenceResponse:
    if isinstance(error, asyncio.CancelledError):
        error = NaiadError(Code.CANCELLED, "nobody waits for the answer any more")
    if not isinstance(error, NaiadError):
        logger.error("a call of another model failed", exc_info=error)
        error = internal(f"{type(error).__name__}: {error}")
    return InferenceResponse.received((), errors.to_triton(error), {})


class _Here:
    """Marks this thread as working for a model."""

    def __init__(self, folder: str, mark: _Running) -> None:
        self._folder = folder
        self._mark = mark

    def __enter__(self) -> None:
        self._tokens = module.folder.set(self._folder), running.set(self._mark)

    def __exit__(self, *_: object) -> None:
        module.folder.reset(self._tokens[0])
        running.reset(self._tokens[1])
