"""The instances of one model version, each of which gets its work one by one from the event loop.

An instance gets work when it is free, or, where there is a rate limiter, when its turn has come.
One that does its work elsewhere may be out of service for a while. Knows nothing of what the work
is.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import partial
from typing import Generic

from naiad.core.scheduling.batch import Batch, JobT, begin
from naiad.core.scheduling.gate import Gate
from naiad.core.scheduling.instances import InstanceT, Outbox, Worker, stop_all
from naiad.core.scheduling.remote import READY, all_down
from naiad_backends.api import RemoteInstance
from naiad_backends.errors import NaiadError, QueueFull


class Crew(Generic[InstanceT, JobT]):
    """Instances by place: on a thread each, elsewhere, or, if they are quick, on the loop."""

    def __init__(
        self,
        name: str,
        instances: Sequence[InstanceT],
        carry_out: Callable[[InstanceT, Batch[JobT]], None],
        ended: Callable[[Batch[JobT], bool], None],
        changed: Callable[[], None],
        gate: Gate | None = None,
    ) -> None:
        """carry_out: runs work on an instance that is here; must not raise.
        ended: called on the loop for all work, when its place is free again; with False for work
            that was not begun, because its instance is gone.
        changed: called on the loop when an instance has gone or is back.
        gate: what has to be asked before an instance runs; None for nothing."""
        self.free: list[int] = []
        """The places of instances that take work, have nothing to do and have not asked."""
        self.gate = gate
        self._name = name
        self._carry_out = carry_out
        self._ended = ended
        self._changed = changed
        self._outbox: Outbox[Batch[JobT]] = Outbox(self._done)
        self._instances: dict[int, InstanceT] = {}
        self._workers: dict[int, Worker[InstanceT, Batch[JobT]]] = {}
        self._away: dict[int, RemoteInstance] = {}
        self._asking: set[int] = set()
        self._running: set[int] = set()
        self._parting: dict[int, asyncio.Event] = {}
        self._next = 0
        self._threads = any(instance.blocking for instance in instances)
        self._add(instances)

    def _add(self, instances: Sequence[InstanceT]) -> None:
        for place, instance in enumerate(instances, self._next):
            self._instances[place] = instance
            if isinstance(instance, RemoteInstance):
                self._away[place] = instance
                instance.watch(partial(self._look, place))
            elif self._threads:
                name = f"{self._name}#{place}"
                self._workers[place] = Worker(name, instance, self._carry_out, self._outbox)
            self._release(place)
        self._next += len(instances)

    def _release(self, place: int) -> None:
        """Its instance has nothing to do."""
        self._asking.discard(place)
        self._running.discard(place)
        if place in self._instances and self._ready(place):
            self.free.append(place)

    def _ready(self, place: int) -> bool:
        remote = self._away.get(place)
        return remote is None or remote.state is READY

    def _look(self, place: int) -> None:
        """The state of an instance that is elsewhere has changed."""
        if place in self._instances:
            if place in self.free:
                self.free.remove(place)
            if place not in self._running and place not in self._asking:
                self._release(place)
            self._changed()

    def down(self) -> NaiadError | None:
        """What to answer if no instance will soon take work; None if one will."""
        return all_down(self._instances.values())

    def refusal(self, waiting: int) -> QueueFull | None:
        """What a request hears if instances elsewhere want no more than so many to wait."""
        for instance in self._instances.values():
            if isinstance(instance, RemoteInstance):
                return instance.refusal(waiting // len(self._instances))
        return None

    def run(self, work: Batch[JobT]) -> None:
        """Run work now, on a free instance, of which there must be one. Not with a gate."""
        self._run(self.free.pop(), work)

    def ask(self, choose: Callable[[], Batch[JobT] | None]) -> bool:
        """Let a free instance, of which there must be one, run what `choose` gives when the gate
        lets it, maybe at once. False if it did at once and `choose` gave None. Only with a gate."""
        place = self.free.pop()
        self._asking.add(place)
        in_vain = False

        def start() -> bool:
            nonlocal in_vain
            work = choose() if self._ready(place) else None
            in_vain = work is None
            if work is None:
                self._release(place)
                return False
            self._run(place, work)
            return True

        if self.gate is not None:
            self.gate.ask(place, start)
        return not in_vain

    def _run(self, place: int, work: Batch[JobT]) -> None:
        work.place = place
        self._running.add(place)
        worker = self._workers.get(place)
        if worker is not None:
            worker.inbox.put(work)
        elif place in self._away:
            work.started = time.perf_counter_ns()
            begin(self._away[place], work, self._back)
        else:
            self._carry_out(self._instances[place], work)
            self._done(work)

    def _done(self, work: Batch[JobT]) -> None:
        self._back(work, True)

    def _back(self, work: Batch[JobT], begun: bool) -> None:
        place = work.place
        self._release(place)
        if place in self._parting:
            self._parting.pop(place).set()
        if self.gate is not None:
            self.gate.release(place)
        self._ended(work, begun)

    def resize(
        self, added: Sequence[InstanceT], removed: Collection[InstanceT]
    ) -> Coroutine[None, None, None]:
        """Take up instances, which the gate must know already, and give others no more work. The
        coroutine ends when those have finished what they run."""
        self._add(added)
        gone = {id(instance) for instance in removed}
        ending: list[Worker[InstanceT, Batch[JobT]]] = []
        parting: list[asyncio.Event] = []
        for place in [at for at, instance in self._instances.items() if id(instance) in gone]:
            del self._instances[place]
            if place in self.free:
                self.free.remove(place)
            if self.gate is not None:
                self.gate.leave(place)
            if place in self._workers:
                ending.append(self._workers.pop(place))
            elif place in self._running:
                self._parting[place] = asyncio.Event()
                parting.append(self._parting[place])
        return _all_ended(ending, parting)

    async def stop(self) -> None:
        """End the threads behind the work that they have."""
        await stop_all(self._workers.values())


async def _all_ended(
    workers: Sequence[Worker[InstanceT, Batch[JobT]]], parting: Sequence[asyncio.Event]
) -> None:
    await stop_all(workers)
    for event in parting:
        await event.wait()
