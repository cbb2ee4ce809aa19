"""The scheduler of decoupled models: each request alone, with any number of responses.

An instance is free again when its `stream` returns; a request has ended with its final word, which
may come later. Both are counted, and a version drains only when every request has ended.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Collection, Coroutine, Iterable, Sequence

from naiad.core.responses import Part, ResponseStream
from naiad.core.scheduling.gate import Gate
from naiad.core.scheduling.instances import SharedWorkers, all_ended, exchanged
from naiad.core.scheduling.policed import Placed, PolicedLine
from naiad.core.scheduling.queue import QueueFull, TimedOut
from naiad.core.stats import Failure, ModelStatistics, Phases
from naiad.core.trace import executed, responded
from naiad.repository.scheduling import DynamicBatching
from naiad_backends.api import Instance, Request, Response, StreamingInstance
from naiad_backends.errors import NaiadError, internal, unsupported

logger = logging.getLogger(__name__)


class _Job(Placed):
    """One request.

    started, first, before: when it began, responded first and last, by `time.perf_counter_ns()`;
        0 for not yet. `before` begins with the arrival.
    """

    __slots__ = ("before", "failure", "first", "responses", "started", "stream")

    def __init__(self, request: Request, size: int, now: int, stream: ResponseStream) -> None:
        super().__init__(request, size, now)
        self.stream = stream
        self.started = 0
        self.first = 0
        self.before = now
        self.failure: Failure | None = None
        self.responses = 0


class Decoupled:
    """Runs a model version's streaming instances, each on a thread or, if quick, on the loop."""

    def __init__(
        self,
        name: str,
        loaded: Sequence[Instance],
        stats: ModelStatistics,
        gate: Gate | None = None,
        batching: DynamicBatching | None = None,
    ) -> None:
        """loaded: all of them streaming instances.  gate: of the rate limiter, if there is one.
        batching: queue policies and priorities, if there are any; requests are not batched."""
        instances = _streaming(loaded)
        self._stats = stats
        self._jobs: dict[ResponseStream, _Job] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._inline: StreamingInstance | None = None
        self._quick = instances
        self._workers: SharedWorkers[StreamingInstance, _Job] | None = None
        self._policed: PolicedLine[StreamingInstance, _Job] | None = None
        if batching is not None or gate is not None:
            policies = batching or DynamicBatching()
            self._policed = PolicedLine(name, instances, _run, self._late, policies, gate)
        elif any(one.blocking for one in instances):
            self._workers = SharedWorkers(name, instances, _run, lambda job: None)
        else:
            self._inline = instances[0]

    @property
    def in_flight(self) -> int:
        """Requests that were accepted and have not had their final word."""
        return len(self._jobs)

    @property
    def pending(self) -> int:
        """Requests in the queue, which no instance has taken yet."""
        waits = self._policed or self._workers
        return 0 if waits is None else waits.waiting

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
            if self._policed is not None and self._policed.remove(job):
                stream.fail(internal("the client has left"))

    def _open(self, request: Request, batch_size: int) -> _Job:
        stream = ResponseStream(self._responded)
        job = _Job(request, batch_size, time.perf_counter_ns(), stream)
        self._jobs[stream] = job
        self._idle.clear()
        if self._policed is not None:
            self._queue(job, self._policed)
        elif self._workers is not None:
            self._workers.submit(job)
        elif self._inline is not None:
            _run(self._inline, job)
        return job

    def _queue(self, job: _Job, policed: PolicedLine[StreamingInstance, _Job]) -> None:
        try:
            policed.submit(job)
        except QueueFull as full:
            self._stats.failed(job.arrived, time.perf_counter_ns(), Failure.REJECTED)
            full.retry_after_s = self._stats.usual_seconds()
            self._forget(job)
            raise

    def _late(self, job: _Job) -> None:
        job.failure = Failure.REJECTED
        waited = time.perf_counter_ns() - job.arrived
        job.stream.fail(TimedOut(waited, self._stats.usual_seconds()))

    def _responded(self, stream: ResponseStream, part: Part) -> None:
        job = self._jobs[stream]
        if job.failure is Failure.REJECTED:
            # It is the queue that responds, not the model.
            self._end(job, part.sent)
            return
        outcome = _outcome(part, stream.cancelled)
        job.failure = _FAILURES.get(outcome, job.failure)
        output_ns = time.perf_counter_ns() - part.sent
        self._stats.responded(job.responses, outcome, part.sent - job.before, output_ns)
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
        if job.started:
            self._stats.executed(job.size, phases)
        if job.failure is not None:
            self._stats.failed(job.arrived, now, job.failure)
        else:
            self._stats.succeeded(job.size, job.arrived, phases, now, job.first)
        self._forget(job)

    def hurry(self) -> None:
        """Nothing waits here but for an instance."""

    def resize(
        self, added: Sequence[Instance], removed: Collection[Instance]
    ) -> Coroutine[None, None, None]:
        """Take up instances, and part with others; see `Scheduler`."""
        fresh = _streaming(added)
        waits = self._policed or self._workers
        if waits is not None:
            return waits.resize(fresh, _streaming(removed))
        self._quick = exchanged(self._quick, fresh, removed)
        self._inline = self._quick[0]
        return all_ended(())

    async def drained(self) -> None:
        """Wait until `in_flight` is 0. No new request may come meanwhile."""
        await self._idle.wait()

    async def stop(self) -> None:
        """End the threads, after `drained`."""
        waits = self._policed or self._workers
        if waits is not None:
            await waits.stop()


def _streaming(instances: Iterable[Instance]) -> list[StreamingInstance]:
    return [one for one in instances if isinstance(one, StreamingInstance)]


_FAILURES = {"cancel": Failure.CANCELED, "fail": Failure.BACKEND}


def _outcome(part: Part, cancelled: bool) -> str:
    if cancelled:
        return "cancel"
    if part.response is None:
        return "empty_response"
    return "success" if part.response.error is None else "fail"


def _run(instance: StreamingInstance, job: _Job) -> None:
    """Let an instance begin a request; what it raises becomes the stream's end."""
    if job.stream.cancelled:
        job.stream.fail(internal("the client has left"))
        return
    job.started = job.before = time.perf_counter_ns()
    try:
        instance.stream(job.request, job.stream)
    except NaiadError as error:
        job.stream.fail(error)
    except Exception as error:
        logger.exception("model '%s' failed", job.request.model_name)
        job.stream.fail(internal(f"the model failed: {type(error).__name__}: {error}"))
