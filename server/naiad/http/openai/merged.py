"""Several streams of responses as one, that tells of silence.

Knows nothing of what responses hold.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

from naiad.core.responses import Part
from naiad_backends.api import Response

SILENCE_S = 15.0
"""Seconds after which a client hears that the server is still there. Proxies often cut what was
silent for 30 or 60."""

AT_ONCE = 256
"""What one request may have under way in a model, whose queue need not take more."""


class Merged:
    """Reads many streams at once. Made and read on the event loop; whoever made it closes it."""

    def __init__(
        self,
        streams: Iterable[AsyncGenerator[Part, None]],
        silence_s: float = SILENCE_S,
        at_once: int = AT_ONCE,
    ) -> None:
        """silence_s: after so long without a response `take` returns without one.
        at_once: streams; the others begin when these have ended."""
        self._loop = asyncio.get_running_loop()
        self._silence_s = silence_s
        self._places = asyncio.Semaphore(at_once)
        self._arrived: list[tuple[int, Response]] = []
        self._waiting: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._heard = False
        self._quiet = False
        self._tasks = [
            self._loop.create_task(self._read(number, parts))
            for number, parts in enumerate(streams)
        ]
        self._left = len(self._tasks)
        self._timer = self._loop.call_later(silence_s, self._tick)

    async def take(self) -> list[tuple[int, Response]] | None:
        """What has come since the last call, with the numbers of the streams; waits for something.

        An empty list means that nothing came for a while, None that nothing comes any more. Raises
        the first error of a stream, behind all that came before it.
        """
        while not self._arrived:
            if self._error is not None:
                raise self._error
            if not self._left:
                return None
            if self._quiet:
                self._quiet = False
                return []
            self._waiting = self._loop.create_future()
            await self._waiting
        arrived, self._arrived = self._arrived, []
        return arrived

    async def close(self) -> None:
        """End the streams that go on."""
        self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self, number: int, parts: AsyncGenerator[Part, None]) -> None:
        try:
            async with self._places, aclosing(parts):
                async for part in parts:
                    if part.response is not None:
                        self._arrived.append((number, part.response))
                        self._heard, self._quiet = True, False
                        self._wake()
        except Exception as error:  # for whoever takes
            self._error = self._error or error
        finally:
            self._left -= 1
            self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _tick(self) -> None:
        self._quiet, self._heard = not self._heard, False
        self._wake()
        self._timer = self._loop.call_later(self._silence_s, self._tick)
