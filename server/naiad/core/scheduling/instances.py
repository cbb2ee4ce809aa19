"""Runs batches on a model's instances: on the event loop itself, or on one thread an instance.

A batch is one or more requests with a place for their answers. Threads give their answers back in
bunches, one wake-up of the loop for all that finished meanwhile.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Hashable, Iterable, Sequence
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from naiad.core.scheduling.queue import Waiting
from naiad.core.stats import Failure, ModelStatistics, Phases
from naiad.core.trace import executed
from naiad_backends.api import Execution, Instance, Request, Response
from naiad_backends.errors import NaiadError, internal, invalid

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Job(Waiting):
    """One request on its way through an instance.

    future: what its caller waits for.  response, phases: set once it was executed.
    """

    __slots__ = ("future", "phases", "request", "response")

    def __init__(self, request: Request, size: int, key: Hashable = None) -> None:
        super().__init__(size, key, time.perf_counter_ns())
        self.request = request
        self.future: asyncio.Future[Response] | None = None
        self.response: Response | None = None
        self.phases: Phases | None = None

    @property
    def abandoned(self) -> bool:
        """Whether its caller does not wait any more."""
        return self.future is not None and self.future.cancelled()

    def settle(self, stats: ModelStatistics) -> None:
        """It has ended: count it, and tell the caller. On the event loop."""
        now = time.perf_counter_ns()
        if self.response is not None and self.response.reschedule:
            self.response = Response(error=_not_iterative())
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


class Batch:
    """Jobs that run together.

    place: which of the instances it runs on, for its scheduler.  phases: set once it was executed.
    fixed: the place of each job in the batch means something, so that abandoned ones run as well.
    """

    __slots__ = ("fixed", "jobs", "phases", "place")

    def __init__(self, jobs: Sequence[Job], place: int = 0, fixed: bool = False) -> None:
        self.jobs = jobs
        self.place = place
        self.fixed = fixed
        self.phases: Phases | None = None

    def count(self, stats: ModelStatistics) -> int:
        """It has ended: count it as one execution, and return the batch elements that ran."""
        if self.phases is None:
            return 0
        size = sum([job.size for job in self.jobs if job.phases is not None])
        stats.executed(size, self.phases)
        return size


def run(instance: Instance, batch: Batch) -> None:
    """Execute a batch and leave responses and phases in it and its jobs. Never raises: the model's
    faults end up in the responses. Abandoned jobs are left as they are."""
    jobs = [job for job in batch.jobs if batch.fixed or not job.abandoned]
    if not jobs:
        return
    start = time.perf_counter_ns()
    compute_start = compute_end = 0
    try:
        execution = instance.execute([job.request for job in jobs])
        responses = _one_each(execution, len(jobs))
        compute_start, compute_end = execution.compute_start_ns, execution.compute_end_ns
    except NaiadError as error:
        responses = [Response(error=error) for _ in jobs]
    except Exception as error:
        logger.exception("model '%s' failed", jobs[0].request.model_name)
        reason = internal(f"the model failed: {type(error).__name__}: {error}")
        responses = [Response(error=reason) for _ in jobs]
    end = time.perf_counter_ns()
    phases = Phases(start, compute_start or start, compute_end or end, end)
    batch.phases = phases
    for job, response in zip(jobs, responses, strict=True):
        job.response = response
        job.phases = phases


def _not_iterative() -> NaiadError:
    return invalid(
        "the model asked to run the request again, which its configuration does not allow",
        field="sequence_batching.iterative_sequence",
        hint="set iterative_sequence to true",
    )


def _one_each(execution: Execution, number: int) -> Sequence[Response]:
    responses = execution.responses
    if len(responses) != number:
        raise internal(f"the backend gave {len(responses)} responses to {number} requests")
    return responses


InstanceT = TypeVar("InstanceT", bound=Instance)
WorkT = TypeVar("WorkT")


class Outbox(Generic[T]):
    """What threads have finished, on its way to the event loop."""

    def __init__(self, arrived: Callable[[T], None]) -> None:
        """arrived: called on the loop, once for each."""
        self._loop = asyncio.get_running_loop()
        self._arrived = arrived
        self._items: deque[T] = deque()
        self._waking = False

    def put(self, item: T) -> None:
        """From any thread."""
        # The order matters: append, then look at the flag. The loop clears the flag before it
        # empties the deque, so either it still finds this item or the flag is down again.
        self._items.append(item)
        if not self._waking:
            self._waking = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._waking = False
        while self._items:
            self._arrived(self._items.popleft())


class Worker(Generic[InstanceT, WorkT]):
    """The thread of one instance. Made and stopped on the event loop."""

    def __init__(
        self,
        name: str,
        instance: InstanceT,
        work: Callable[[InstanceT, WorkT], None],
        outbox: Outbox[WorkT],
        inbox: "SimpleQueue[WorkT | None] | None" = None,
    ) -> None:
        """work: carries out what comes in, on the thread; must not raise.
        inbox: where work comes in at first, its own by default; several workers may share one."""
        self.instance = instance
        self.inbox: SimpleQueue[WorkT | None] = SimpleQueue() if inbox is None else inbox
        self._carry_out = work
        self._outbox = outbox
        self._loop = asyncio.get_running_loop()
        self._moves: deque[SimpleQueue[WorkT | None] | None] = deque()
        self._ended = asyncio.Event()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        inbox: SimpleQueue[WorkT | None] | None = self.inbox
        while inbox is not None:
            while (work := inbox.get()) is not None:
                self._carry_out(self.instance, work)
                self._outbox.put(work)
                # Work must not live on, with its tensors, until the next comes.
                del work
            inbox = self._moves.popleft()
        self._loop.call_soon_threadsafe(self._ended.set)

    def move(self, inbox: "SimpleQueue[WorkT | None] | None") -> None:
        """Where to take work from behind the next None that comes in; None ends the thread."""
        self._moves.append(inbox)

    async def stop(self) -> None:
        """End the thread behind the work that it has."""
        self.move(None)
        self.inbox.put(None)
        await self.ended()

    async def ended(self) -> None:
        """Wait for the end of the thread."""
        await self._ended.wait()


async def stop_all(workers: "Iterable[Worker[InstanceT, WorkT]]") -> None:
    """End all threads behind the work that they have."""
    await asyncio.gather(*[worker.stop() for worker in workers])


class SharedWorkers(Generic[InstanceT, WorkT]):
    """One worker for each instance, all fed from one queue: a free one takes the next work without
    asking the event loop."""

    def __init__(
        self,
        name: str,
        instances: Sequence[InstanceT],
        work: Callable[[InstanceT, WorkT], None],
        finished: Callable[[WorkT], None],
    ) -> None:
        """finished: called on the loop for all work."""
        self._name = name
        self._work = work
        self._outbox = Outbox(finished)
        self._queue: SimpleQueue[WorkT | None] = SimpleQueue()
        self._workers: list[Worker[InstanceT, WorkT]] = []
        self._made = 0
        self._add(instances)

    def _add(self, instances: Sequence[InstanceT]) -> None:
        self._workers += [
            Worker(f"{self._name}#{number}", instance, self._work, self._outbox, self._queue)
            for number, instance in enumerate(instances, self._made)
        ]
        self._made += len(instances)

    def submit(self, work: WorkT) -> None:
        """Queue work for the next free instance."""
        self._queue.put(work)

    @property
    def waiting(self) -> int:
        """Work that no instance has taken yet."""
        return self._queue.qsize()

    def resize(
        self, added: Sequence[InstanceT], removed: Collection[InstanceT]
    ) -> Coroutine[None, None, None]:
        """Take up instances, and give others no more work. The coroutine ends when those have
        finished what they run."""
        gone = {id(instance) for instance in removed}
        leaving = [worker for worker in self._workers if id(worker.instance) in gone]
        # Nobody can tell which thread takes the next word out of a common queue. So all leave it:
        # those that stay for a new one, to which what waits has gone before.
        old, self._queue = self._queue, SimpleQueue()
        with contextlib.suppress(Empty):
            while True:
                self._queue.put(old.get_nowait())
        for worker in self._workers:
            worker.move(None if worker in leaving else self._queue)
            old.put(None)
        self._workers = [worker for worker in self._workers if worker not in leaving]
        self._add(added)
        return all_ended(leaving)

    async def stop(self) -> None:
        """End the threads; the queue must be empty by now."""
        # Each thread takes one word to end, whichever comes first.
        for worker in self._workers:
            worker.move(None)
            self._queue.put(None)
        await all_ended(self._workers)


async def all_ended(workers: "Iterable[Worker[InstanceT, WorkT]]") -> None:
    """Wait for the ends of all threads."""
    await asyncio.gather(*[worker.ended() for worker in workers])


def exchanged(
    instances: Sequence[InstanceT], added: Sequence[InstanceT], removed: Collection[Instance]
) -> list[InstanceT]:
    """The instances without some, and with others."""
    gone = {id(instance) for instance in removed}
    return [*(instance for instance in instances if id(instance) not in gone), *added]
