"""The scheduler of models with a cache: an answer that is there already, or else one run for all
equal requests that wait at the same time.

What equal means is the key's matter; what is kept, and for how long, is the store's. Behind it
stands the scheduler that the model has without a cache.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from naiad.core.cache.keys import Keys, key_parts
from naiad.core.cache.store import LARGE, Store
from naiad.core.responses import Part
from naiad.core.scheduling.scheduler import Scheduler
from naiad.core.stats import Failure, ModelStatistics
from naiad_backends.api import Buffer, Request, Response
from naiad_backends.errors import NaiadError


class _Flight:
    """One run of a request, and those that wait for it.

    request: the server's own, because the model may be told that nobody waits any more only when
        that is true of all.
    waiting: how many do.  running: it went to the model.
    taken: the run has been counted for one of those that wait, or for none as there was no run.
    """

    __slots__ = ("error", "key", "request", "response", "running", "taken", "task", "waiting")

    def __init__(self, key: bytes, request: Request) -> None:
        self.key = key
        self.request = request
        self.task: asyncio.Task[None]
        self.waiting = 0
        self.running = False
        self.taken = False
        self.response = Response()
        self.error: NaiadError | None = None


class Cached:
    """Stands in front of another scheduler."""

    def __init__(
        self, behind: Scheduler, store: Store, identity: bytes, stats: ModelStatistics
    ) -> None:
        """identity: of the loaded version, as its keys begin with."""
        self.in_flight = 0
        self._behind = behind
        self._store = store
        self._identity = identity
        self._keys = Keys(identity)
        self._stats = stats
        self._flights: dict[bytes, _Flight] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def pending(self) -> int:
        return self._behind.pending

    async def submit(self, request: Request, batch_size: int) -> Response:
        arrived = time.perf_counter_ns()
        parts, size = key_parts(request)
        key = None
        if size < LARGE:
            key = self._keys.of(parts)
            response = self._at_hand(key, arrived)
            if response is not None:
                return response
        self.in_flight += 1
        self._idle.clear()
        try:
            if key is None:
                key = await self._large_key(parts, arrived)
                response = self._at_hand(key, arrived)
                if response is not None:
                    return response
            return await self._join(key, request, batch_size, arrived)
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    async def stream(self, request: Request, batch_size: int) -> AsyncGenerator[Part, None]:
        yield Part(await self.submit(request, batch_size), True)

    def _at_hand(self, key: bytes, arrived: int) -> Response | None:
        response = self._store.held(key)
        if response is not None:
            self._stats.found(0, time.perf_counter_ns() - arrived)
        return response

    async def _large_key(self, parts: Sequence[Buffer], arrived: int) -> bytes:
        try:
            return await asyncio.to_thread(self._keys.of, parts)
        except asyncio.CancelledError:
            self._canceled(arrived)
            raise

    def _canceled(self, arrived: int) -> None:
        self._stats.failed(arrived, time.perf_counter_ns(), Failure.CANCELED)

    def renew(self, identity: bytes) -> None:
        """What was answered so far holds no more.  identity: what keys begin with from now on."""
        self._store.forget(self._identity)
        self._identity = identity
        self._keys = Keys(identity)

    # -- flights

    async def _join(self, key: bytes, request: Request, batch_size: int, arrived: int) -> Response:
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(key, replace(request))
            flight.task = asyncio.create_task(self._fly(flight, batch_size, arrived))
        lookup_ns = time.perf_counter_ns() - arrived
        await self._wait(flight, arrived)
        if not flight.taken:
            flight.taken = True
            if flight.error is not None:
                raise flight.error
        elif flight.error is not None:
            # What went wrong for one may go well for another, which may have more time or a better
            # place in the queue.
            return await self._run(key, request, batch_size, lookup_ns)
        else:
            total_ns = time.perf_counter_ns() - arrived
            queue_ns = total_ns - lookup_ns if flight.running else 0
            self._stats.found(queue_ns, total_ns - queue_ns)
        return Response(flight.response.outputs, flight.response.parameters)

    async def _wait(self, flight: _Flight, arrived: int) -> None:
        flight.waiting += 1
        try:
            await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            if flight.waiting > 1 or flight.taken:
                self._canceled(arrived)
            else:
                self._abandon(flight, arrived)
            raise
        finally:
            flight.waiting -= 1

    def _abandon(self, flight: _Flight, arrived: int) -> None:
        """Nobody waits any more."""
        flight.request.cancel()
        flight.task.cancel()
        self._land(flight)
        if not flight.running:
            # Else the scheduler behind counts it.
            self._canceled(arrived)

    async def _fly(self, flight: _Flight, batch_size: int, arrived: int) -> None:
        try:
            response = await self._store.fetch(flight.key)
            if response is None:
                flight.running = True
                lookup_ns = time.perf_counter_ns() - arrived
                response = await self._run(flight.key, flight.request, batch_size, lookup_ns)
            else:
                flight.taken = True
            flight.response = response
        except NaiadError as error:
            flight.error = error
        finally:
            self._land(flight)

    def _land(self, flight: _Flight) -> None:
        """Requests that come from now on do not wait for it."""
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    async def _run(self, key: bytes, request: Request, batch_size: int, lookup_ns: int) -> Response:
        """Have the model answer, and keep its answer. Raises the model's error."""
        response = await self._behind.submit(request, batch_size)
        if response.error is not None:
            raise response.error
        begun = time.perf_counter_ns()
        if not request.outputs or len(response.outputs) == len(request.outputs):
            await self._store.keep(self._identity, key, response)
        self._stats.missed(lookup_ns + time.perf_counter_ns() - begun)
        return response

    # -- the end

    def hurry(self) -> None:
        self._behind.hurry()

    async def drained(self) -> None:
        self._behind.hurry()
        await self._idle.wait()
        await self._behind.drained()

    async def stop(self) -> None:
        await self._behind.stop()
        self._store.forget(self._identity)
