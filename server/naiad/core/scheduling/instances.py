"""The threads of a model's instances, and the queue that feeds them.

Threads give back what they have done in bunches, one wake-up of the loop for all that was finished
meanwhile. Knows nothing of what the work is.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from naiad_backends.api import Instance

T = TypeVar("T")
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
        self._tell_all(old)
        self._workers = [worker for worker in self._workers if worker not in leaving]
        self._add(added)
        return all_ended(leaving)

    async def stop(self) -> None:
        """End the threads; the queue must be empty by now."""
        for worker in self._workers:
            worker.move(None)
        self._tell_all(self._queue)
        await all_ended(self._workers)

    def _tell_all(self, queue: "SimpleQueue[WorkT | None]") -> None:
        """Each thread takes one word, whichever comes first: all must know by now where to go."""
        for _ in self._workers:
            queue.put(None)


async def all_ended(workers: "Iterable[Worker[InstanceT, WorkT]]") -> None:
    """Wait for the ends of all threads."""
    await asyncio.gather(*[worker.ended() for worker in workers])


def exchanged(
    instances: Sequence[InstanceT], added: Sequence[InstanceT], removed: Collection[Instance]
) -> list[InstanceT]:
    """The instances without some, and with others."""
    gone = {id(instance) for instance in removed}
    return [*(instance for instance in instances if id(instance) not in gone), *added]
