"""The scheduler of decoupled models: each request alone, with any number of responses.

An instance is free again when its `stream` returns; a request has ended with its final word, which
may come later. Both are counted, and a version drains only when every request has ended.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Collection, Coroutine, Iterable, Sequence
from dataclasses import dataclass

from naiad.core.responses import Part, ResponseStream
from naiad.core.scheduling.crew import Line
from naiad.core.scheduling.gate import Gate
from naiad.core.scheduling.instances import SharedWorkers, all_ended, exchanged
from naiad.core.stats import Failure, ModelStatistics, Phases
from naiad.core.trace import executed, responded
from naiad_backends.api import Instance, Request, Response, StreamingInstance
from naiad_backends.errors import NaiadError, internal, unsupported

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Job:
    """One request.

    place: of its instance, for a crew.
    enqueued, started, first, before: when it came, began, responded first and last, by
        `time.perf_counter_ns()`; 0 for not yet. `before` begins with the start.
    """

    request: Request
    batch_size: int
    enqueued: int
    stream: ResponseStream
    started: int = 0
    first: int = 0
    before: int = 0
    failure: Failure | None = None
    place: int = 0
    responses: int = 0


class Decoupled:
    """Runs a model version's streaming instances, each on a thread or, if quick, on the loop."""

    def __init__(
        self,
        name: str,
        loaded: Sequence[Instance],
        stats: ModelStatistics,
        gate: Gate | None = None,
    ) -> None:
        """loaded: all of them streaming instances.  gate: of the rate limiter, if there is one."""
        instances = _streaming(loaded)
        self._stats = stats
        self._jobs: dict[ResponseStream, _Job] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._inline: StreamingInstance | None = None
        self._quick = instances
        self._workers: (
            SharedWorkers[StreamingInstance, _Job] | Line[StreamingInstance, _Job] | None
        ) = None
        if gate is not None:
            self._workers = Line(name, instances, _run, lambda job: None, gate)
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
        return 0 if self._workers is None else self._workers.waiting

    async def submit(self, request: Request, batch_size: int) -> Response:
        """Raises UNSUPPORTED: the number of responses is not known to be one."""
        raise unsupported(
            f"model '{request.model_name}' is decoupled: a request may have 0 to many responses",
            hint="use ModelStreamInfer or POST .../generate_stream",
        )

    async def stream(self, request: Request, batch_size: int) -> AsyncGenerator[Part, None]:
        """The responses as they come, the last part final. Closing the iterator cancels."""
        stream = self._open(request, batch_size)
        try:
            async for part in stream.parts():
                yield part
        finally:
            stream.cancel()

    def _open(self, request: Request, batch_size: int) -> ResponseStream:
        stream = ResponseStream(self._responded)
        now = time.perf_counter_ns()
        job = _Job(request, batch_size, now, stream, before=now)
        self._jobs[stream] = job
        self._idle.clear()
        if self._workers is not None:
            self._workers.submit(job)
        elif self._inline is not None:
            _run(self._inline, job)
        return stream

    def _responded(self, stream: ResponseStream, part: Part) -> None:
        job = self._jobs[stream]
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

    def _end(self, job: _Job, sent: int) -> None:
        del self._jobs[job.stream]
        now = time.perf_counter_ns()
        start = job.started or sent
        phases = Phases(start, start, sent, sent)
        if job.request.trace is not None:
            executed(job.request.trace, job.enqueued, phases if job.started else None)
        if job.started:
            self._stats.executed(job.batch_size, phases)
        if job.failure is not None:
            self._stats.failed(job.enqueued, now, job.failure)
        else:
            self._stats.succeeded(job.batch_size, job.enqueued, phases, now, job.first)
        if not self._jobs:
            self._idle.set()

    def hurry(self) -> None:
        """Nothing waits here but for an instance."""

    def resize(
        self, added: Sequence[Instance], removed: Collection[Instance]
    ) -> Coroutine[None, None, None]:
        """Take up instances, and part with others; see `Scheduler`."""
        fresh = _streaming(added)
        if self._workers is not None:
            return self._workers.resize(fresh, _streaming(removed))
        self._quick = exchanged(self._quick, fresh, removed)
        self._inline = self._quick[0]
        return all_ended(())

    async def drained(self) -> None:
        """Wait until `in_flight` is 0. No new request may come meanwhile."""
        await self._idle.wait()

    async def stop(self) -> None:
        """End the threads, after `drained`."""
        if self._workers is not None:
            await self._workers.stop()


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
