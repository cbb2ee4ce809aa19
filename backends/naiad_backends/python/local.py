"""The link of models that run in the server: calls of other models without a channel between.

Any thread of a model may use it; the work is done on the event loop.
"""

import asyncio
import concurrent.futures
import contextvars
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from queue import SimpleQueue
from typing import Any

from naiad_backends.api import Instance, Request, Response, Tensor, Trace
from naiad_backends.errors import Code, NaiadError, internal
from naiad_backends.python.calls import Calls, text
from naiad_backends.python.runtime import errors
from naiad_backends.python.runtime import tensor as tensors
from naiad_backends.python.runtime.errors import TritonModelException
from naiad_backends.python.runtime.link import Call, Link, Plain
from naiad_backends.python.runtime.request import InferenceRequest
from naiad_backends.python.runtime.response import InferenceResponse
from naiad_backends.python.wire import END, START
from naiad_backends.services import Services

logger = logging.getLogger(__name__)

running: contextvars.ContextVar["Running"] = contextvars.ContextVar("running")
"""What the calling thread executes."""


class Running:
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
        inference = _Inference(self._services, to_server(request, callers), decoupled)
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


def to_server(request: InferenceRequest, callers: tuple[Instance, ...]) -> Request:
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
