"""One ModelStreamInfer call: many requests side by side, answered in the order they came.

Knows when to read, wait, write and end; what a request means is the caller's `answer`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc

from naiad_backends.api import Buffer
from naiad_backends.errors import NaiadError, unavailable

MOST_IN_FLIGHT: Final = 256
"""Requests of one stream that run or wait to be written; then its client has to wait."""


class Caller(Protocol):
    """The client's end of a streaming call."""

    def invocation_metadata(self) -> Any:
        """Its metadata as pairs of key and value; None for none."""

    async def write(self, parts: Sequence[Buffer]) -> None:
        """Send one serialised message, given in parts; waits while the client is slow to read."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back for one request, and the error that it tells of, if it does."""

    message: Sequence[Buffer]
    error: NaiadError | None = None


class InferStream:
    """One call. It never cancels a read: the gRPC library would write the message that comes
    later into memory that it has given back. A pending read ends with the call by itself."""

    def __init__(
        self,
        requests: AsyncIterator[Buffer],
        caller: Caller,
        answer: Callable[[Buffer], Coroutine[Any, Any, Answer]],
        fail_fast: bool,
    ) -> None:
        """answer: runs one request and never raises, except when it is cancelled.
        fail_fast: the first error ends the call with its status instead of going in-band."""
        self._requests = requests
        self._answer = answer
        self._caller = caller
        self._fail_fast = fail_fast
        self._open = True
        self._room = asyncio.Semaphore(MOST_IN_FLIGHT)
        self._jobs: asyncio.Queue[asyncio.Task[Answer] | None] = asyncio.Queue()

    async def run(self) -> None:
        """Serve until the client has no more requests and all are answered.

        Raises the first error if `fail_fast`, UNAVAILABLE after `close`. However it ends, requests
        that are still running are cancelled.
        """
        reader = asyncio.get_running_loop().create_task(self._read())
        try:
            while (job := await self._jobs.get()) is not None:
                answer = await job
                if answer.error is not None and self._fail_fast:
                    raise answer.error
                await self._caller.write(answer.message)
                self._room.release()
            if not reader.done():
                raise unavailable("the server is shutting down")
        finally:
            self._end()

    def close(self) -> None:
        """Take no more requests; those that came are answered before the call ends."""
        self._open = False
        self._jobs.put_nowait(None)

    async def _read(self) -> None:
        try:
            # No read may begin once the call has ended, hence the look at `_open` before each.
            while self._open and (data := await anext(self._requests, None)) is not None:
                if self._open:
                    job = asyncio.get_running_loop().create_task(self._answer(data))
                    self._jobs.put_nowait(job)
                    await self._room.acquire()
        except grpc.aio.BaseError:
            # The call ended while we read; `run` knows how.
            pass
        finally:
            self._jobs.put_nowait(None)

    def _end(self) -> None:
        self._open = False
        self._room.release()
        while not self._jobs.empty():
            job = self._jobs.get_nowait()
            if job is not None:
                job.cancel()
