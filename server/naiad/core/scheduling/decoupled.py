"""The scheduler of decoupled models: any number of responses to each request.

A request runs alone, but on instances elsewhere in batches, if the configuration has a batcher. An
instance is free again when it says so; a request has ended with its final word, which may come
before or later. Both are counted, and a version drains only when every request has ended.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Hashable, Sequence

from naiad.core.responses import Part, ResponseStream
from naiad.core.scheduling.batch import Batch, Job, failure, not_iterative
from naiad.core.scheduling.gate import Gate
from naiad.core.scheduling.instances import SharedWorkers, all_ended, exchanged
from naiad.core.scheduling.line import Line
from naiad.core.scheduling.patience import FixedPatience, Patience
from naiad.core.scheduling.queue import QueueFull, TimedOut
from naiad.core.scheduling.remote import RemoteWorkers, elsewhere
from naiad.core.stats import Failure, ModelStatistics, Phases
from naiad.core.trace import executed, responded
from naiad.repository.scheduling import DynamicBatching
from naiad_backends.api import Instance, Request, Responder, Response, StreamingInstance
from naiad_backends.errors import NaiadError, internal, unsupported

logger = logging.getLogger(__name__)


class _Job(Job):
    """One request.

    batch: what it runs in, once it does.
    first, before: when it responded first and last, by `time.perf_counter_ns()`; 0 for not yet.
        `before` begins with the arrival.
    """

    __slots__ = ("batch", "before", "failure", "first", "responses", "stream")

    def __init__(self, request: Request, size: int, key: Hashable, stream: ResponseStream) -> None:
        super().__init__(request, size, key)
        self.stream = stream
        self.batch: Batch[_Job] | None = None
        self.first = 0
        self.before = self.arrived
        self.failure: Failure | None = None
        self.responses = 0

    @property
    def abandoned(self) -> bool:
        return self.stream.cancelled

    @property
    def responder(self) -> Responder:
        return self.stream

    @property
    def started(self) -> int:
        """When its instance came to it; 0 for not yet."""
        return 0 if self.batch is None else self.batch.started

    def answer(self, response: Response, phases: Phases | None = None) -> None:
        """The instance is free of it: `response` is none of its own, unless that is an error."""
        self.response = response
        if response.error is not None:
            self.stream.fail(response.error)
        elif response.reschedule:
            self.stream.fail(not_iterative())


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
        self._jobs: dict[ResponseStream, _Job] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._inline: Instance | None = None
        self._quick = instances
        self._workers: SharedWorkers[Instance, Batch[_Job]] | RemoteWorkers[_Job] | None = None
        self._line: Line[Instance, _Job] | None = None
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
        return len(self._jobs)

    @property
    def pending(self) -> int:
        """Requests in the queue, which no instance has taken yet."""
        if self._line is not None:
            return len(self._line)
        return 0 if self._workers is None else self._workers.waiting

    async def submit(self, request: Request, batch_size: int) -> Response:
        """Raises UNSUPPORTED: the number of responses is not known to be one."""
        raise unsupported(
            f"model '{request.model_name}' is decoupled: a request may have 0 to many responses",
            hint="use ModelStreamInfer or POST .../generate_stream",
        )

    async def stream(self, request: Request, batch_size: int) -> AsyncGenerator[Part, None]:
        """The responses as they come, the last part final. Closing the iterator cancels."""
        job = self._open(request, batch_size)
        stream = job.stream
        try:
            async for part in stream.parts():
                yield part
        finally:
            stream.cancel()
            if self._line is not None and self._line.remove(job):
                stream.fail(_left())

    def _open(self, request: Request, batch_size: int) -> _Job:
        stream = ResponseStream(self._responded)
        job = _Job(request, batch_size, self._key(request), stream)
        self._jobs[stream] = job
        self._idle.clear()
        if self._line is not None:
            self._queue(job, self._line)
            return job
        batch = job.batch = Batch((job,))
        if self._workers is not None:
            self._workers.submit(batch)
        elif self._inline is not None:
            _run(self._inline, batch)
            self.finished(batch)
        return job

    def _queue(self, job: _Job, line: Line[Instance, _Job]) -> None:
        try:
            line.submit(job)
        except QueueFull as full:
            self._stats.failed(job.arrived, time.perf_counter_ns(), Failure.REJECTED)
            full.retry_after_s = self._stats.usual_seconds()
            self._forget(job)
            raise

    # -- what becomes of requests, told by the line

    def formed(self, batch: Batch[_Job]) -> None:
        """They run together next."""
        for job in batch.jobs:
            job.batch = batch

    def finished(self, batch: Batch[_Job]) -> None:
        """The instance is free of them, which need not be their end."""
        if batch.phases is not None:
            size = sum([job.size for job in batch.jobs])
            self._patience.executed(size, batch.phases.end - batch.phases.start)
        for job in batch.jobs:
            if job.response is None:
                # It was left out.
                job.stream.fail(_left())

    def late(self, job: _Job) -> None:
        """Refuse a request whose time is up."""
        job.failure = Failure.REJECTED
        waited = time.perf_counter_ns() - job.arrived
        job.stream.fail(TimedOut(waited, self._stats.usual_seconds()))

    def lost(self, job: _Job, error: NaiadError) -> None:
        """Fail a request that no instance will run."""
        job.stream.fail(error)

    # -- responses

    def _responded(self, stream: ResponseStream, part: Part) -> None:
        job = self._jobs[stream]
        if job.failure is Failure.REJECTED:
            # It is the queue that responds, not the model.
            self._end(job, part.sent)
            return
        outcome = _outcome(part, stream.cancelled)
        job.failure = _FAILURES.get(outcome, job.failure)
        output_ns = time.perf_counter_ns() - part.sent
        since = max(job.before, job.started)
        self._stats.responded(job.responses, outcome, part.sent - since, output_ns)
        job.before = part.sent
        job.first = job.first or part.sent
        job.responses += 1
        if job.request.trace is not None and part.response is not None:
            responded(job.request.trace, part.response, part.sent)
        if part.final:
            self._end(job, part.sent)

    def _forget(self, job: _Job) -> None:
        del self._jobs[job.stream]
        if not self._jobs:
            self._idle.set()

    def _end(self, job: _Job, sent: int) -> None:
        now = time.perf_counter_ns()
        start = job.started or sent
        phases = Phases(start, start, sent, sent)
        if job.request.trace is not None:
            executed(job.request.trace, job.arrived, phases if job.started else None)
        self._forget(job)
        if job.started:
            self._executed(job.batch, phases)
        if job.failure is not None:
            self._stats.failed(job.arrived, now, job.failure)
        else:
            self._stats.succeeded(job.size, job.arrived, phases, now, job.first)

    def _executed(self, batch: Batch[_Job] | None, phases: Phases) -> None:
        """Count an execution at the end of the last of its requests."""
        if batch is not None and not any(job.stream in self._jobs for job in batch.jobs):
            self._stats.executed(sum([job.size for job in batch.jobs]), phases)

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


_FAILURES = {"cancel": Failure.CANCELED, "fail": Failure.BACKEND}


def _outcome(part: Part, cancelled: bool) -> str:
    if cancelled:
        return "cancel"
    if part.response is None:
        return "empty_response"
    return "success" if part.response.error is None else "fail"


def _left() -> NaiadError:
    return internal("the client has left")


def _run(instance: Instance, batch: Batch[_Job]) -> None:
    """Let an instance begin a request; what it raises becomes the stream's end."""
    (job,) = batch.jobs
    if job.abandoned or not isinstance(instance, StreamingInstance):
        return
    batch.started = time.perf_counter_ns()
    try:
        instance.stream(job.request, job.stream)
        job.answer(Response())
    except NaiadError as error:
        job.answer(Response(error=error))
    except Exception as error:
        logger.exception("model '%s' failed", job.request.model_name)
        job.answer(Response(error=failure(error)))
