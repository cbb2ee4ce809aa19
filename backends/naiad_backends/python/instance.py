"""An instance of a model in a process of its own: batches there and back, and a new process when
one has died.

Lives on the event loop. How a process is started and spoken to is `process`'s matter, what models
ask of the server `beside`'s.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
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
from naiad_backends.backoff import Backoff
from naiad_backends.errors import NaiadError, internal, unavailable
from naiad_backends.output import Output
from naiad_backends.python.batches import Batch, Batches
from naiad_backends.python.beside import Beside
from naiad_backends.python.environment import Environment
from naiad_backends.python.process import WorkerProcess
from naiad_backends.python.runtime import heads
from naiad_backends.python.runtime.blocks import Pool
from naiad_backends.python.runtime.frames import Kind
from naiad_backends.python.runtime.parcel import Packer
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

_SOON_SECONDS = 1.0
_OPINION_SECONDS = 5.0
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """In seconds: for a process to come up, for one `execute` (0: none), for a worker to end.

    tidy_seconds: from one look for memory that is not used to the next.
    idle_seconds: after which it is given back.
    """

    start_seconds: float = 30.0
    execute_seconds: float = 0.0
    stop_seconds: float = 30.0
    tidy_seconds: float = 5.0
    idle_seconds: float = 10.0


class ProcessInstance(RemoteInstance):
    """Its methods are those of the contract; `start` comes first."""

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
        self._batches = Batches(self._reader, self._ended)
        self._heads: list[tuple[int, Any]] = []
        self._packer = Packer()
        self._gathering = False
        self._tidying: asyncio.TimerHandle | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        requests = self._batches.requests
        self._beside = Beside(self._services, self._spec.name, self.name, self, requests)
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

    # -- the beginning

    async def start(self) -> None:
        """Start the worker and wait until the model is ready. Raises the model's error."""
        self._process.work = self._take
        ready = await self._process.start(self._head, self._limits.start_seconds)
        if self._process.end:
            # Before this task went on.
            raise internal(f"worker '{self.name}' has ended: {self._process.end}")
        self._opinion = bool(orjson.loads(ready)[0])
        self._backoff.started(self._loop.time())
        self._serving = True
        self._tidying = self._loop.call_later(self._limits.tidy_seconds, self._tidy)
        self._become(InstanceState.READY, "")

    def _become(self, state: InstanceState, trouble: str) -> None:
        self._state, self._trouble = state, trouble
        self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    # -- the contract

    @property
    def state(self) -> InstanceState:
        return self._state

    @property
    def window(self) -> int:
        quick = 0 < self._average_ns < _QUICK_NS
        return (_AHEAD if quick else 1) + self._batches.deferred

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
        batch = Batch(requests, responders, done)
        if not self._gather(batch):
            self._flush()
            if not self._gather(batch):
                self._begin_large(batch)

    def _gather(self, batch: Batch) -> bool:
        """Let it go at once if the worker has nothing to do, else with what is begun in the same
        turn of the event loop; False if that gets too large."""
        packer, request = self._packer, self._writer.request
        mark = packer.mark()
        head = [request(one, packer) for one in batch.requests]
        if not packer.inline:
            packer.rewind(mark)
            return False
        idle = not self._batches.first()
        self._heads.append((self._count(batch), head))
        if idle:
            self._flush()
        elif not self._gathering:
            self._gathering = True
            self._loop.call_soon(self._flush)
        return True

    def _begin_large(self, batch: Batch) -> None:
        """A message of its own, with a block."""
        packer = Packer()
        head = [self._writer.request(one, packer) for one in batch.requests]
        process = self._process

        def copied(_: object) -> None:
            if process is not self._process or self._state is not InstanceState.READY:
                # Another process does not know this block.
                batch.end(None)
                return
            process.send(Kind.EXECUTE, ((self._count(batch), head),), b"", block.number)

        try:
            block = self._pool.take(packer.size)
        except ConnectionError:
            # The process is gone and its end not yet told, which will give the batch back.
            batch.sent = False
            self._count(batch)
            process.kill("it has closed its connection to the server")
            return
        except OSError as error:
            batch.end(_no_memory(error))
            return
        if packer.size <= _LARGE:
            packer.fill(block)
            copied(None)
        else:
            self._loop.run_in_executor(None, packer.fill, block).add_done_callback(copied)

    def _count(self, batch: Batch) -> int:
        """Its number, now that it goes to the worker."""
        number = self._batches.add(batch)
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
        requests, _ = self._batches.requests(number)
        if requests:
            self._process.send_beside(Kind.TELL, (0, "cancel", (number, index)))
            if all(request.cancelled for request in requests):
                self._beside.cancel(number)

    def _ended(self, number: int) -> None:
        """All streams of a batch have ended: the worker can forget it."""
        self._process.send_beside(Kind.TELL, (0, "ended", (number,)))

    # -- what comes back

    def _take(self, kind: int, head: bytes, data: bytearray, block: int) -> None:
        if kind == Kind.CALL:
            self._beside.take(kind, head, data, block)
            return
        said = orjson.loads(head)
        unpacker = self._beside.unpacker(data, block)
        if kind == Kind.RESULT:
            number, start, begin, end, results, released = said
            done_with = [(int(block), int(named)) for block, named in released]
            if end:
                self._average_ns += 0.1 * (end - start - self._average_ns)
            batch, result = self._batches.result(number, start, begin, end, results, unpacker)
            self._watch_next()
            self._beside.release(done_with)
            if result is not None:
                batch.end(result)
            else:
                self._tell()
        elif kind == Kind.PART:
            number, index, response, final = said
            self._batches.part(number, index, response, final, unpacker)
            self._beside.tell_released()
        else:
            raise ValueError(f"message {kind} on the channel of work")

    # -- care

    def _tidy(self) -> None:
        """Give memory back that nobody has used for a while, on both sides."""
        limits = self._limits
        if self._pool.bytes or len(self._process.mapped):
            gone = self._pool.trim(limits.idle_seconds)
            if gone:
                self._process.send_beside(Kind.TELL, (0, "drop", (gone,)))
            self._beside.tell_released()
            self._process.send_beside(Kind.TELL, (0, "trim", (limits.idle_seconds,)))
        self._tidying = self._loop.call_later(limits.tidy_seconds, self._tidy)

    def _watch_over(self, number: int) -> None:
        self._watchdog = self._loop.call_later(self._limits.execute_seconds, self._hangs, number)

    def _watch_next(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
            number = self._batches.first()
            if number:
                self._watch_over(number)

    def _hangs(self, number: int) -> None:
        if number == self._batches.first():
            seconds = self._limits.execute_seconds
            self._process.abort(f"execute has taken longer than {seconds:g} s")

    # -- the end of a process

    def _died(self, reason: str) -> None:
        serving, self._serving = self._serving, False
        batches = self._batches
        self._clear()
        if not serving:
            # `start` tells its caller.
            return
        wait = self._backoff.next(self._loop.time())
        soon = wait <= _SOON_SECONDS and not self._closing
        # Before the ends of batches are told, so that nobody sends one here.
        self._state = InstanceState.RESTARTING if soon else InstanceState.DOWN
        text = f"the worker of '{self.name}' has ended: {reason}"
        batches.lose(unavailable(text, hint="try again"))
        if not self._closing:
            logger.error("%s", text)
            self.restarts += 1
            self._restarting = self._loop.create_task(self._restart(wait))
        self._become(self._state, f"its worker has ended: {reason}")

    def _clear(self) -> None:
        for timer in (self._tidying, self._watchdog):
            if timer is not None:
                timer.cancel()
        self._beside.close()
        self._batches = Batches(self._reader, self._ended)
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
