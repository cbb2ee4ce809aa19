"""The instances of one model version that do their work elsewhere, fed from one queue.

The counterpart of `SharedWorkers`, without threads: all of it is on the event loop. An instance is
given as many batches ahead as it wants. Knows nothing of what the requests are.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from functools import partial
from typing import Generic

from naiad.core.scheduling.batch import Batch, JobT, begin
from naiad_backends.api import Instance, InstanceState, RemoteInstance
from naiad_backends.errors import Code, NaiadError

READY, DOWN = InstanceState.READY, InstanceState.DOWN

RETRY_AFTER_S = 5
"""What clients are told to wait for instances that do not come back by themselves: somebody has to
look first."""


def elsewhere(instances: Iterable[Instance]) -> bool:
    """Whether instances do their work elsewhere; those of one model are all of one kind."""
    return any(isinstance(instance, RemoteInstance) for instance in instances)


def all_down(instances: Iterable[Instance]) -> NaiadError | None:
    """What to answer if none of the instances will soon take work; None if one will."""
    troubles: list[str] = []
    for instance in instances:
        if not isinstance(instance, RemoteInstance) or instance.state is not DOWN:
            return None
        troubles.append(instance.trouble())
    reason = next(filter(None, troubles), "") or "no instance of the model is running"
    return NaiadError(Code.UNAVAILABLE, reason, retry_after_s=RETRY_AFTER_S)


class _Place(Generic[JobT]):
    """An instance.  sent: what it was handed and has not ended, in order.
    emptied: set when that is nothing, if it is to leave."""

    __slots__ = ("emptied", "ended", "instance", "sent")

    def __init__(self, instance: RemoteInstance) -> None:
        self.instance = instance
        self.sent: deque[Batch[JobT]] = deque()
        self.ended: Callable[[Batch[JobT], bool], None]
        self.emptied: asyncio.Event | None = None


class RemoteWorkers(Generic[JobT]):
    """Gives each batch, in order of arrival, to the instance that has the fewest."""

    def __init__(
        self, instances: Iterable[Instance], finished: Callable[[Batch[JobT]], None]
    ) -> None:
        """instances: all of them elsewhere.  finished: called for all work."""
        self._finished = finished
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Batch[JobT]] = deque()
        self._places: list[_Place[JobT]] = []
        self._begun = 0
        self._dispatching = False
        self._add(instances)

    def _add(self, instances: Iterable[Instance]) -> None:
        for instance in instances:
            if isinstance(instance, RemoteInstance):
                place: _Place[JobT] = _Place(instance)
                place.ended = partial(self._ended, place)
                self._places.append(place)
                instance.watch(self._dispatch)

    def submit(self, work: Batch[JobT]) -> None:
        """Queue work for the next instance that has room for it. If none will have, or if too much
        waits already, it fails with UNAVAILABLE, maybe before this returns."""
        self._queue.append(work)
        self._dispatch()
        if self._queue:
            self._bound()

    @property
    def waiting(self) -> int:
        """Work that no instance was given yet."""
        return len(self._queue)

    def _dispatch(self) -> None:
        if self._dispatching:
            return
        self._dispatching = True
        queue = self._queue
        try:
            while queue:
                place = self._choose(queue[0])
                if place is None:
                    if not self._begun:
                        self._give_up()
                    return
                work = queue.popleft()
                self._send(place, work)
                if queue and queue[0] is work:
                    # Turned down: the instance has more to tell, and is asked again after that.
                    self._loop.call_soon(self._dispatch)
                    return
        finally:
            self._dispatching = False

    def _choose(self, work: Batch[JobT]) -> _Place[JobT] | None:
        """The instance with the fewest batches of those that want more. A request of a model does
        not wait behind another one that may be the one that waits for it."""
        chosen: _Place[JobT] | None = None
        called = work.jobs[0].request.callers
        for place in self._places:
            number, instance = len(place.sent), place.instance
            if chosen is not None and number >= len(chosen.sent):
                continue
            if instance.state is not READY:
                continue
            if not number:
                return place
            if number < (instance.window_for_calls if called else instance.window):
                chosen = place
        return chosen

    def _send(self, place: _Place[JobT], work: Batch[JobT]) -> None:
        if not place.sent:
            work.started = time.perf_counter_ns()
        place.sent.append(work)
        self._begun += 1
        begin(place.instance, work, place.ended)

    def _ended(self, place: _Place[JobT], work: Batch[JobT], begun: bool) -> None:
        place.sent.remove(work)
        self._begun -= 1
        if place.sent:
            if not place.sent[0].started:
                place.sent[0].started = time.perf_counter_ns()
        elif place.emptied is not None:
            place.emptied.set()
        if begun:
            self._finished(work)
        else:
            self._put_back(work)
        if self._queue:
            self._dispatch()

    def _put_back(self, work: Batch[JobT]) -> None:
        """In front of what has come after it."""
        came = work.jobs[0].arrived
        ahead = 0
        for other in self._queue:
            if other.jobs[0].arrived >= came:
                break
            ahead += 1
        self._queue.insert(ahead, work)

    def _give_up(self) -> None:
        error = all_down([place.instance for place in self._places])
        while error is not None and self._queue:
            self._fail(self._queue.popleft(), error)

    def _bound(self) -> None:
        """Refuse what has come last, if it may not wait behind the others."""
        waiting = (len(self._queue) - 1) // len(self._places)
        error = self._places[0].instance.refusal(waiting)
        if error is not None:
            self._fail(self._queue.pop(), error)

    def _fail(self, work: Batch[JobT], error: NaiadError) -> None:
        work.fail(error)
        self._finished(work)

    def resize(
        self, added: Sequence[Instance], removed: Collection[Instance]
    ) -> Coroutine[None, None, None]:
        """Take up instances, and give others no more work. The coroutine ends when those have
        finished what they were given."""
        gone = {id(instance) for instance in removed}
        leaving = [place for place in self._places if id(place.instance) in gone]
        self._places = [place for place in self._places if id(place.instance) not in gone]
        self._add(added)
        for place in leaving:
            if place.sent:
                place.emptied = asyncio.Event()
        self._dispatch()
        return _all_empty(leaving)

    async def stop(self) -> None:
        """There is no thread to end; the queue must be empty by now."""


async def _all_empty(places: Iterable[_Place[JobT]]) -> None:
    for place in places:
        if place.emptied is not None:
            await place.emptied.wait()
