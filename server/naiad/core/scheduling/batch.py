"""What runs together on an instance, and what becomes of it.

A batch is one or more requests with a place for their answers. `run` has it done here and now, on
the caller's thread; `begin` by an instance elsewhere, which tells of the end on the event loop.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from naiad.core.scheduling.queue import Waiting
from naiad.core.stats import Failure, ModelStatistics, Phases
from naiad.core.trace import executed
from naiad_backends.api import Execution, Instance, RemoteInstance, Request, Responder, Response
from naiad_backends.errors import NaiadError, internal, invalid

logger = logging.getLogger(__name__)


class Job(Waiting):
    """One request on its way through an instance.

    future: what its caller waits for, or responder: where a decoupled model's responses go.
    response, phases: set once it was executed.
    """

    __slots__ = ("future", "phases", "request", "responder", "response")

    def __init__(self, request: Request, size: int, key: Hashable = None) -> None:
        super().__init__(size, key, time.perf_counter_ns())
        self.request = request
        self.future: asyncio.Future[Response] | None = None
        self.responder: Responder | None = None
        self.response: Response | None = None
        self.phases: Phases | None = None

    @property
    def abandoned(self) -> bool:
        """Whether its caller does not wait any more."""
        if self.responder is not None:
            return self.responder.cancelled
        return self.future is not None and self.future.cancelled()

    def answer(self, response: Response, phases: Phases | None = None) -> None:
        """What its instance, or in its place the server, says of it; from any thread."""
        self.response = response
        self.phases = phases

    def settle(self, stats: ModelStatistics) -> None:
        """It has ended: count it, and tell the caller. On the event loop."""
        now = time.perf_counter_ns()
        if self.response is not None and self.response.reschedule:
            self.response = Response(error=not_iterative())
        if self.request.trace is not None:
            executed(self.request.trace, self.arrived, self.phases, self.response)
        if self.abandoned:
            stats.failed(self.arrived, now, Failure.CANCELED)
        elif self.phases is None or self.response is None or self.response.error:
            stats.failed(self.arrived, now, Failure.BACKEND)
        else:
            stats.succeeded(self.size, self.arrived, self.phases, now)
        if self.future is not None and not self.future.done() and self.response is not None:
            self.future.set_result(self.response)


JobT = TypeVar("JobT", bound=Job)


class Batch(Generic[JobT]):
    """Jobs that run together.

    place: which of the instances it runs on, for its scheduler.
    started: when its instance came to it, by `time.perf_counter_ns()`; 0 for not yet.
    phases: set once it was executed.
    open: how many of its jobs wait for responses of it.
    fixed: the place of each job in the batch means something, so that abandoned ones run as well.
    """

    __slots__ = ("fixed", "jobs", "open", "phases", "place", "started")

    def __init__(self, jobs: Sequence[JobT], place: int = 0, fixed: bool = False) -> None:
        self.jobs = jobs
        self.place = place
        self.fixed = fixed
        self.started = 0
        self.open = 0
        self.phases: Phases | None = None

    def wanted(self) -> Sequence[JobT]:
        """The jobs that are to run."""
        jobs = self.jobs
        if self.fixed or (len(jobs) == 1 and not jobs[0].abandoned):
            return jobs
        return [job for job in jobs if not job.abandoned]

    def answer(self, jobs: Sequence[JobT], outcome: Execution | NaiadError) -> None:
        """Leave what became of the batch in it and in the `jobs` of it that were to run."""
        now = time.perf_counter_ns()
        compute_start = compute_end = 0
        if isinstance(outcome, NaiadError):
            responses = _all(outcome, jobs)
        elif len(outcome.responses) != len(jobs):
            number = len(outcome.responses)
            wrong = internal(f"the backend gave {number} responses to {len(jobs)} requests")
            responses = _all(wrong, jobs)
        else:
            responses = outcome.responses
            compute_start, compute_end = outcome.compute_start_ns, outcome.compute_end_ns
        if start := self.started:
            if compute_start and start > compute_start:
                # An instance elsewhere goes on before the loop hears that it has.
                start = compute_start
            self.phases = Phases(start, compute_start or start, compute_end or now, now)
        phases = self.phases
        for job, response in zip(jobs, responses, strict=True):
            job.answer(response, phases)

    def fail(self, error: NaiadError) -> None:
        """No instance runs it."""
        for job in self.jobs:
            job.answer(Response(error=error))

    def count(self, stats: ModelStatistics) -> int:
        """It has ended: count it as one execution, and return the batch elements that ran."""
        if self.phases is None:
            return 0
        jobs = self.jobs
        if len(jobs) == 1:
            size = jobs[0].size
        else:
            size = sum([job.size for job in jobs if job.phases is not None])
        stats.executed(size, self.phases)
        return size


def _all(error: NaiadError, jobs: Sequence[JobT]) -> Sequence[Response]:
    return [Response(error=error) for _ in jobs]


def run(instance: Instance, batch: Batch[JobT]) -> None:
    """Execute a batch and leave responses and phases in it and its jobs. Never raises: the model's
    faults end up in the responses. Abandoned jobs are left as they are."""
    jobs = batch.wanted()
    if not jobs:
        return
    batch.started = time.perf_counter_ns()
    outcome: Execution | NaiadError
    try:
        outcome = instance.execute([job.request for job in jobs])
    except NaiadError as error:
        outcome = error
    except Exception as error:
        logger.exception("model '%s' failed", jobs[0].request.model_name)
        outcome = failure(error)
    batch.answer(jobs, outcome)


def begin(
    instance: RemoteInstance, batch: Batch[JobT], ended: Callable[[Batch[JobT], bool], None]
) -> None:
    """The same on an instance elsewhere. On the event loop.

    ended: called when all is there, maybe at once; with False if the batch was not begun, and may
        be handed to an instance again.
    """
    jobs = batch.wanted()
    if not jobs:
        batch.started = 0
        ended(batch, True)
        return

    def done(outcome: Execution | NaiadError | None) -> None:
        if outcome is None:
            batch.started = 0
        else:
            batch.answer(jobs, outcome)
        ended(batch, outcome is not None)

    instance.begin([job.request for job in jobs], _responders(jobs), done)


def _responders(jobs: Sequence[JobT]) -> Sequence[Responder]:
    if jobs[0].responder is None:
        return ()
    return [job.responder for job in jobs if job.responder is not None]


def failure(error: Exception) -> NaiadError:
    """What a client hears of a fault in a model."""
    return internal(f"the model failed: {type(error).__name__}: {error}")


def not_iterative() -> NaiadError:
    """The error of a request that is to be run again, and may not."""
    return invalid(
        "the model asked to run the request again, which its configuration does not allow",
        field="sequence_batching.iterative_sequence",
        hint="set iterative_sequence to true",
    )
