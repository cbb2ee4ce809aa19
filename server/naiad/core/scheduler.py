"""When and where a request runs. The contract, and the direct scheduler: each request alone.

A scheduler lives on the event loop and belongs to one loaded model version. It answers every
request that it accepted, and counts each of them in the version's statistics.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from naiad.core.instance import InstanceThreads, Job, run
from naiad.core.responses import Part
from naiad.core.stats import Failure, ModelStatistics
from naiad_backends.api import Instance, Request, Response
from naiad_backends.errors import internal


class Scheduler(Protocol):
    """What a model version needs of its scheduler."""

    @property
    def in_flight(self) -> int:
        """Requests that were accepted and have not ended, in the queue or on an instance."""

    @property
    def pending(self) -> int:
        """Requests in the queue, which no instance has taken yet."""

    async def submit(self, request: Request, batch_size: int) -> Response:
        """Run a request that fits the model. Cancelling the call cancels the request; while it is
        queued it then never runs."""

    def stream(self, request: Request, batch_size: int) -> AsyncGenerator[Part, None]:
        """Run a request that fits the model; its responses as they come, the last part final.
        Closing the iterator cancels the request."""

    async def drained(self) -> None:
        """Wait until `in_flight` is 0. No new request may come meanwhile."""

    async def stop(self) -> None:
        """End the threads, after `drained`."""


class Direct:
    """Each request runs alone on whichever instance is free, in order of arrival."""

    def __init__(self, name: str, instances: Sequence[Instance], stats: ModelStatistics) -> None:
        self.in_flight = 0
        self._stats = stats
        self._idle = asyncio.Event()
        self._idle.set()
        self._inline: Instance | None = None
        self._threads: InstanceThreads[Instance, Job] | None = None
        if any(instance.blocking for instance in instances):
            self._threads = InstanceThreads(name, instances, run, self._finished)
        else:
            self._inline = instances[0]

    @property
    def pending(self) -> int:
        return 0 if self._threads is None else self._threads.waiting

    async def submit(self, request: Request, batch_size: int) -> Response:
        job = Job(request, batch_size)
        if self._inline is not None:
            run(self._inline, job)
            self._count(job)
        elif self._threads is not None:
            job.future = asyncio.get_running_loop().create_future()
            self.in_flight += 1
            self._idle.clear()
            self._threads.submit(job)
            return await job.future
        if job.response is None:
            raise internal("the request ended without a response")
        return job.response

    async def stream(self, request: Request, batch_size: int) -> AsyncGenerator[Part, None]:
        yield Part(await self.submit(request, batch_size), True)

    def _finished(self, job: Job) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()
        self._count(job)
        if job.future is not None and not job.future.done() and job.response is not None:
            job.future.set_result(job.response)

    def _count(self, job: Job) -> None:
        now = time.perf_counter_ns()
        if job.phases is not None:
            self._stats.executed(job.batch_size, job.phases)
        cancelled = job.future is not None and job.future.cancelled()
        if cancelled:
            self._stats.failed(job.enqueued, now, Failure.CANCELED)
        elif job.phases is None or job.response is None or job.response.error:
            self._stats.failed(job.enqueued, now, Failure.BACKEND)
        else:
            self._stats.succeeded(job.batch_size, job.enqueued, job.phases, now)

    async def drained(self) -> None:
        await self._idle.wait()

    async def stop(self) -> None:
        if self._threads is not None:
            await self._threads.stop()
