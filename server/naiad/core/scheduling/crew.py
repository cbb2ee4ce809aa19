"""The instances of one model version, each of which gets its work one by one from the event loop.

An instance gets work when it is free, or, where there is a rate limiter, when its turn has come.
Knows nothing of what the work is.
"""

from collections import deque
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Generic, Protocol, TypeVar

from naiad.core.scheduling.gate import Gate
from naiad.core.scheduling.instances import InstanceT, Outbox, Worker, stop_all


class Placed(Protocol):
    """Work that remembers the place of its instance."""

    place: int


PlacedT = TypeVar("PlacedT", bound=Placed)


class Crew(Generic[InstanceT, PlacedT]):
    """Instances by place, on a thread each or, if they are quick, on the loop itself."""

    def __init__(
        self,
        name: str,
        instances: Sequence[InstanceT],
        carry_out: Callable[[InstanceT, PlacedT], None],
        finished: Callable[[PlacedT], None],
        gate: Gate | None = None,
    ) -> None:
        """carry_out: runs work on an instance; must not raise.
        finished: called on the loop for all work, when its place is free again.
        gate: what has to be asked before an instance runs; None for nothing."""
        self.free: list[int] = []
        """The places of instances that have nothing to do and have not asked."""
        self.gate = gate
        self._name = name
        self._carry_out = carry_out
        self._finished = finished
        self._outbox: Outbox[PlacedT] = Outbox(self._done)
        self._instances: dict[int, InstanceT] = {}
        self._workers: dict[int, Worker[InstanceT, PlacedT]] = {}
        self._next = 0
        self._threads = any(instance.blocking for instance in instances)
        self._add(instances)

    def _add(self, instances: Sequence[InstanceT]) -> None:
        for place, instance in enumerate(instances, self._next):
            self._instances[place] = instance
            self.free.append(place)
            if self._threads:
                name = f"{self._name}#{place}"
                self._workers[place] = Worker(name, instance, self._carry_out, self._outbox)
        self._next += len(instances)

    def run(self, work: PlacedT) -> None:
        """Run work now, on a free instance, of which there must be one. Not with a gate."""
        self._run(self.free.pop(), work)

    def ask(self, choose: Callable[[], PlacedT | None]) -> bool:
        """Let a free instance, of which there must be one, run what `choose` gives when the gate
        lets it, maybe at once. False if it did at once and `choose` gave None. Only with a gate."""
        place = self.free.pop()
        in_vain = False

        def start() -> bool:
            nonlocal in_vain
            work = choose()
            in_vain = work is None
            if work is None:
                self.free.append(place)
                return False
            self._run(place, work)
            return True

        if self.gate is not None:
            self.gate.ask(place, start)
        return not in_vain

    def _run(self, place: int, work: PlacedT) -> None:
        work.place = place
        worker = self._workers.get(place)
        if worker is not None:
            worker.inbox.put(work)
        else:
            self._carry_out(self._instances[place], work)
            self._done(work)

    def _done(self, work: PlacedT) -> None:
        place = work.place
        if place in self._instances:
            self.free.append(place)
        if self.gate is not None:
            self.gate.release(place)
        self._finished(work)

    def resize(
        self, added: Sequence[InstanceT], removed: Collection[InstanceT]
    ) -> Coroutine[None, None, None]:
        """Take up instances, which the gate must know already, and give others no more work. The
        coroutine ends when those have finished what they run."""
        self._add(added)
        gone = {id(instance) for instance in removed}
        ending = []
        for place in [at for at, instance in self._instances.items() if id(instance) in gone]:
            del self._instances[place]
            if place in self.free:
                self.free.remove(place)
            if self.gate is not None:
                self.gate.leave(place)
            if place in self._workers:
                ending.append(self._workers.pop(place))
        return stop_all(ending)

    async def stop(self) -> None:
        """End the threads behind the work that they have."""
        await stop_all(self._workers.values())


class Line(Generic[InstanceT, PlacedT]):
    """Work in the order of its arrival for a crew with a gate; else `SharedWorkers` do better."""

    def __init__(
        self,
        name: str,
        instances: Sequence[InstanceT],
        work: Callable[[InstanceT, PlacedT], None],
        finished: Callable[[PlacedT], None],
        gate: Gate,
    ) -> None:
        """Arguments as those of `SharedWorkers` and `Crew`."""
        self._queue: deque[PlacedT] = deque()
        self._tell = finished
        self._asking = False
        self._crew = Crew(name, instances, work, self._finished, gate)

    def submit(self, work: PlacedT) -> None:
        """Queue work for the next instance that may run."""
        self._queue.append(work)
        self._ask()

    @property
    def waiting(self) -> int:
        """Work that no instance has taken yet."""
        return len(self._queue)

    def _ask(self) -> None:
        if self._asking:
            return
        self._asking = True
        try:
            while self._crew.free and self._queue:
                self._crew.ask(self._first)
        finally:
            self._asking = False

    def _first(self) -> PlacedT | None:
        return self._queue.popleft() if self._queue else None

    def _finished(self, work: PlacedT) -> None:
        self._tell(work)
        self._ask()

    def resize(
        self, added: Sequence[InstanceT], removed: Collection[InstanceT]
    ) -> Coroutine[None, None, None]:
        """As `Crew.resize`."""
        ending = self._crew.resize(added, removed)
        self._ask()
        return ending

    async def stop(self) -> None:
        """As `Crew.stop`."""
        await self._crew.stop()
