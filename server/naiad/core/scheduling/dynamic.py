"""The scheduler of models with a dynamic batcher: requests wait together and run together.

When they do is for the line to say; here are the ends of requests.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Hashable, Sequence

from naiad.core.responses import Part
from naiad.core.scheduling.batch import Batch, Job, run
from naiad.core.scheduling.gate import Gate
from naiad.core.scheduling.line import Line
from naiad.core.scheduling.patience import Patience
from naiad.core.scheduling.queue import TimedOut
from naiad.core.stats import Failure, ModelStatistics
from naiad.repository.scheduling import DynamicBatching
from naiad_backends.api import Instance, Request, Response
from naiad_backends.errors import NaiadError, QueueFull


class Dynamic:
    """Runs requests in batches, and answers each."""

    def __init__(
        self,
        name: str,
        instances: Sequence[Instance],
        stats: ModelStatistics,
        batching: DynamicBatching,
        largest: int,
        key: Callable[[Request], Hashable],
        patience: Patience,
        gate: Gate | None = None,
    ) -> None:
        """largest: batch elements of one execution; 1 for requests that each run alone.
        key: requests of equal keys may share a batch.  gate: of the rate limiter, if there is one.
        """
        self.in_flight = 0
        self._stats = stats
        self._key = key
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._drained = asyncio.Event()
        self._drained.set()
        # Requests in the order of their answers, where that has to be the one in which they ran.
        self._order: OrderedDict[Job, None] | None = None
        if batching.preserve_ordering:
            self._order = OrderedDict()
        self._line: Line[Instance, Job] = Line(
            name, instances, run, self, batching, largest, patience, gate
        )

    @property
    def pending(self) -> int:
        return len(self._line)

    async def submit(self, request: Request, batch_size: int) -> Response:
        job = Job(request, batch_size, self._key(request))
        job.future = self._loop.create_future()
        self.in_flight += 1
        self._drained.clear()
        try:
            self._line.submit(job)
        except QueueFull as full:
            self._stats.failed(job.arrived, time.perf_counter_ns(), Failure.REJECTED)
            full.retry_after_s = full.retry_after_s or self._stats.usual_seconds()
            self._left()
            raise
        try:
            return await job.future
        except asyncio.CancelledError:
            if self._line.remove(job):
                self._drop(job)
            raise

    async def stream(self, request: Request, batch_size: int) -> AsyncGenerator[Part, None]:
        yield Part(await self.submit(request, batch_size), True)

    # -- the ends of requests, told by the line

    def formed(self, batch: Batch[Job]) -> None:
        """Note the order in which they are to be answered."""
        if self._order is not None:
            for job in batch.jobs:
                # One that was not begun before keeps its place.
                self._order.setdefault(job)

    def finished(self, batch: Batch[Job]) -> None:
        """Answer what can be answered now."""
        size = batch.count(self._stats)
        if batch.phases is not None:
            self._patience.executed(size, batch.phases.end - batch.phases.start)
        if self._order is None:
            for job in batch.jobs:
                self._end(job)
        else:
            self._answer_in(self._order)

    def _answer_in(self, order: OrderedDict[Job, None]) -> None:
        while order:
            first = next(iter(order))
            if first.response is None and not first.abandoned:
                return
            del order[first]
            self._end(first)

    def late(self, job: Job) -> None:
        """Refuse a request whose time is up."""
        now = time.perf_counter_ns()
        self._stats.failed(job.arrived, now, Failure.REJECTED)
        if job.future is not None and not job.future.done():
            job.future.set_exception(TimedOut(now - job.arrived, self._stats.usual_seconds()))
        self._forget(job)
        self._left()

    def lost(self, job: Job, error: NaiadError) -> None:
        """Fail a request that no instance will run."""
        job.answer(Response(error=error))
        self._drop(job)

    def _drop(self, job: Job) -> None:
        self._forget(job)
        self._end(job)

    def _forget(self, job: Job) -> None:
        order = self._order
        if order is not None and job in order:
            # Nobody waits behind it any more.
            del order[job]
            self._answer_in(order)

    def _end(self, job: Job) -> None:
        job.settle(self._stats)
        self._left()

    def _left(self) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self._drained.set()

    # -- the end

    def resize(
        self, added: Sequence[Instance], removed: Collection[Instance]
    ) -> Coroutine[None, None, None]:
        return self._line.resize(added, removed)

    def hurry(self) -> None:
        self._line.hurry()

    async def drained(self) -> None:
        self.hurry()
        await self._drained.wait()

    async def stop(self) -> None:
        await self._line.stop()
