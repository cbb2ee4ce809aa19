"""The queue of decoupled models with `dynamic_batching` or a rate limiter: who waits under which
policy for an instance, on which each request then runs alone. Knows nothing of responses."""

import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Generic, TypeVar

from naiad.core.scheduling.crew import Crew
from naiad.core.scheduling.gate import Gate
from naiad.core.scheduling.instances import InstanceT
from naiad.core.scheduling.queue import RequestQueue, Waiting
from naiad.core.scheduling.timer import Alarm
from naiad.repository.scheduling import DynamicBatching
from naiad_backends.api import Request


class Placed(Waiting):
    """A request that waits.  place: of its instance, once it has one."""

    __slots__ = ("place", "request")

    def __init__(self, request: Request, size: int, arrived: int) -> None:
        super().__init__(size, None, arrived)
        self.request = request
        self.place = 0


PlacedT = TypeVar("PlacedT", bound=Placed)


class PolicedLine(Generic[InstanceT, PlacedT]):
    """Priorities, limits and timeouts in front of a crew."""

    def __init__(
        self,
        name: str,
        instances: Sequence[InstanceT],
        work: Callable[[InstanceT, PlacedT], None],
        late: Callable[[PlacedT], None],
        batching: DynamicBatching,
        gate: Gate | None,
    ) -> None:
        """work: as that of `Crew`.  late: called for each request whose time is up."""
        self._batching = batching
        self._late = late
        self._queue: RequestQueue[PlacedT] = RequestQueue(batching.policy, batching.policies)
        self._crew = Crew(name, instances, work, self._finished, gate)
        self._alarm = Alarm(self._dispatch)
        self._dispatching = False

    def submit(self, work: PlacedT) -> None:
        """Queue a request. Raises QueueFull."""
        request = work.request
        level = self._batching.level(request.priority)
        self._queue.put(work, level, request.timeout_us * 1000)
        self._dispatch()

    def remove(self, work: PlacedT) -> bool:
        """Forget a request that nobody waits for; False if it does not wait any more."""
        return self._queue.remove(work)

    @property
    def waiting(self) -> int:
        """Requests that no instance has taken yet."""
        return len(self._queue)

    def _dispatch(self) -> None:
        if self._dispatching:
            return
        self._dispatching = True
        try:
            for work in self._queue.expire(time.perf_counter_ns()):
                self._late(work)
            while self._crew.free and len(self._queue):
                if self._crew.gate is None:
                    self._crew.run(self._queue.take(1)[0])
                else:
                    self._crew.ask(self._first)
            self._alarm.set(self._queue.next_deadline())
        finally:
            self._dispatching = False

    def _first(self) -> PlacedT | None:
        first = self._queue.take(1)
        return first[0] if first else None

    def _finished(self, _: PlacedT) -> None:
        self._dispatch()

    def resize(
        self, added: Sequence[InstanceT], removed: Collection[InstanceT]
    ) -> Coroutine[None, None, None]:
        """As `Crew.resize`."""
        ending = self._crew.resize(added, removed)
        self._dispatch()
        return ending

    async def stop(self) -> None:
        """As `Crew.stop`."""
        await self._crew.stop()
        self._alarm.close()
