"""The scheduler of models without a batcher: each request alone, in order of arrival."""

import asyncio
from collections.abc import AsyncGenerator, Collection, Coroutine, Sequence

from naiad.core.responses import Part
from naiad.core.scheduling.batch import Batch, Job, run
from naiad.core.scheduling.instances import SharedWorkers, all_ended, exchanged
from naiad.core.scheduling.remote import RemoteWorkers, elsewhere
from naiad.core.stats import ModelStatistics
from naiad_backends.api import Instance, Request, Response
from naiad_backends.errors import internal


class Direct:
    """Runs a request on whichever instance is free."""

    def __init__(self, name: str, instances: Sequence[Instance], stats: ModelStatistics) -> None:
        self.in_flight = 0
        self._stats = stats
        self._idle = asyncio.Event()
        self._idle.set()
        self._inline: Instance | None = None
        self._quick = instances
        self._workers: SharedWorkers[Instance, Batch[Job]] | RemoteWorkers[Job] | None = None
        if elsewhere(instances):
            self._workers = RemoteWorkers(instances, self._finished)
        elif any(instance.blocking for instance in instances):
            self._workers = SharedWorkers(name, instances, run, self._finished)
        else:
            self._inline = instances[0]

    @property
    def pending(self) -> int:
        return 0 if self._workers is None else self._workers.waiting

    async def submit(self, request: Request, batch_size: int) -> Response:
        job = Job(request, batch_size)
        batch = Batch((job,))
        if self._inline is not None:
            run(self._inline, batch)
            self._count(batch)
        elif self._workers is not None:
            job.future = asyncio.get_running_loop().create_future()
            self.in_flight += 1
            self._idle.clear()
            self._workers.submit(batch)
            return await job.future
        if job.response is None:
            raise internal("the request ended without a response")
        return job.response

    async def stream(self, request: Request, batch_size: int) -> AsyncGenerator[Part, None]:
        yield Part(await self.submit(request, batch_size), True)

    def _finished(self, batch: Batch[Job]) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()
        self._count(batch)

    def _count(self, batch: Batch[Job]) -> None:
        batch.count(self._stats)
        for job in batch.jobs:
            job.settle(self._stats)

    def hurry(self) -> None:
        """Nothing waits here but for an instance."""

    def resize(
        self, added: Sequence[Instance], removed: Collection[Instance]
    ) -> Coroutine[None, None, None]:
        if self._workers is not None:
            return self._workers.resize(added, removed)
        self._quick = exchanged(self._quick, added, removed)
        self._inline = self._quick[0]
        return all_ended(())

    async def drained(self) -> None:
        await self._idle.wait()

    async def stop(self) -> None:
        if self._workers is not None:
            await self._workers.stop()
