"""Requests that wait together for the instances of one model version, and run together.

What is decided, and when, is the queue's and the batcher's matter; here are the moments at which
they are asked: a request came, an instance is free, a time has come. Knows nothing of how a request
ends, nor of responses.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Generic, Protocol

from naiad.core.scheduling.batch import Batch, JobT
from naiad.core.scheduling.batcher import Batcher
from naiad.core.scheduling.crew import Crew
from naiad.core.scheduling.gate import Gate
from naiad.core.scheduling.instances import InstanceT
from naiad.core.scheduling.patience import Patience
from naiad.core.scheduling.queue import RequestQueue
from naiad.core.scheduling.remote import elsewhere
from naiad.core.scheduling.timer import Alarm
from naiad.repository.scheduling import DynamicBatching
from naiad_backends.errors import NaiadError


class Owner(Protocol[JobT]):
    """Whoever has to see to the ends of the requests of a line."""

    def formed(self, batch: Batch[JobT]) -> None:
        """It runs next. Jobs of it may be told of again, if its instance does not begin."""

    def finished(self, batch: Batch[JobT]) -> None:
        """It has run."""

    def late(self, job: JobT) -> None:
        """Its time is up; it has left the queue."""

    def lost(self, job: JobT, error: NaiadError) -> None:
        """There is no instance to run it; it has left the queue."""


class Line(Generic[InstanceT, JobT]):
    """Forms a batch whenever an instance is free, so that nothing is fixed before it has to be."""

    def __init__(
        self,
        name: str,
        instances: Sequence[InstanceT],
        carry_out: Callable[[InstanceT, Batch[JobT]], None],
        owner: Owner[JobT],
        batching: DynamicBatching,
        largest: int,
        patience: Patience,
        gate: Gate | None = None,
    ) -> None:
        """carry_out: as that of `Crew`.
        largest: batch elements of one execution; 1 for requests that each run alone.
        gate: of the rate limiter, if there is one."""
        self._owner = owner
        self._batching = batching
        self._queue: RequestQueue[JobT] = RequestQueue(batching.policy, batching.policies)
        self._batcher = Batcher(self._queue, batching.preferred, largest, patience)
        self._patience = patience
        self._alone = largest == 1
        self._elsewhere = elsewhere(instances)
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(self._dispatch)
        self._planned = False
        self._dispatching = False
        self._turned_down = False
        self._crew: Crew[InstanceT, JobT] = Crew(
            name, instances, carry_out, self._ended, self._plan, gate
        )

    def __len__(self) -> int:
        """Requests that no instance has taken yet."""
        return len(self._queue)

    def submit(self, job: JobT) -> None:
        """Queue a request. Raises QueueFull."""
        if self._elsewhere and len(self._queue):
            refusal = self._crew.refusal(len(self._queue))
            if refusal is not None:
                raise refusal
        request = job.request
        level = self._batching.level(request.priority)
        self._queue.put(job, level, request.timeout_us * 1000)
        self._patience.arrived(job.arrived)
        if self._alone:
            self._dispatch()
        else:
            self._plan()

    def remove(self, job: JobT) -> bool:
        """Forget a request that nobody waits for; False if it does not wait any more."""
        return self._queue.remove(job)

    def _plan(self) -> None:
        """Dispatch once the loop has read what else has come in already."""
        if not self._planned:
            self._planned = True
            self._loop.call_soon(self._planned_dispatch)

    def _planned_dispatch(self) -> None:
        self._planned = False
        self._dispatch()

    def _dispatch(self) -> None:
        if self._dispatching:
            return
        self._dispatching = True
        queue, crew = self._queue, self._crew
        now = time.perf_counter_ns()
        for job in queue.expire(now):
            self._owner.late(job)
        wake = None
        self._turned_down = False
        while crew.free and len(queue) and not self._turned_down:
            if not (self._send(now) if crew.gate is None else self._ask(now)):
                wake = self._batcher.wake
                break
        if len(queue) and not crew.free:
            self._give_up()
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
        return self._batcher.ready(now) and self._crew.ask(self._choose)

    def _choose(self) -> Batch[JobT] | None:
        jobs = self._batcher.form(time.perf_counter_ns())
        if not jobs and len(self._queue):
            # Some have left meanwhile, and the others may have to wait for more.
            self._plan()
        return self._batch(jobs) if jobs else None

    def _batch(self, jobs: list[JobT]) -> Batch[JobT]:
        batch = Batch(jobs)
        self._owner.formed(batch)
        return batch

    def _ended(self, batch: Batch[JobT], begun: bool) -> None:
        if not begun:
            self._queue.restore([job for job in batch.jobs if not job.abandoned])
            batch.jobs = [job for job in batch.jobs if job.abandoned]
            self._owner.finished(batch)
            # The instance has more to tell, and is asked again after that.
            self._turned_down = True
            self._plan()
            return
        self._owner.finished(batch)
        if len(self._queue):
            self._dispatch()

    def _give_up(self) -> None:
        """Nothing is free; if nothing will be, nobody needs to wait."""
        error = self._crew.down()
        if error is not None:
            for job in self._queue.take(len(self._queue)):
                self._owner.lost(job, error)

    def hurry(self) -> None:
        """Keep no request waiting for others to join it from now on."""
        self._batcher.hurry()
        self._plan()

    def resize(
        self, added: Sequence[InstanceT], removed: Collection[InstanceT]
    ) -> Coroutine[None, None, None]:
        """As `Crew.resize`."""
        ending = self._crew.resize(added, removed)
        self._plan()
        return ending

    async def stop(self) -> None:
        """As `Crew.stop`."""
        await self._crew.stop()
        self._alarm.close()
