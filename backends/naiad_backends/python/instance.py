"""An instance of a model in a process of its own: batches there and back, and a new process when
one has died.

Lives on the event loop. How a process is started and spoken to is `process`'s matter, what models
ask of the server `beside`'s.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import orjson

from naiad_backends.api import (
    Done,
    Execution,
    InstanceState,
    ModelSpec,
    Placement,
    RemoteInstance,
    Request,
    Responder,
    Response,
)
from naiad_backends.errors import NaiadError, internal, unavailable
from naiad_backends.python.backoff import Backoff
from naiad_backends.python.beside import Beside
from naiad_backends.python.environment import Environment
from naiad_backends.python.output import Output
from naiad_backends.python.process import WorkerProcess
from naiad_backends.python.runtime import heads
from naiad_backends.python.runtime.blocks import Pool
from naiad_backends.python.runtime.frames import Kind
from naiad_backends.python.runtime.parcel import Packer, Unpacker
from naiad_backends.python.wire import Reader, Writer
from naiad_backends.services import Services

logger = logging.getLogger(__name__)

T = TypeVar("T")

_QUICK_NS = 1_000_000
_AHEAD = 16
"""A model that takes less than this gets so many batches ahead."""

_LARGE = 1_048_576
"""Bytes whose copy is made beside the event loop."""

_OF_STREAMS = (heads.STREAM, heads.AGAIN)
_OF_OTHERS = (heads.OUTPUTS, heads.ERROR, heads.AGAIN, heads.LATER)
"""What may become of a request, by whether the model is decoupled."""

_TIDY_SECONDS = 5.0
_SOON_SECONDS = 1.0
_OPINION_SECONDS = 5.0
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """In seconds: for a process to come up, for one `execute` (0: none), for a worker to end."""

    start_seconds: float = 30.0
    execute_seconds: float = 0.0
    stop_seconds: float = 30.0


class _Batch:
    """Requests that the worker has.

    open: those that get responses beside the result.  early: such responses of a model that is not
        decoupled, which came before it.  sent: to the worker.  begun: something has come back.
    """

    __slots__ = ("begun", "done", "early", "execution", "open", "requests", "responders", "sent")

    def __init__(
        self, requests: Sequence[Request], responders: Sequence[Responder], done: Done
    ) -> None:
        self.requests = requests
        self.responders = responders
        self.done: Done | None = done
        self.open = set(range(len(responders)))
        self.early: dict[int, Response] = {}
        self.sent = True
        self.begun = False
        self.execution: Execution | None = None


class ProcessInstance(RemoteInstance):
    """Made by `begin_process`; its methods are those of the contract."""

    def __init__(
        self,
        services: Services,
        spec: ModelSpec,
        placement: Placement,
        environment: Environment,
        head: dict[str, Any],
        limits: Limits,
    ) -> None:
        """head: what the worker begins with."""
        self.name = placement.name
        self._services = services
        self._loop = services.loop
        self._spec = spec
        self._environment = environment
        self._head = head
        self._limits = limits
        self._writer = Writer(spec)
        self._reader = Reader(spec)
        self._output = Output(self._loop, placement.name)
        self._backoff = Backoff(_ATTEMPTS)
        self._state = InstanceState.DOWN
        self._trouble = "it has not been started"
        self._listeners: list[Callable[[], None]] = []
        self._average_ns = 0.0
        self._serving = False
        self._closing = False
        self._restarting: asyncio.Task[None] | None = None
        self._opinion = False
        self._new_worker()

    def _new_worker(self) -> None:
        """All that belongs to one process and ends with it."""
        self._number = 0
        self._batches: dict[int, _Batch] = {}
        self._flying: dict[int, _Batch] = {}
        self._deferred = 0
        self._heads: list[tuple[int, Any]] = []
        self._packer = Packer()
        self._gathering = False
        self._tidying: asyncio.TimerHandle | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._beside = Beside(self._services, self._spec.name, self.name, self, self._batch)
        self._process = WorkerProcess(
            self._loop,
            self.name,
            self._environment,
            self._output,
            self._beside.take,
            self._died,
        )
        self._pool = Pool(self._process.announce)
        self._beside.connect(self._process, self._pool)

    def _batch(self, number: int) -> tuple[Sequence[Request], bool]:
        batch = self._batches.get(number)
        return (batch.requests if batch else ()), number in self._flying

    # -- the beginning

    async def start(self) -> None:
        """Start the worker and wait until the model is ready. Raises the model's error."""
        self._process.work = self._take
        ready = await self._process.start(self._head, self._limits.start_seconds)
        self._opinion = bool(orjson.loads(ready)[0])
        self._backoff.started(self._loop.time())
        self._serving = True
        self._become(InstanceState.READY, "")

    def _become(self, state: InstanceState, trouble: str) -> None:
        self._state, self._trouble = state, trouble
        for listener in self._listeners:
            listener()

    # -- the contract

    @property
    def state(self) -> InstanceState:
        return self._state

    @property
    def window(self) -> int:
        quick = 0 < self._average_ns < _QUICK_NS
        return (_AHEAD if quick else 1) + self._deferred

    @property
    def pid(self) -> int:
        """Of the worker's process."""
        return self._process.pid

    def watch(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def trouble(self) -> str:
        return self._trouble

    async def unready(self) -> str:
        if self._trouble or not self._opinion:
            return self._trouble
        return await self._beside.opinion(_OPINION_SECONDS)

    def begin(
        self, requests: Sequence[Request], responders: Sequence[Responder], done: Done
    ) -> None:
        if self._state is not InstanceState.READY:
            done(None)
            return
        batch = _Batch(requests, responders, done)
        packer, request = self._packer, self._writer.request
        mark = packer.mark()
        head = [request(one, packer) for one in requests]
        if packer.inline:
            self._heads.append((self._count(batch), head))
            if not self._gathering:
                self._gathering = True
                self._loop.call_soon(self._flush)
        else:
            packer.rewind(mark)
            self._begin_large(batch)

    def _begin_large(self, batch: _Batch) -> None:
        """A message of its own, with a block."""
        self._flush()
        packer = Packer()
        head = [self._writer.request(one, packer) for one in batch.requests]
        process = self._process

        def copied(_: object) -> None:
            if process is not self._process or self._state is not InstanceState.READY:
                # Another process does not know this block.
                self._end(batch, None)
                return
            process.send(Kind.EXECUTE, ((self._count(batch), head),), b"", block.number)
            if self._tidying is None:
                self._tidying = self._loop.call_later(_TIDY_SECONDS, self._tidy)

        try:
            block = self._pool.take(packer.size)
        except ConnectionError:
            # The process is gone and its end not yet told, which will give the batch back.
            batch.sent = False
            self._count(batch)
            process.kill("it has closed its connection to the server")
            return
        except OSError as error:
            self._end(batch, _no_memory(error))
            return
        if packer.size <= _LARGE:
            packer.fill(block)
            copied(None)
        else:
            self._loop.run_in_executor(None, packer.fill, block).add_done_callback(copied)

    def _count(self, batch: _Batch) -> int:
        """Its number, now that it goes to the worker."""
        self._number = number = self._number + 1
        self._batches[number] = self._flying[number] = batch
        for index, request in enumerate(batch.requests):
            request.on_cancel = partial(self._cancel, number, index)
        if self._limits.execute_seconds and self._watchdog is None:
            self._watch_over(number)
        return number

    def _flush(self) -> None:
        """Send what was begun in this turn of the event loop, as one message."""
        self._gathering = False
        if self._heads:
            self._process.send(Kind.EXECUTE, self._heads, self._packer.data())
            self._heads, self._packer = [], Packer()

    def _cancel(self, number: int, index: int) -> None:
        batch = self._batches.get(number)
        if batch is None:
            return
        self._process.send_beside(Kind.TELL, (0, "cancel", (number, index)))
        if all(request.cancelled for request in batch.requests):
            self._beside.cancel(number)

    # -- what comes back

    def _take(self, kind: int, head: bytes, data: bytearray, block: int) -> None:
        if kind == Kind.CALL:
            self._beside.take(kind, head, data, block)
            return
        said = orjson.loads(head)
        unpacker = self._beside.unpacker(data, block)
        if block and self._tidying is None:
            self._tidying = self._loop.call_later(_TIDY_SECONDS, self._tidy)
        if kind == Kind.RESULT:
            self._result(said, unpacker)
        elif kind == Kind.PART:
            self._part(said, unpacker)
        else:
            raise ValueError(f"message {kind} on the channel of work")

    def _result(self, said: Any, unpacker: Unpacker) -> None:
        number, start, begin, end, results, released = said
        if number != next(iter(self._flying), None):
            raise ValueError(f"the result of batch {number}, which is not what it executes")
        if not 0 < start <= begin <= (end or begin) <= time.perf_counter_ns():
            raise ValueError(f"a batch ran from {start} over {begin} to {end}")
        batch = self._flying.pop(number)
        self._watch_next(number)
        if isinstance(results, str):
            del self._batches[number]
            self._average_ns = 0.0
            self._end(batch, internal(results))
            return
        self._average_ns += 0.1 * (end - start - self._average_ns)
        read = self._reader.response
        responses = [read(head, unpacker) for head in results]
        self._beside.release(released)
        if len(responses) != len(batch.requests):
            raise ValueError(f"{len(responses)} results for {len(batch.requests)} requests")
        execution = Execution(responses, begin, end)
        for index, head in enumerate(results):
            kind = head[0]
            if kind not in (_OF_STREAMS if batch.responders else _OF_OTHERS):
                raise ValueError(f"a result of kind {kind}")
            if kind == heads.LATER:
                self._defer(batch, index, responses)
            elif kind == heads.AGAIN:
                batch.open.discard(index)
        if batch.open and not batch.responders:
            batch.execution = execution
            self._deferred += 1
            return
        self._forget(number, batch)
        self._end(batch, execution)

    def _defer(self, batch: _Batch, index: int, responses: list[Response]) -> None:
        early = batch.early.pop(index, None)
        if early is None:
            batch.open.add(index)
        else:
            responses[index] = early

    def _part(self, said: Any, unpacker: Unpacker) -> None:
        number, index, head, final = said
        batch = self._batches.get(number)
        if batch is None:
            return
        if index not in range(len(batch.requests)):
            raise ValueError(f"a response to request {index} of {len(batch.requests)}")
        batch.begun = True
        response = None if head is None else self._reader.response(head, unpacker)
        if batch.responders:
            if index not in batch.open:
                raise ValueError(f"a response to request {index} after its end")
            # The server may have ended the stream itself.
            with contextlib.suppress(NaiadError):
                batch.responders[index].send(response, final)
            self._beside.tell_released()
            if final:
                batch.requests[index].on_cancel = None
                batch.open.discard(index)
                self._forget(number, batch)
        elif response is not None:
            self._late(number, batch, index, response)

    def _late(self, number: int, batch: _Batch, index: int, response: Response) -> None:
        """A sender of a model that is not decoupled has answered, maybe before its execution has
        ended."""
        execution = batch.execution
        if execution is None:
            batch.early[index] = response
            return
        if index not in batch.open:
            raise ValueError(f"a second response to request {index}")
        responses = list(execution.responses)
        responses[index] = response
        execution.responses = responses
        batch.open.discard(index)
        if not batch.open:
            self._deferred -= 1
            self._forget(number, batch)
            self._end(batch, execution)

    def _forget(self, number: int, batch: _Batch) -> None:
        if not batch.open and number not in self._flying and number in self._batches:
            del self._batches[number]
            if batch.responders:
                self._process.send_beside(Kind.TELL, (0, "ended", (number,)))

    def _end(self, batch: _Batch, result: Execution | NaiadError | None) -> None:
        for index, request in enumerate(batch.requests):
            if index not in batch.open:
                request.on_cancel = None
        done, batch.done = batch.done, None
        if done is not None:
            done(result)

    # -- care

    def _tidy(self) -> None:
        """Give memory back that nobody has used for a while, on both sides."""
        gone = self._pool.trim()
        if gone:
            self._process.send_beside(Kind.TELL, (0, "drop", (gone,)))
        self._process.send_beside(Kind.TELL, (0, "trim", ()))
        self._beside.tell_released()
        busy = self._pool.bytes or len(self._process.mapped)
        self._tidying = self._loop.call_later(_TIDY_SECONDS, self._tidy) if busy else None

    def _watch_over(self, number: int) -> None:
        self._watchdog = self._loop.call_later(self._limits.execute_seconds, self._hangs, number)

    def _watch_next(self, number: int) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
            if self._flying:
                self._watch_over(next(iter(self._flying)))

    def _hangs(self, number: int) -> None:
        if number in self._flying:
            seconds = self._limits.execute_seconds
            self._process.abort(f"execute has taken longer than {seconds:g} s")

    # -- the end of a process

    def _died(self, reason: str) -> None:
        serving, self._serving = self._serving, False
        batches, flying = list(self._batches.values()), list(self._flying.values())
        self._clear()
        if not serving:
            # `start` tells its caller.
            return
        wait = self._backoff.next(self._loop.time())
        soon = wait <= _SOON_SECONDS and not self._closing
        # Before the ends of batches are told, so that nobody sends one here.
        self._state = InstanceState.RESTARTING if soon else InstanceState.DOWN
        error = unavailable(f"the worker of '{self.name}' has ended: {reason}", hint="try again")
        running = flying[0] if flying else None
        for batch in batches:
            if batch in flying and not batch.begun and not (batch is running and batch.sent):
                self._end(batch, None)
            else:
                self._fail(batch, error)
        if not self._closing:
            logger.error("the worker of '%s' has ended: %s", self.name, reason)
            self.restarts += 1
            self._restarting = self._loop.create_task(self._restart(wait))
        self._become(self._state, f"its worker has ended: {reason}")

    def _fail(self, batch: _Batch, error: NaiadError) -> None:
        for index in batch.open if batch.responders else ():
            batch.responders[index].send(Response(error=error), True)
        batch.open = set()
        self._end(batch, error)

    def _clear(self) -> None:
        for timer in (self._tidying, self._watchdog):
            if timer is not None:
                timer.cancel()
        self._beside.close()
        self._batches, self._flying = {}, {}
        self._heads, self._packer = [], Packer()

    async def _restart(self, wait: float) -> None:
        while True:
            await asyncio.sleep(wait)
            try:
                self._new_worker()
                await self.start()
                logger.info("the worker of '%s' serves again", self.name)
                return
            except (NaiadError, OSError) as error:
                # An OSError is of the server's own lack, such as of descriptors.
                self._backoff.failed()
                if self._backoff.exhausted:
                    text = f"its worker failed to start {_ATTEMPTS} times: {error}"
                    logger.error("'%s' stays down: %s", self.name, text)
                    self._become(InstanceState.DOWN, text)
                    return
                wait = self._backoff.next(self._loop.time())
                logger.error("'%s': %s; next attempt in %g s", self.name, error, wait)
                self._become(InstanceState.DOWN, f"its worker fails to start: {error}")

    def close(self) -> None:
        """End the worker behind the work that it has. Not on the event loop."""
        _wait(self._loop, self._close())

    async def _close(self) -> None:
        self._closing = True
        if self._restarting is not None:
            self._restarting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._restarting
        await self._process.stop(self._limits.stop_seconds)

    # -- for callers on other threads

    def execute(self, requests: Sequence[Request]) -> Execution:
        """The same as `begin`, but waits."""
        result = self._begin_and_wait(requests, ())
        if result is None:
            raise unavailable(f"'{self.name}' cannot run now: {self._trouble}")
        if isinstance(result, NaiadError):
            raise result
        return result

    def stream(self, request: Request, responder: Responder) -> None:
        """The same for a decoupled model; waits until the next request may come."""
        result = self._begin_and_wait((request,), (responder,))
        if result is None:
            raise unavailable(f"'{self.name}' cannot run now: {self._trouble}")
        if isinstance(result, NaiadError):
            responder.send(Response(error=result), True)

    def _begin_and_wait(
        self, requests: Sequence[Request], responders: Sequence[Responder]
    ) -> Execution | NaiadError | None:
        result: concurrent.futures.Future[Execution | NaiadError | None] = (
            concurrent.futures.Future()
        )
        self._loop.call_soon_threadsafe(self.begin, requests, responders, result.set_result)
        return result.result()


def _wait(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(work, loop).result()


def _no_memory(error: OSError) -> NaiadError:
    return internal(f"there is no memory to share with the worker: {error.strerror}")
