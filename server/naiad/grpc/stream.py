"""One ModelStreamInfer call: many requests side by side, with one or many answers each.

Knows when to read, wait, write and end; what a request means is the service's matter.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc

from naiad.core.trace import RequestTrace
from naiad_backends.api import Buffer
from naiad_backends.errors import NaiadError, unavailable

MOST_IN_FLIGHT: Final = 256
"""Requests of one stream that run or wait to be written; then its client has to wait."""

MOST_UNSENT: Final = 256
"""Answers of one stream that wait to be written; then its requests have to wait."""


class Metadata(Protocol):
    """What a call came with, beside its messages.

    came: when it began, by `time.perf_counter_ns()`; 0 while nothing is traced.
    trace: what the handler of a unary call began; whoever sends the answer calls `sent`.
    """

    came: int
    trace: RequestTrace | None

    def invocation_metadata(self) -> Any:
        """The client's metadata as pairs of key and value; None for none."""


class Caller(Metadata, Protocol):
    """The client's end of a streaming call."""

    async def write(self, parts: Sequence[Buffer]) -> None:
        """Send one serialised message, given in parts; waits while the client is slow to read."""


Unary = Callable[[Buffer, Metadata], Awaitable[Sequence[Buffer]]]
"""Handles a call: one serialised message in, and what came beside it; the parts of another one
out."""

Streaming = Callable[[AsyncIterator[Buffer], Caller], Awaitable[None]]
"""Handles a call with any number of messages in and out."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A message that goes back, and the error that it tells of, if it does.

    trace: held until it is sent.
    """

    message: Sequence[Buffer]
    error: NaiadError | None = None
    trace: RequestTrace | None = None

    def sent(self) -> None:
        """The message is on its way, or never will be."""
        if self.trace is not None:
            sent(self.trace)


def sent(trace: RequestTrace) -> None:
    """An answer of a traced request was sent."""
    trace.mark("GRPC_SEND_END")
    trace.release()


Answers = AsyncGenerator[Answer, None]


class InferStream:
    """One call. Answers of ordinary models leave in the order of their requests, those of decoupled
    models as they come.

    It never cancels a read: the gRPC library would write the message that comes later into memory
    that it has given back. A pending read ends with the call by itself."""

    def __init__(
        self,
        requests: AsyncIterator[Buffer],
        caller: Caller,
        answers: Callable[[Buffer], tuple[bool, Answers]],
        fail_fast: bool,
    ) -> None:
        """answers: begins one request: whether its answers have to wait for those of earlier
        requests, and the answers, which raise nothing.
        fail_fast: the first error ends the call with its status instead of going in-band."""
        self._requests = requests
        self._answers = answers
        self._caller = caller
        self._fail_fast = fail_fast
        self._open = True
        self._reading = True
        self._room = asyncio.Semaphore(MOST_IN_FLIGHT)
        self._space = asyncio.Semaphore(MOST_UNSENT)
        self._outbox: asyncio.Queue[Answer | None] = asyncio.Queue()
        self._running: set[asyncio.Task[None]] = set()
        self._last_in_order: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until the client has no more requests and all are answered.

        Raises the first error if `fail_fast`, UNAVAILABLE after `close`. However it ends, requests
        that are still running are cancelled.
        """
        reader = asyncio.get_running_loop().create_task(self._read())
        try:
            while (answer := await self._outbox.get()) is not None:
                try:
                    if answer.error is not None and self._fail_fast:
                        raise answer.error
                    await self._caller.write(answer.message)
                finally:
                    answer.sent()
                self._space.release()
            if not reader.done():
                raise unavailable("the server is shutting down")
        finally:
            self._end()

    def close(self) -> None:
        """Take no more requests; those that came are answered before the call ends."""
        self._open = False
        self._finish_if_done()

    async def _read(self) -> None:
        try:
            # No read may begin once the call has ended, hence the look at `_open` before each.
            while self._open and (data := await anext(self._requests, None)) is not None:
                if self._open:
                    self._begin(data)
                    await self._room.acquire()
        except grpc.aio.BaseError:
            # The call ended while we read; `run` knows how.
            pass
        finally:
            self._reading = False
            self._finish_if_done()

    def _begin(self, data: Buffer) -> None:
        in_order, answers = self._answers(data)
        before = self._last_in_order if in_order else None
        task = asyncio.get_running_loop().create_task(self._relay(answers, before))
        if in_order:
            self._last_in_order = task
        self._running.add(task)
        task.add_done_callback(self._ended)

    async def _relay(self, answers: Answers, before: asyncio.Task[None] | None) -> None:
        async with aclosing(answers):
            async for answer in answers:
                if before is not None and not before.done():
                    await asyncio.wait((before,))
                await self._space.acquire()
                if answer.trace is not None:
                    answer.trace.hold()
                self._outbox.put_nowait(answer)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._room.release()
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        if not self._running and not (self._open and self._reading):
            self._outbox.put_nowait(None)

    def _end(self) -> None:
        self._open = False
        self._room.release()
        for task in self._running:
            task.cancel()
        while not self._outbox.empty():
            if (answer := self._outbox.get_nowait()) is not None:
                answer.sent()
