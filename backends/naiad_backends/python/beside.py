"""The channel beside a worker's work, from the server's side: what the model asks of the server,
and what is told to a worker that is busy."""

import asyncio
import itertools
import json
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

import orjson

from naiad_backends.api import Instance, Request, Response
from naiad_backends.errors import Code, NaiadError, internal
from naiad_backends.python.calls import Calls, text
from naiad_backends.python.process import WorkerProcess
from naiad_backends.python.runtime.blocks import Pool, view
from naiad_backends.python.runtime.frames import Kind
from naiad_backends.python.runtime.parcel import Packer, Unpacker, pack
from naiad_backends.python.runtime.runner import silent
from naiad_backends.python.runtime.side import BYTES
from naiad_backends.python.wire import read_request, response_head
from naiad_backends.services import Services

logger = logging.getLogger(__name__)


class Beside:
    """Of one worker. On the event loop."""

    def __init__(
        self,
        services: Services,
        model: str,
        instance: str,
        caller: Instance,
        batch: Callable[[int], tuple[Sequence[Request], bool]],
    ) -> None:
        """model, instance: names of who asks, for people.  caller: the same for the server.
        batch: the requests of one that the worker has, and whether it executes them now."""
        self._services = services
        self._loop = services.loop
        self._instance = instance
        self._caller = caller
        self._batch = batch
        self._calls = Calls(services, model, instance)
        self._released: deque[int] = deque()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._of_batch: dict[int, set[int]] = {}
        self._here: set[int] = set()
        """Calls that are answered on the channel of work."""

    def connect(self, process: WorkerProcess, pool: Pool) -> None:
        """Before the process is started: the way to it, and our blocks."""
        self._process = process
        self._pool = pool

    # -- memory

    def unpacker(self, data: bytearray, block: int) -> Unpacker:
        """For a message from the worker, which may name our blocks as well as its own."""
        return Unpacker(data, block, self._process.mapped, self._released.append, self._own)

    def _own(self, number: int) -> memoryview:
        block = self._pool.share(number)
        if block is None:
            raise ValueError(f"a worker names block {number}, which it does not have")
        return view(block.memory, lambda: self._pool.release(number))

    def release(self, released: Sequence[tuple[int, int]]) -> None:
        """The worker is done with these blocks of ours. With each comes how often it has named it:
        what names it may be on its way on the other channel."""
        for number, named in released:
            self._pool.release(number, named)
        self.tell_released()

    def tell_released(self) -> None:
        """Tell the worker which of its blocks are done with."""
        if self._released:
            numbers = []
            while self._released:
                numbers.append(self._released.popleft())
            self._tell("release", numbers)

    def _tell(self, what: str, *arguments: Any) -> None:
        self._process.send_beside(Kind.TELL, (0, what, arguments))

    # -- to the worker

    async def opinion(self, seconds: float) -> str:
        """Ask the model whether it is ready: why not, or empty."""
        number = next(self._numbers)
        self._waiting[number] = answer = self._loop.create_future()
        self._process.send_beside(Kind.CALL, (number, "unready", (seconds,)))
        try:
            async with asyncio.timeout(seconds + 0.5):
                return str(await answer)
        except TimeoutError:
            return silent(seconds)
        except NaiadError as error:
            return str(error)
        finally:
            self._waiting.pop(number, None)

    def cancel(self, batch: int) -> None:
        """Nobody waits for a batch any more, nor for what its execution asks of other models."""
        for number in self._of_batch.get(batch, ()):
            self._tasks[number].cancel()

    def close(self) -> None:
        """The worker has ended."""
        for task in self._tasks.values():
            task.cancel()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(internal("its worker has ended"))
        self._calls.forget()

    # -- from the worker

    def take(self, kind: int, head: bytes, data: bytearray, block: int) -> None:
        """A message. Raises ValueError, KeyError or TypeError for what is none of ours."""
        said = _read(head)
        if kind in (Kind.ANSWER, Kind.ERROR):
            answer = self._waiting.get(said[0])
            if answer is not None and not answer.done():
                if kind == Kind.ANSWER:
                    answer.set_result(said[1])
                else:
                    answer.set_exception(internal(said[1]))
            return
        number, what, arguments = said[:3]
        if kind == Kind.TELL:
            self._told(what, arguments, data, block)
        elif kind == Kind.CALL and what == "infer":
            self.release(said[3])
            self._infer(number, arguments, self.unpacker(data, block))
        elif kind == Kind.CALL:
            given = [_gathered(one, self.unpacker(data, block)) for one in arguments]
            self._begin(number, self._answer(number, what, given))
        else:
            raise ValueError(f"message {kind} on the channel beside the work")

    def _told(self, what: str, arguments: Sequence[Any], data: bytearray, block: int) -> None:
        if what == "release":
            self.release(arguments[0])
        elif what == "drop":
            for number in arguments[0]:
                self._process.mapped.drop(number)
        elif what == "cancel":
            task = self._tasks.get(arguments[0])
            if task is not None:
                task.cancel()
        else:
            unpacker = self.unpacker(data, block)
            try:
                self._calls.tell(what, [_gathered(one, unpacker) for one in arguments])
            except NaiadError as error:
                logger.warning("'%s': %s", self._instance, error)

    def _begin(self, number: int, work: Any) -> None:
        task = self._tasks[number] = self._loop.create_task(work)
        task.add_done_callback(lambda _: self._tasks.pop(number, None))

    async def _answer(self, number: int, what: str, arguments: Sequence[Any]) -> None:
        try:
            value = await self._calls.call(what, arguments)
        except Exception as error:
            if not isinstance(error, NaiadError):
                logger.exception("'%s' asked for %s", self._instance, what)
            self._process.send_beside(Kind.ERROR, (number, text(error)))
        else:
            self._process.send_beside(Kind.ANSWER, (number, value))

    # -- other models

    def _infer(self, number: int, arguments: Sequence[Any], unpacker: Unpacker) -> None:
        described, decoupled, batch, here = arguments
        if number in self._tasks:
            raise ValueError(f"call {number} is under way already")
        request = read_request(described, unpacker)
        if here:
            self._here.add(number)
        if described[-1] is not None:
            number_of, index = described[-1]
            traced, _ = self._batch(number_of)
            request.trace = traced[index].trace if 0 <= index < len(traced) else None
        requests, waiting = self._batch(batch)
        if waiting:
            callers = {caller: None for one in requests for caller in one.callers}
            request.callers = (*callers, self._caller)
            self._of_batch.setdefault(batch, set()).add(number)
        work = self._stream(number, request) if decoupled else self._single(number, request)
        self._begin(number, work)
        if waiting:
            self._tasks[number].add_done_callback(lambda _: self._done_for(batch, number))

    def _done_for(self, batch: int, number: int) -> None:
        numbers = self._of_batch.get(batch, set())
        numbers.discard(number)
        if not numbers:
            self._of_batch.pop(batch, None)

    async def _single(self, number: int, request: Request) -> None:
        try:
            response = await self._services.infer(request)
        except asyncio.CancelledError:
            self._respond(number, Response(error=_cancelled()), True)
            raise
        except Exception as error:
            response = _failed(error)
        self._respond(number, response, True)

    async def _stream(self, number: int, request: Request) -> None:
        ended = False
        try:
            async with aclosing(self._services.stream(request)) as parts:
                async for response, final in parts:
                    self._respond(number, response, final)
                    ended = ended or final
        except asyncio.CancelledError:
            self._respond(number, Response(error=_cancelled()), True)
            raise
        except Exception as error:
            self._respond(number, _failed(error), True)
            return
        if not ended:
            self._respond(number, None, True)

    def _respond(self, number: int, response: Response | None, final: bool) -> None:
        packer = Packer()
        head = None if response is None else response_head(response, packer)
        try:
            data, block = pack(packer, self._pool)
        except OSError as error:
            packer, block = Packer(), None
            failure = internal(f"there is no memory to share: {error.strerror}")
            head, data = response_head(Response(error=failure), packer), b""
        send = self._process.send_beside
        if number in self._here:
            self._here.discard(number)
            send = self._process.send
        send(Kind.RESPONSE, (number, head, final), data, block.number if block else 0)


def _read(head: bytes) -> Any:
    try:
        return orjson.loads(head)
    except orjson.JSONDecodeError:
        # What a metric is set to may be infinite or not a number, which only Python's JSON can say.
        said = json.loads(head)
        orjson.dumps(said)
        return said


def _failed(error: Exception) -> Response:
    if not isinstance(error, NaiadError):
        logger.error("a call of another model failed", exc_info=error)
        error = internal(f"{type(error).__name__}: {error}")
    return Response(error=error)


def _cancelled() -> NaiadError:
    return NaiadError(Code.CANCELLED, "nobody waits for the answer any more")


def _gathered(value: Any, unpacker: Unpacker) -> Any:
    """An argument with its bytes, which came with the message."""
    if isinstance(value, dict):
        if value.keys() == {BYTES}:
            return bytes(unpacker.get(*value[BYTES]))
        return {name: _gathered(one, unpacker) for name, one in value.items()}
    return [_gathered(one, unpacker) for one in value] if isinstance(value, list) else value
