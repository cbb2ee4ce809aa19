"""A worker's channel beside its work: what the model asks of the server, and what the server tells
while the model is busy. A thread of its own reads it."""

import asyncio
import contextlib
import itertools
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from naiad_backends.python.runtime.blocks import Mapped, Pool
from naiad_backends.python.runtime.errors import TritonError, TritonModelException
from naiad_backends.python.runtime.floodgate import Floodgate
from naiad_backends.python.runtime.frames import Kind, Port
from naiad_backends.python.runtime.heads import pack_request, read_response
from naiad_backends.python.runtime.link import Call, Link, Plain
from naiad_backends.python.runtime.parcel import Packer, Unpacker, pack
from naiad_backends.python.runtime.request import InferenceRequest
from naiad_backends.python.runtime.response import InferenceResponse

logger = logging.getLogger(__name__)


class Memory:
    """The blocks of both sides, and which of the server's are done with."""

    def __init__(self, pool: Pool, mapped: Mapped) -> None:
        self.pool = pool
        self.mapped = mapped
        self._released: deque[int] = deque()

    def unpacker(self, data: bytearray, block: int) -> Unpacker:
        """For a message from the server. Raises OSError if its block cannot be mapped."""
        try:
            return Unpacker(data, block, self.mapped, self._released.append)
        except OSError:
            self._released.append(block)
            raise

    def released(self) -> list[list[int]]:
        """The server's blocks that nothing refers to any more, each once, and how often they were
        named."""
        found = []
        # Another thread may ask, too.
        with contextlib.suppress(IndexError):
            while self._released:
                number = self._released.popleft()
                found.append([number, self.mapped.named(number)])
        return found


class _Answer:
    """What a caller waits for."""

    def __init__(self) -> None:
        self._there = threading.Event()
        self._value: Plain = None
        self._error = ""

    def settle(self, value: Plain, error: str = "") -> None:
        self._value, self._error = value, error
        self._there.set()

    def wait(self) -> Plain:
        self._there.wait()
        if self._error:
            raise TritonModelException(self._error)
        return self._value


class _Inference(Call):
    """The responses of another model, from the reading thread to whoever waits."""

    def __init__(self, side: "Side", number: int) -> None:
        self._side = side
        self._number = number
        self._responses: SimpleQueue[tuple[InferenceResponse | None, bool]] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken: asyncio.Event | None = None

    def put(self, response: InferenceResponse | None, final: bool) -> None:
        self._responses.put((response, final))
        if self._loop is not None and self._woken is not None:
            self._loop.call_soon_threadsafe(self._woken.set)

    def parts(self) -> Iterator[InferenceResponse]:
        final = False
        while not final:
            response, final = self._responses.get()
            if response is not None:
                yield response

    async def async_parts(self) -> AsyncIterator[InferenceResponse]:
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        final = False
        try:
            while not final:
                self._woken.clear()
                try:
                    response, final = self._responses.get_nowait()
                except Empty:
                    await self._woken.wait()
                    continue
                if response is not None:
                    yield response
        except asyncio.CancelledError:
            self.cancel()
            raise

    def cancel(self) -> None:
        self._side.tell("cancel", self._number)


class Side(Link):
    """The link of a worker process."""

    def __init__(self, port: Port, work: Port, memory: Memory) -> None:
        """work: the channel that the thread reads which makes this."""
        self._port = port
        self._work = work
        self._main = threading.get_ident()
        self._memory = memory
        self._floodgate = Floodgate()
        self._numbers = itertools.count(1)
        self._answers: dict[int, _Answer] = {}
        self._inferences: dict[int, _Inference] = {}
        self.forbidden = ""
        """Why other models cannot be called now; empty if they can."""
        self.batch: Callable[[], int] = lambda: 0
        """The batch for which the calling thread works; 0 for none."""

    # -- from the model, any thread

    def call(self, what: str, *arguments: Plain) -> Plain:
        number = next(self._numbers)
        answer = self._answers[number] = _Answer()
        packer = Packer()
        head = [number, what, [_spread(argument, packer) for argument in arguments]]
        self._send(self._port, Kind.CALL, head, packer)
        return answer.wait()

    def tell(self, what: str, *arguments: Plain) -> None:
        if self._port.left:
            return
        if what == "log":
            severity, text, *rest = arguments
            admitted = self._floodgate.admit(str(severity), str(text))
            if admitted is None:
                return
            self._tell_left_out()
            arguments = (severity, admitted, *rest)
        packer = Packer()
        head = [0, what, [_spread(argument, packer) for argument in arguments]]
        self._send(self._port, Kind.TELL, head, packer)

    def _tell_left_out(self) -> None:
        count = self._floodgate.take_left_out()
        if count:
            self._port.write(Kind.TELL, [0, "left_out", [count]])

    def run(self, request: InferenceRequest) -> InferenceResponse:
        if threading.get_ident() == self._main:
            return self._run_here(request)
        return super().run(request)

    def _run_here(self, request: InferenceRequest) -> InferenceResponse:
        """On the thread that reads the channel of work, and has nothing else to do there now: the
        answer need not go through another thread."""
        number = next(self._numbers)
        head, packer = self._inference(number, request, False, here=True)
        answered = 0
        try:
            self._send(self._work, Kind.CALL, head, packer)
            # An answer to another call is one that the model has stopped to wait for.
            while answered != number:
                (answered, response, _), data, block = self._work.wait_for(Kind.RESPONSE)
        except (EOFError, BrokenPipeError):
            os._exit(1)
        return read_response(response, self._memory.unpacker(data, block))

    def infer(self, request: InferenceRequest, decoupled: bool) -> Call:
        number = next(self._numbers)
        head, packer = self._inference(number, request, decoupled)
        inference = self._inferences[number] = _Inference(self, number)
        self._send(self._port, Kind.CALL, head, packer)
        return inference

    def _inference(
        self, number: int, request: InferenceRequest, decoupled: bool, here: bool = False
    ) -> tuple[Sequence[Any], Packer]:
        if self.forbidden:
            raise TritonModelException(self.forbidden)
        packer = Packer(self._memory.mapped)
        described = pack_request(request, packer)
        released = self._memory.released()
        call = (described, decoupled, self.batch(), here)
        return (number, "infer", call, released), packer

    def leave(self) -> None:
        """In a process that the model has forked off."""
        self._port.leave()

    def release(self) -> None:
        """Tell the server which of its blocks are done with, and what else waits for a moment in
        which there is nothing to do."""
        self._tell_left_out()
        released = self._memory.released()
        if released:
            self._port.write(Kind.TELL, [0, "release", [released]])

    def _send(self, port: Port, kind: Kind, head: Sequence[Any], packer: Packer) -> None:
        try:
            data, block = pack(packer, self._memory.pool)
        except OSError as error:
            raise TritonModelException(f"no memory to share: {error.strerror}") from None
        port.write(kind, head, data, block.number if block else 0)

    # -- from the server, the reading thread

    def serve(self, told: Callable[[str, Sequence[Any]], Plain]) -> None:
        """Read until the server is gone, and end the process then.

        told: carries out what the server asks or tells.
        """
        try:
            while True:
                kind, head, data, block = self._port.read()
                self._take(kind, head, data, block, told)
        except EOFError:
            os._exit(1)
        except BaseException as error:
            # Without this thread the process is of no use, and nobody would see why.
            sys.excepthook(type(error), error, error.__traceback__)
            sys.stderr.flush()
            os._exit(1)

    def _take(
        self,
        kind: int,
        head: Any,
        data: bytearray,
        block: int,
        told: Callable[[str, Sequence[Any]], Plain],
    ) -> None:
        if kind == Kind.RESPONSE:
            number, response, final = head
            inference = self._inferences.get(number)
            if final:
                self._inferences.pop(number, None)
            if inference is not None:
                inference.put(self._response(response, data, block), final)
            elif block:
                self._memory.unpacker(data, block)
        elif kind == Kind.ANSWER:
            self._answers.pop(head[0]).settle(head[1])
        elif kind == Kind.ERROR:
            self._answers.pop(head[0]).settle(None, head[1])
        elif kind == Kind.TELL:
            told(head[1], head[2])
        elif kind == Kind.CALL:
            threading.Thread(target=self._answer, args=(head, told), daemon=True).start()

    def _response(self, head: Any, data: bytearray, block: int) -> InferenceResponse | None:
        if head is None:
            return None
        try:
            return read_response(head, self._memory.unpacker(data, block))
        except (OSError, MemoryError) as error:
            failure = TritonError(f"there is no memory for the response: {error}")
            return InferenceResponse.received((), failure, {})

    def _answer(self, head: Any, told: Callable[[str, Sequence[Any]], Plain]) -> None:
        number, what, arguments = head
        try:
            value = told(what, arguments)
        except Exception as error:
            self._port.write(Kind.ERROR, [number, f"{type(error).__name__}: {error}"])
        else:
            self._port.write(Kind.ANSWER, [number, value])


BYTES = "\0bytes"
"""The only key of what stands for bytes among the arguments: their place, offset and size."""


def _spread(value: Plain, packer: Packer) -> Any:
    """A value that JSON can hold; bytes go with the message."""
    if isinstance(value, bytes):
        return {BYTES: packer.add(value)}
    if isinstance(value, dict):
        return {name: _spread(one, packer) for name, one in value.items()}
    if isinstance(value, list):
        return [_spread(one, packer) for one in value]
    return value
