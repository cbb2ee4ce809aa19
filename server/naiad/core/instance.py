"""Runs jobs on a model's instances: on the event loop itself, or on one thread an instance.

A job is a request with its place to put the answer. Threads pull from one queue, so a free
instance takes the next job without asking the event loop; answers come back in bunches, one
wake-up of the loop for all that finished meanwhile.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Generic, TypeVar

from naiad.core.stats import Phases
from naiad_backends.api import Execution, Instance, Request, Response
from naiad_backends.errors import NaiadError, internal

logger = logging.getLogger(__name__)


class Job:
    """One request on its way through an instance. `phases` is set once it was executed."""

    __slots__ = ("batch_size", "enqueued", "future", "phases", "request", "response")

    def __init__(self, request: Request, batch_size: int) -> None:
        self.request = request
        self.batch_size = batch_size
        self.enqueued = time.perf_counter_ns()
        self.future: asyncio.Future[Response] | None = None
        self.response: Response | None = None
        self.phases: Phases | None = None


def run(instance: Instance, job: Job) -> None:
    """Execute one job and leave response and phases in it. Never raises: the model's faults end
    up in the response. A cancelled one is left as it is: nobody waits for it."""
    if job.future is not None and job.future.cancelled():
        return
    start = time.perf_counter_ns()
    execution: Execution | None = None
    try:
        execution = instance.execute((job.request,))
        job.response = _only(execution.responses)
    except NaiadError as error:
        job.response = Response(error=error)
    except Exception as error:
        logger.exception("model '%s' failed", job.request.model_name)
        job.response = Response(
            error=internal(f"the model failed: {type(error).__name__}: {error}")
        )
    end = time.perf_counter_ns()
    if execution is None:
        job.phases = Phases(start, start, end, end)
    else:
        job.phases = Phases(
            start, execution.compute_start_ns or start, execution.compute_end_ns or end, end
        )


def _only(responses: Sequence[Response]) -> Response:
    if len(responses) != 1:
        raise internal(f"the backend gave {len(responses)} responses to one request")
    return responses[0]


InstanceT = TypeVar("InstanceT", bound=Instance)
JobT = TypeVar("JobT")


class InstanceThreads(Generic[InstanceT, JobT]):
    """One thread for each blocking instance of a model version, fed from one queue.

    `submit` and `stop` belong to the event loop; `finished` is called there for every job.
    """

    def __init__(
        self,
        name: str,
        instances: Sequence[InstanceT],
        work: Callable[[InstanceT, JobT], None],
        finished: Callable[[JobT], None],
    ) -> None:
        """work: carries out a job on its instance's thread; must not raise."""
        self._queue: SimpleQueue[JobT | None] = SimpleQueue()
        self._done: deque[JobT] = deque()
        self._carry_out = work
        self._waking = False
        self._finished = finished
        self._loop = asyncio.get_running_loop()
        self._ended = [asyncio.Event() for _ in instances]
        for number, (instance, ended) in enumerate(zip(instances, self._ended, strict=True)):
            thread = threading.Thread(
                target=self._work, args=(instance, ended), name=f"{name}#{number}", daemon=True
            )
            thread.start()

    def submit(self, job: JobT) -> None:
        """Queue a job for the next free instance."""
        self._queue.put(job)

    @property
    def waiting(self) -> int:
        """Jobs that no instance has taken yet."""
        return self._queue.qsize()

    async def stop(self) -> None:
        """End the threads; the queue must be empty by now."""
        for _ in self._ended:
            self._queue.put(None)
        for ended in self._ended:
            await ended.wait()

    def _work(self, instance: InstanceT, ended: asyncio.Event) -> None:
        while (job := self._queue.get()) is not None:
            self._carry_out(instance, job)
            self._deliver(job)
            # A job must not live on, with its tensors, until the next one comes.
            del job
        self._loop.call_soon_threadsafe(ended.set)

    def _deliver(self, job: JobT) -> None:
        # The order matters: append, then look at the flag. The loop clears the flag before it
        # empties the deque, so either it still finds this job or the flag is down again.
        self._done.append(job)
        if not self._waking:
            self._waking = True
            self._loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        self._waking = False
        while self._done:
            self._finished(self._done.popleft())
