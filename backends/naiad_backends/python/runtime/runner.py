"""Calls a model's methods and holds what they give against Triton's rules.

Knows nothing of processes: the same for a model in a worker and for one in the server. Source:
Triton's Python backend, "Usage" and "Decoupled mode" of its README.
"""

import asyncio
import contextlib
import contextvars
import inspect
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from enum import Enum
from functools import partial
from typing import Any

from naiad_backends.python.runtime.errors import TritonError, at_length, in_short
from naiad_backends.python.runtime.metrics import UPDATES
from naiad_backends.python.runtime.request import InferenceRequest
from naiad_backends.python.runtime.response import InferenceResponse

logger = logging.getLogger(__name__)


class ModelFailed(Exception):
    """A model's method raised, or gave what it must not. Its text is for the client; the whole
    traceback is in the log."""


class ModelExited(ModelFailed):
    """A model called `sys.exit` in `execute`, which ends the process if that is the model's own."""

    def __init__(self, text: str, code: object) -> None:
        super().__init__(text)
        self.code = code


class Left(Enum):
    """What became of a request that has no response yet."""

    AGAIN = "again"
    """It is to be run again."""
    LATER = "later"
    """A response sender that is still held will answer."""
    STREAM = "stream"
    """The model is decoupled: responses go their own way."""


Outcome = InferenceResponse | Left


def silent(seconds: float) -> str:
    """Why a model that says nothing is not ready."""
    return f"is_ready has not answered within {seconds:g} s"


class Runner:
    """One instance of a model."""

    def __init__(self, model: Any, decoupled: bool, complain: Callable[[str], None]) -> None:
        """model: an object of the author's class.  complain: writes tracebacks to the log."""
        self._model = model
        self._decoupled = decoupled
        self._complain = complain
        self._execute = model.execute
        self._is_async = inspect.iscoroutinefunction(model.execute)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.looping = 0
        """Identity of the event loop's thread, 0 if there is none."""
        self._opinion: Future[str] | None = None
        self._lock = threading.Lock()

    def initialize(self, args: dict[str, str]) -> None:
        """Call `initialize` if there is one. Raises ModelFailed."""
        method = getattr(self._model, "initialize", None)
        if method is not None:
            self._guarded("initialize", method, args)

    def finalize(self) -> None:
        """Call `finalize` if there is one; what it raises is only logged."""
        method = getattr(self._model, "finalize", None)
        if method is not None:
            with contextlib.suppress(ModelFailed):
                self._guarded("finalize", method)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)

    def run(self, requests: list[InferenceRequest]) -> list[Outcome]:
        """Call `execute`; what became of each request, in order.

        The list is emptied, so that nothing but the model holds on to the requests. Raises
        ModelFailed if all of them have failed; their senders are closed then.
        """
        try:
            if not self._is_async:
                answers = self._execute(requests)
            elif self._decoupled:
                self._begin(requests)
                answers = None
            else:
                answers = self._wait(self._execute(requests))
            if self._decoupled:
                return self._streamed(requests, answers)
            return self._answered(requests, answers)
        except SystemExit as error:
            raise ModelExited(str(self._failed(requests, error)), error.code) from error
        except BaseException as error:
            raise self._failed(requests, error) from error
        finally:
            requests.clear()
            if UPDATES.waiting:
                UPDATES.flush()

    # -- what execute gave

    def _answered(self, requests: Sequence[InferenceRequest], answers: Any) -> list[Outcome]:
        if answers is None:
            answers = [None] * len(requests)
        elif not isinstance(answers, list | tuple):
            raise TypeError(f"execute must return a list of responses, not {_kind(answers)}")
        if len(answers) != len(requests):
            raise ValueError(
                f"execute returned {len(answers)} responses to {len(requests)} requests"
            )
        return [
            answer
            if type(answer) is InferenceResponse and not request.has_had_sender
            else _outcome(request, answer)
            for request, answer in zip(requests, answers, strict=True)
        ]

    def _streamed(self, requests: Sequence[InferenceRequest], answers: Any) -> list[Outcome]:
        if answers is not None:
            raise TypeError(
                f"execute of a decoupled model must return None, not {_kind(answers)}: responses"
                " go by the request's response sender"
            )
        return [_streamed(request) for request in requests]

    def _failed(self, requests: Sequence[InferenceRequest], error: BaseException) -> ModelFailed:
        self._complain(at_length(error))
        text = f"the model failed: {in_short(error)}"
        _end_all(requests, text)
        # The traceback's frames hold requests and tensors, maybe in a cycle.
        error.__traceback__ = None
        return ModelFailed(text)

    def _guarded(self, name: str, method: Callable[..., Any], *arguments: Any) -> None:
        try:
            result = method(*arguments)
            if inspect.iscoroutine(result):
                self._wait(result)
        except BaseException as error:
            # Also what ends a program, which may be a server.
            self._complain(at_length(error))
            raise ModelFailed(f"{name} failed: {in_short(error)}") from None
        finally:
            UPDATES.flush()

    # -- readiness

    def unready(self, seconds: float) -> str:
        """Ask `is_ready`, and wait for so long: empty for yes, else why not."""
        try:
            return self.opinion().result(seconds)
        except TimeoutError:
            return silent(seconds)

    def opinion(self) -> "Future[str]":
        """The same without waiting. `is_ready` runs beside `execute`, on a thread of its own. Until
        it has come back it is not called again: all who ask get the answer of that call."""
        with self._lock:
            opinion = self._opinion
            if opinion is None or opinion.done():
                opinion = self._opinion = Future()
                work = partial(contextvars.copy_context().run, self._ask, opinion)
                threading.Thread(target=work, name="is_ready", daemon=True).start()
            return opinion

    def _ask(self, opinion: "Future[str]") -> None:
        try:
            result = self._model.is_ready()
            if inspect.iscoroutine(result):
                result = self._wait(result)
        except BaseException as error:
            self._complain(at_length(error))
            opinion.set_result(f"is_ready failed: {in_short(error)}")
            return
        if not isinstance(result, bool):
            opinion.set_result(f"is_ready returned {_kind(result)}, not a bool")
        else:
            opinion.set_result("" if result else "is_ready says no")

    @property
    def has_opinion(self) -> bool:
        """Whether there is an `is_ready` to be asked."""
        return hasattr(self._model, "is_ready")

    # -- the event loop of async methods

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._running_loop()).result()

    def _begin(self, requests: Sequence[InferenceRequest]) -> None:
        """Let `execute` of a decoupled model run beside the next ones."""
        held = list(requests)

        async def execute() -> None:
            try:
                answers = await self._execute(held)
                self._streamed(held, answers)
            except BaseException as error:
                self._failed(held, error)
            finally:
                held.clear()

        asyncio.run_coroutine_threadsafe(execute(), self._running_loop())

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_run_loop, args=(self._loop,), daemon=True)
                thread.name = "event loop"
                thread.start()
                self.looping = thread.ident or 0
            return self._loop


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    stopped = False
    while not stopped:
        # What ends a program leaves the loop as well as its task, for whom somebody waits.
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            loop.run_forever()
            stopped = True
    loop.close()


def _outcome(request: InferenceRequest, answer: Any) -> Outcome:
    """What became of a request of a model that is not decoupled."""
    conversation = request.conversation()
    request.let_go()
    if isinstance(answer, InferenceResponse):
        if conversation is not None and conversation.answered:
            return _mistake("the model has answered the request twice, by execute and by a sender")
        if conversation is not None:
            conversation.release()
        return answer
    if answer is not None:
        return _mistake(f"execute must return InferenceResponse objects, not {_kind(answer)}")
    if request.again:
        if conversation is not None:
            conversation.release()
        return Left.AGAIN
    if request.has_had_sender:
        return Left.LATER
    return _mistake("execute returned None for the request and nothing else has answered it")


def _streamed(request: InferenceRequest) -> Outcome:
    conversation = request.conversation()
    if request.again and conversation is not None and not conversation.closed:
        conversation.release()
        return Left.AGAIN
    return Left.STREAM


def _mistake(text: str) -> InferenceResponse:
    return InferenceResponse(error=TritonError(text))


def _end_all(requests: Sequence[InferenceRequest], text: str) -> None:
    for request in requests:
        conversation = request.conversation()
        if conversation is not None:
            conversation.end(TritonError(text))


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__
