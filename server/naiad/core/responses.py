"""The responses to one request of a decoupled model, from any thread to the event loop.

A stream has exactly one end: the model's final word. A client that leaves only makes the model
hear of it; what is sent after that goes nowhere.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import NamedTuple

from naiad_backends.api import Responder, Response
from naiad_backends.errors import NaiadError, internal


class Part(NamedTuple):
    """One step of an answer. response: None for a final word without a response.

    sent: when the model sent it, by `time.perf_counter_ns()`.
    """

    response: Response | None
    final: bool
    sent: int = 0


class ResponseStream(Responder):
    """Made and read on the event loop, written by the model."""

    def __init__(self, arrived: Callable[["ResponseStream", Part], None]) -> None:
        """arrived: called on the loop for every part, wanted or not."""
        self._loop = asyncio.get_running_loop()
        self._home = threading.get_ident()
        self._on_part = arrived
        self._sent: deque[Part] = deque()
        self._parts: deque[Part] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._finished = False
        self._cancelled = False

    # -- the model's side

    def send(self, response: Response | None, final: bool = False) -> None:
        if self._finished:
            raise internal("a response was sent after the final one")
        if response is None and not final:
            raise internal("neither a response nor the final word was sent")
        self._finished = final
        self._sent.append(Part(response, final, time.perf_counter_ns()))
        if threading.get_ident() == self._home:
            self._collect()
        else:
            self._loop.call_soon_threadsafe(self._collect)

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    # -- the server's side

    def fail(self, error: NaiadError) -> None:
        """End with an error, if the model has not ended the stream itself."""
        if not self._finished:
            self.send(Response(error=error), final=True)

    def cancel(self) -> None:
        """Nobody reads any more."""
        self._cancelled = True
        self._parts.clear()

    async def parts(self) -> AsyncGenerator[Part, None]:
        """The parts as they come; the last one is final."""
        while True:
            while self._parts:
                part = self._parts.popleft()
                yield part
                if part.final:
                    return
            self._reader = self._loop.create_future()
            await self._reader

    def _collect(self) -> None:
        while self._sent:
            part = self._sent.popleft()
            if not self._cancelled:
                self._parts.append(part)
            self._on_part(self, part)
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)
