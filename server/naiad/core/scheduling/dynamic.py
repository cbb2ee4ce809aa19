"""The scheduler of models with a dynamic batcher: requests wait together and run together.

What is decided, and when, is the queue's and the batcher's matter; here are the moments at which
they are asked (a request came, an instance is free, a time has come) and the ends of requests.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Hashable, Sequence

from naiad.core.responses import Part
from naiad.core.scheduling.batcher import Batcher
from naiad.core.scheduling.crew import Crew
from naiad.core.scheduling.gate import Gate
from naiad.core.scheduling.instances import Batch, Job, run
from naiad.core.scheduling.patience import Patience
from naiad.core.scheduling.queue import QueueFull, RequestQueue, TimedOut
from naiad.core.scheduling.timer import Alarm
from naiad.core.stats import Failure, ModelStatistics
from naiad.repository.scheduling import DynamicBatching
from naiad_backends.api import Instance, Request, Response


class Dynamic:
    """Forms a batch whenever an instance is free, so that nothing is fixed before it has to be."""

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
        """largest: batch elements of one execution.
        key: requests of equal keys may share a batch.  gate: of the rate limiter, if there is one.
        """
        self.in_flight = 0
        self._stats = stats
        self._batching = batching
        self._key = key
        self._queue: RequestQueue[Job] = RequestQueue(batching.policy, batching.policies)
        self._batcher = Batcher(self._queue, batching.preferred, largest, patience)
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(self._dispatch)
        self._planned = False
        self._dispatching = False
        self._drained = asyncio.Event()
        self._drained.set()
        # Requests in the order of their answers, where that has to be the one in which they came.
        self._line: deque[Job] | None = deque() if batching.preserve_ordering else None
        self._crew = Crew(name, instances, run, self._finished, gate)

    @property
    def pending(self) -> int:
        return len(self._queue)

    # -- requests

    async def submit(self, request: Request, batch_size: int) -> Response:
        job = Job(request, batch_size, self._key(request))
        job.future = self._loop.create_future()
        try:
            level = self._batching.level(request.priority)
            self._queue.put(job, level, request.timeout_us * 1000)
        except QueueFull as full:
            self._stats.failed(job.arrived, time.perf_counter_ns(), Failure.REJECTED)
            full.retry_after_s = self._stats.usual_seconds()
            raise
        self.in_flight += 1
        self._drained.clear()
        self._patience.arrived(job.arrived)
        self._plan()
        try:
            return await job.future
        except asyncio.CancelledError:
            if self._queue.remove(job):
                self._end(job)
            raise

    async def stream(self, request: Request, batch_size: int) -> AsyncGenerator[Part, None]:
        yield Part(await self.submit(request, batch_size), True)

    def _refuse(self, job: Job) -> None:
        now = time.perf_counter_ns()
        self._stats.failed(job.arrived, now, Failure.REJECTED)
        if job.future is not None and not job.future.done():
            job.future.set_exception(TimedOut(now - job.arrived, self._stats.usual_seconds()))
        self._left()

    def _end(self, job: Job) -> None:
        job.settle(self._stats)
        self._left()

    def _left(self) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self._drained.set()

    # -- batches

    def _plan(self) -> None:
        """Dispatch once the loop has read what else has come in already."""
        if not self._planned:
            self._planned = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._planned = False
        self._dispatching = True
        queue, crew = self._queue, self._crew
        now = time.perf_counter_ns()
        for job in queue.expire(now):
            self._refuse(job)
        wake = None
        while crew.free and len(queue):
            if not (self._send(now) if crew.gate is None else self._ask(now)):
                wake = self._batcher.wake
                break
        deadline = queue.next_deadline()
        if deadline is not None:
            wake = deadline if wake is None else min(wake, deadline)
        self._alarm.set(wake)
        self._dispatching = False

    def _send(self, now: int) -> bool:
        """Form a batch for a free instance; False if it is better to wait."""
        jobs = self._batcher.form(now)
        if jobs:
            self._crew.run(self._batch(jobs))
        return bool(jobs)

    def _ask(self, now: int) -> bool:
        """The same under the rate limiter: the batch is formed when the instance may run, so that
        requests can join it until then."""
        return self._batcher.ready(now) and self._crew.ask(self._late)

    def _late(self) -> Batch | None:
        jobs = self._batcher.form(time.perf_counter_ns())
        if not jobs and len(self._queue):
            # Some have left meanwhile, and the others may have to wait for more.
            self._plan()
        return self._batch(jobs) if jobs else None

    def _batch(self, jobs: list[Job]) -> Batch:
        if self._line is not None:
            self._line += jobs
        return Batch(jobs)

    def _finished(self, batch: Batch) -> None:
        self._settle(batch)
        if len(self._queue) and not self._dispatching:
            self._dispatch()

    def _settle(self, batch: Batch) -> None:
        size = batch.count(self._stats)
        if batch.phases is not None:
            self._patience.executed(size, batch.phases.end - batch.phases.start)
        if self._line is None:
            for job in batch.jobs:
                self._end(job)
            return
        line = self._line
        while line and (line[0].response is not None or line[0].abandoned):
            self._end(line.popleft())

    # -- the end

    def resize(
        self, added: Sequence[Instance], removed: Collection[Instance]
    ) -> Coroutine[None, None, None]:
        ending = self._crew.resize(added, removed)
        self._plan()
        return ending

    def hurry(self) -> None:
        self._batcher.hurry()
        self._plan()

    async def drained(self) -> None:
        self.hurry()
        await self._drained.wait()

    async def stop(self) -> None:
        await self._crew.stop()
        self._alarm.close()
