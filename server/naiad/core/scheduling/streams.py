"""The requests of a decoupled model from the first to the final word: their responses and figures.

A request may have its final word long after an instance has run it, or before that is over, and
may run several times. Knows nothing of when it runs.
"""

import time
from collections.abc import Callable
from typing import Any

from naiad.core.responses import Part, ResponseStream
from naiad.core.scheduling.batch import Batch, Job, not_iterative
from naiad.core.stats import Failure, ModelStatistics, Phases
from naiad.core.trace import executed, responded
from naiad_backends.api import Request, Responder
from naiad_backends.errors import NaiadError, internal, unsupported


class _Record:
    """What is known of one request.

    batch: what it ran in last.  started: when an instance first came to it, by
        `time.perf_counter_ns()`; 0 for not yet.
    first, before: when it responded first and last. `first` is 0 for not yet, `before` the arrival.
    refused: it is not the model that has the final word.
    """

    __slots__ = ("_began", "batch", "before", "failure", "first", "job", "refused", "responses")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.batch: Batch[Any] | None = None
        self.first = 0
        self.before = job.arrived
        self.failure: Failure | None = None
        self.refused = False
        self.responses = 0
        self._began = 0

    @property
    def started(self) -> int:
        if not self._began and self.batch is not None:
            self._began = self.batch.started
        return self._began


class Streams:
    """The open requests of a model version."""

    def __init__(self, stats: ModelStatistics, ended: Callable[[], None]) -> None:
        """ended: called at each end of a request."""
        self._stats = stats
        self._ended = ended
        self._records: dict[Responder, _Record] = {}

    def __len__(self) -> int:
        """Requests that have not had their final word."""
        return len(self._records)

    def __contains__(self, job: Job) -> bool:
        return job.responder in self._records

    def open(self, job: Job) -> ResponseStream:
        """Begin a request."""
        stream = ResponseStream(self._responded)
        job.responder = stream
        self._records[stream] = _Record(job)
        return stream

    def forget(self, job: Job) -> None:
        """It was not accepted after all."""
        if job.responder is not None:
            del self._records[job.responder]
        self._ended()

    def running(self, batch: Batch[Any]) -> None:
        """They run together next."""
        for job in batch.jobs:
            record = None if job.responder is None else self._records.get(job.responder)
            if record is not None:
                self._left(record)
                record.batch = batch
                batch.open += 1

    def finish(self, job: Job) -> None:
        """The instance is free of it, which need not be its end: more responses may come."""
        response = job.response
        if response is None:
            # It was left out.
            self.fail(job, internal("the client has left"))
        elif response.error is not None:
            self.fail(job, response.error)
        elif response.reschedule:
            self.fail(job, not_iterative())

    def fail(self, job: Job, error: NaiadError) -> None:
        """End a request with the model's error, if it has not ended."""
        if isinstance(job.responder, ResponseStream):
            job.responder.fail(error)

    def refuse(self, job: Job, error: NaiadError, reason: Failure) -> None:
        """End a request that the model will not run."""
        record = None if job.responder is None else self._records.get(job.responder)
        if record is not None:
            record.refused, record.failure = True, reason
        self.fail(job, error)

    def _responded(self, stream: ResponseStream, part: Part) -> None:
        record = self._records[stream]
        if record.refused:
            self._end(stream, record, part.sent)
            return
        outcome = _outcome(part, stream.cancelled)
        record.failure = _FAILURES.get(outcome, record.failure)
        output_ns = time.perf_counter_ns() - part.sent
        since = max(record.before, record.started)
        self._stats.responded(record.responses, outcome, part.sent - since, output_ns)
        record.before = part.sent
        record.first = record.first or part.sent
        record.responses += 1
        trace = record.job.request.trace
        if trace is not None and part.response is not None:
            responded(trace, part.response, part.sent)
        if part.final:
            self._end(stream, record, part.sent)

    def _end(self, stream: ResponseStream, record: _Record, sent: int) -> None:
        now = time.perf_counter_ns()
        job, start = record.job, record.started or sent
        phases = Phases(start, start, sent, sent)
        if job.request.trace is not None:
            executed(job.request.trace, job.arrived, phases if record.started else None)
        self._left(record, sent)
        if record.failure is not None:
            self._stats.failed(job.arrived, now, record.failure)
        else:
            self._stats.succeeded(job.size, job.arrived, phases, now, record.first)
        del self._records[stream]
        self._ended()

    def _left(self, record: _Record, sent: int = 0) -> None:
        """A request has ended with a word that was sent then, or runs again. With the last one of
        a batch that has its execution ended."""
        batch = record.batch
        if batch is None:
            return
        batch.open -= 1
        start = batch.started
        if start and not batch.open:
            end = sent or (batch.phases.end if batch.phases is not None else start)
            size = sum([job.size for job in batch.jobs])
            self._stats.executed(size, Phases(start, start, end, end))


_FAILURES = {"cancel": Failure.CANCELED, "fail": Failure.BACKEND}


def _outcome(part: Part, cancelled: bool) -> str:
    if cancelled:
        return "cancel"
    if part.response is None:
        return "empty_response"
    return "success" if part.response.error is None else "fail"


def not_single(request: Request) -> NaiadError:
    """The error of a call that takes exactly one response."""
    return unsupported(
        f"model '{request.model_name}' is decoupled: a request may have 0 to many responses",
        hint="use ModelStreamInfer or POST .../generate_stream",
    )
