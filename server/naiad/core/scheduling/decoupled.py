"""The scheduler of decoupled models: any number of responses to each request.

A request runs alone, but on instances elsewhere in batches, if the configuration has a batcher. An
instance is free again when it says so; a request has ended with its final word, which may come
before or later. Both are counted, and a version drains only when every request has ended.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Hashable, Sequence

from naiad.core.responses import Part
from naiad.core.scheduling.batch import Batch, Job, failure
from naiad.core.scheduling.gate import Gate
from naiad.core.scheduling.instances import SharedWorkers, all_ended, exchanged
from naiad.core.scheduling.line import Line
from naiad.core.scheduling.patience import FixedPatience, Patience
from naiad.core.scheduling.queue import TimedOut
from naiad.core.scheduling.remote import RemoteWorkers, elsewhere
from naiad.core.scheduling.streams import Streams, not_single
from naiad.core.stats import Failure, ModelStatistics
from naiad.repository.scheduling import DynamicBatching
from naiad_backends.api import Instance, Request, Response, StreamingInstance
from naiad_backends.errors import NaiadError, QueueFull

logger = logging.getLogger(__name__)


class Decoupled:
    """Runs a model version's streaming instances: elsewhere, on threads or, if quick, here."""

    def __init__(
        self,
        name: str,
        instances: Sequence[Instance],
        stats: ModelStatistics,
        gate: Gate | None = None,
        batching: DynamicBatching | None = None,
        largest: int = 1,
        key: Callable[[Request], Hashable] = lambda request: None,
        patience: Patience | None = None,
    ) -> None:
        """instances: all of them streaming.  gate: of the rate limiter, if there is one.
        batching: queue policies and priorities, if there are any.
        largest, key, patience: of batches, for instances that are elsewhere; others get one request
            at a time."""
        self._stats = stats
        self._key = key
        self._patience = patience or FixedPatience(0)
        self._streams = Streams(stats, self._ended)
        self._idle = asyncio.Event()
        self._idle.set()
        self._inline: Instance | None = None
        self._quick = instances
        self._workers: SharedWorkers[Instance, Batch[Job]] | RemoteWorkers[Job] | None = None
        self._line: Line[Instance, Job] | None = None
        if batching is not None or gate is not None:
            policies = batching or DynamicBatching()
            size = largest if batching is not None and elsewhere(instances) else 1
            self._line = Line(name, instances, _run, self, policies, size, self._patience, gate)
        elif elsewhere(instances):
            self._workers = RemoteWorkers(instances, self.finished)
        elif any(one.blocking for one in instances):
            self._workers = SharedWorkers(name, instances, _run, self.finished)
        else:
            self._inline = instances[0]

    @property
    def in_flight(self) -> int:
        """Requests that were accepted and have not had their final word."""
        return len(self._streams)

    @property
    def pending(self) -> int:
        """Requests in the queue, which no instance has taken yet."""
        if self._line is not None:
            return len(self._line)
        return 0 if self._workers is None else self._workers.waiting

    async def submit(self, request: Request, batch_size: int) -> Response:
        """Raises UNSUPPORTED: the number of responses is not known to be one."""
        raise not_single(request)

    async def stream(self, request: Request, batch_size: int) -> AsyncGenerator[Part, None]:
        """The responses as they come, the last part final. Closing the iterator cancels."""
        job = Job(request, batch_size, self._key(request))
        stream = self._streams.open(job)
        self._idle.clear()
        self._submit(job)
        try:
            async for part in stream.parts():
                yield part
        finally:
            stream.cancel()
            if self._line is not None and self._line.remove(job):
                self._streams.finish(job)

    def _submit(self, job: Job) -> None:
        if self._line is not None:
            self._queue(job, self._line)
            return
        batch = Batch((job,))
        self._streams.running(batch)
        if self._workers is not None:
            self._workers.submit(batch)
        elif self._inline is not None:
            _run(self._inline, batch)
            self.finished(batch)

    def _queue(self, job: Job, line: Line[Instance, Job]) -> None:
        try:
            line.submit(job)
        except QueueFull as full:
            self._stats.failed(job.arrived, time.perf_counter_ns(), Failure.REJECTED)
            full.retry_after_s = full.retry_after_s or self._stats.usual_seconds()
            self._streams.forget(job)
            raise

    # -- what becomes of requests, told by the line

    def formed(self, batch: Batch[Job]) -> None:
        """They run together next."""
        self._streams.running(batch)

    def finished(self, batch: Batch[Job]) -> None:
        """The instance is free of them, which need not be their end."""
        if batch.phases is not None:
            size = sum([job.size for job in batch.jobs])
            self._patience.executed(size, batch.phases.end - batch.phases.start)
        for job in batch.jobs:
            self._streams.finish(job)

    def late(self, job: Job) -> None:
        """Refuse a request whose time is up."""
        waited = time.perf_counter_ns() - job.arrived
        error = TimedOut(waited, self._stats.usual_seconds())
        self._streams.refuse(job, error, Failure.REJECTED)

    def lost(self, job: Job, error: NaiadError) -> None:
        """Fail a request that no instance will run."""
        self._streams.refuse(job, error, Failure.BACKEND)

    def _ended(self) -> None:
        if not self._streams:
            self._idle.set()

    # -- the end

    def hurry(self) -> None:
        if self._line is not None:
            self._line.hurry()

    def resize(
        self, added: Sequence[Instance], removed: Collection[Instance]
    ) -> Coroutine[None, None, None]:
        """Take up instances, and part with others; see `Scheduler`."""
        waits = self._workers if self._line is None else self._line
        if waits is not None:
            return waits.resize(added, removed)
        self._quick = exchanged(self._quick, added, removed)
        self._inline = self._quick[0]
        return all_ended(())

    async def drained(self) -> None:
        """Wait until `in_flight` is 0. No new request may come meanwhile."""
        self.hurry()
        await self._idle.wait()

    async def stop(self) -> None:
        """End the threads, after `drained`."""
        waits = self._workers if self._line is None else self._line
        if waits is not None:
            await waits.stop()


def _run(instance: Instance, batch: Batch[Job]) -> None:
    """Let an instance here begin a request; what it raises becomes the stream's end."""
    (job,) = batch.jobs
    responder = job.responder
    if responder is None or job.abandoned or not isinstance(instance, StreamingInstance):
        return
    batch.started = time.perf_counter_ns()
    try:
        instance.stream(job.request, responder)
        job.answer(Response())
    except NaiadError as error:
        job.answer(Response(error=error))
    except Exception as error:
        logger.exception("model '%s' failed", job.request.model_name)
        job.answer(Response(error=failure(error)))
