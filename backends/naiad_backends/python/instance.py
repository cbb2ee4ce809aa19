"""An instance of a model in a process of its own: batches there and back.

Lives on the event loop. How a process is started and spoken to is `process`'s matter, what models
ask of the server `beside`'s.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from naiad_backends.api import Done, InstanceState, ModelSpec, Placement, Request, Responder
from naiad_backends.child.instance import ChildInstance
from naiad_backends.errors import NaiadError, internal
from naiad_backends.python.batches import Batch, Batches
from naiad_backends.python.beside import Beside
from naiad_backends.python.environment import Environment
from naiad_backends.python.process import WorkerProcess
from naiad_backends.python.runtime.blocks import Pool
from naiad_backends.python.runtime.frames import Kind
from naiad_backends.python.runtime.parcel import Packer
from naiad_backends.python.wire import Reader, Writer
from naiad_backends.services import Services

_QUICK_NS = 1_000_000
_AHEAD = 16
"""A model that takes less than this gets so many batches ahead."""

_LARGE = 1_048_576
"""Bytes whose copy is made beside the event loop."""

_SOON_SECONDS = 1.0
_OPINION_SECONDS = 5.0


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


class ProcessInstance(ChildInstance[Any]):
    """Its methods are those of the contract; `start` comes first."""

    _process: WorkerProcess

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
        super().__init__(services, placement)
        self._services = services
        self._spec = spec
        self._environment = environment
        self._head = head
        self._limits = limits
        self._writer = Writer(spec)
        self._reader = Reader(spec)
        self._average_ns = 0.0
        self._opinion = False
        self._process = self._new_process()

    def _new_process(self) -> WorkerProcess:
        self._batches = Batches(self._reader, self._ended)
        self._heads: list[tuple[int, Any]] = []
        self._packer = Packer()
        self._gathering = False
        self._tidying: asyncio.TimerHandle | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        requests = self._batches.requests
        self._beside = Beside(self._services, self._spec.name, self.name, self, requests)
        process = WorkerProcess(
            self._loop,
            self.name,
            self._output,
            self._environment,
            self._head,
            self._limits.start_seconds,
            self._beside.take,
            self._gone,
            self._limits.stop_seconds,
        )
        process.work = self._take
        self._pool = Pool(process.announce)
        self._beside.connect(process, self._pool)
        return process

    def _soon(self, wait: float) -> bool:
        return wait <= _SOON_SECONDS

    def _ready(self, ready: Any) -> None:
        self._opinion = bool(ready)
        self._tidying = self._loop.call_later(self._limits.tidy_seconds, self._tidy)

    # -- the contract

    @property
    def window(self) -> int:
        quick = 0 < self._average_ns < _QUICK_NS
        return (_AHEAD if quick else 1) + self._batches.deferred

    @property
    def window_for_calls(self) -> int:
        """It executes one, which may wait for a call. What it answers later is in nobody's way."""
        return 1 + self._batches.deferred

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

    def _gone(self, reason: str) -> None:
        for timer in (self._tidying, self._watchdog):
            if timer is not None:
                timer.cancel()
        self._beside.close()
        self._died(reason)

    def _lose(self, error: NaiadError) -> None:
        batches, self._batches = self._batches, Batches(self._reader, self._ended)
        self._heads, self._packer = [], Packer()
        batches.lose(error)


def _no_memory(error: OSError) -> NaiadError:
    return internal(f"there is no memory to share with the worker: {error.strerror}")
