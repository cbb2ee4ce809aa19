"""The requests that wait for one model version, in the order in which they are to run.

Pure: times are nanoseconds that the caller gives, requests only what is said of them here. Knows
priority levels, limits and timeouts; what makes a batch is not known here. Source: Triton's
queue policies (`ModelQueuePolicy`).
"""

import heapq
from bisect import insort
from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import count
from typing import Generic, TypeVar

from naiad.repository.scheduling import QueuePolicy
from naiad_backends.errors import Code, NaiadError, QueueFull

_SLACK = 64
"""Entries that may be out of use before memory is put in order."""


class Waiting:
    """One request in a queue, or none any more once it was taken, refused or removed.

    size: its batch elements.  key: requests of equal keys may share a batch.
    arrived: when it came.
    """

    __slots__ = ("_deadline", "_home", "_level", "arrived", "key", "size")

    def __init__(self, size: int, key: Hashable, arrived: int) -> None:
        self.size = size
        self.key = key
        self.arrived = arrived
        self._home: deque[Waiting] | None = None
        self._level: _Level | None = None
        self._deadline: int | None = None

    @property
    def queued(self) -> bool:
        """Whether it waits now."""
        return self._home is not None


ItemT = TypeVar("ItemT", bound=Waiting)


class _Level:
    """The requests of one priority. `delayed` run after `fresh`; `live` counts both."""

    __slots__ = ("delayed", "fresh", "live", "number", "policy")

    def __init__(self, number: int, policy: QueuePolicy) -> None:
        self.number = number
        self.policy = policy
        self.fresh: deque[Waiting] = deque()
        self.delayed: deque[Waiting] = deque()
        self.live = 0

    def __lt__(self, other: "_Level") -> bool:
        return self.number < other.number


class RequestQueue(Generic[ItemT]):
    """Levels in their order, in each the requests in time by arrival, then those that are late.

    What leaves out of turn stays in its deque for a while, without a home: so every step takes
    constant time. `changes` grows whenever the order changes but by a request that comes last.
    """

    def __init__(self, policy: QueuePolicy, policies: Mapping[int, QueuePolicy]) -> None:
        """policies: by level; `policy` is that of all others."""
        self._policy = policy
        self._policies = policies
        self._levels: dict[int, _Level] = {}
        self._order: list[_Level] = []
        self._deadlines: list[tuple[int, int, ItemT]] = []
        self._numbers = count()
        self._waiting = 0
        self._last: deque[Waiting] | None = None
        self.changes = 0

    def __len__(self) -> int:
        """Requests that wait, late ones too."""
        return self._waiting

    def put(self, item: ItemT, level: int = 0, timeout_ns: int = 0) -> None:
        """Let a request wait, at most so long as it asks for, where its level allows that.

        Raises QueueFull if its level takes no more.
        """
        place = self._levels.get(level) or self._new_level(level)
        policy = place.policy
        if policy.max_size and place.live >= policy.max_size:
            raise _full(place)
        timeout = policy.timeout(timeout_ns)
        if timeout:
            self._note_deadline(item, item.arrived + timeout)
        if place.fresh is not self._last or place.delayed or place is not self._order[-1]:
            self.changes += 1
            self._last = place.fresh
        place.fresh.append(item)
        item._home, item._level = place.fresh, place
        place.live += 1
        self._waiting += 1

    def remove(self, item: ItemT) -> bool:
        """Forget a request that nobody waits for any more; False if it was not queued."""
        if item._home is None:
            return False
        self._leave(item)
        self.changes += 1
        return True

    def expire(self, now: int) -> list[ItemT]:
        """Act on the requests whose time is up: those that are to be refused leave, and are
        returned; the others are late from now on."""
        refused: list[ItemT] = []
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= now:
            at, _, item = heapq.heappop(deadlines)
            level = item._level
            if item._home is None or level is None or item._deadline != at:
                continue
            item._deadline = None
            self.changes += 1
            if level.policy.delays:
                level.delayed.append(item)
                item._home = level.delayed
            else:
                self._leave(item)
                refused.append(item)
        return refused

    def next_deadline(self) -> int | None:
        """When `expire` will have something to do; None for never."""
        deadlines = self._deadlines
        while deadlines and deadlines[0][2]._home is None:
            heapq.heappop(deadlines)
        return deadlines[0][0] if deadlines else None

    def __iter__(self) -> Iterator[ItemT]:
        """All that wait, in order."""
        for level in self._order:
            for place in (level.fresh, level.delayed):
                for item in place:
                    if item._home is place:
                        yield item  # type: ignore[misc]  # only items of this type were put

    def newest(self, number: int) -> list[ItemT]:
        """The `number` requests that came last. `changes` must not have grown meanwhile."""
        if not number or self._last is None:
            return []
        last = self._last
        return [last[at] for at in range(-number, 0)]  # type: ignore[misc]  # as above

    def take(self, number: int) -> list[ItemT]:
        """Remove and return the first `number` requests."""
        taken: list[ItemT] = []
        for level in self._order:
            for place in (level.fresh, level.delayed):
                while place and len(taken) < number:
                    item = place.popleft()
                    if item._home is place:
                        item._home = None
                        level.live -= 1
                        taken.append(item)  # type: ignore[arg-type]  # as above
        self._waiting -= len(taken)
        self.changes += 1
        return taken

    def restore(self, items: Sequence[ItemT]) -> None:
        """Put back what was taken, as it was: in front of all others of its level. The time that
        each may wait goes on."""
        for item in reversed(items):
            level = item._level
            if level is not None:
                level.fresh.appendleft(item)
                item._home = level.fresh
                level.live += 1
                self._waiting += 1
                if item._deadline is not None:
                    self._note_deadline(item, item._deadline)
        self.changes += 1

    def _leave(self, item: ItemT) -> None:
        level = item._level
        item._home = None
        self._waiting -= 1
        if level is not None:
            level.live -= 1
            if len(level.fresh) + len(level.delayed) > 2 * level.live + _SLACK:
                self._tidy(level)

    def _tidy(self, level: _Level) -> None:
        """Give back the places of requests that have left, or that are late now."""
        for place in (level.fresh, level.delayed):
            kept = [item for item in place if item._home is place]
            place.clear()
            place.extend(kept)

    def _note_deadline(self, item: ItemT, deadline: int) -> None:
        item._deadline = deadline
        if len(self._deadlines) > 2 * self._waiting + _SLACK:
            self._deadlines = [entry for entry in self._deadlines if entry[2].queued]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (deadline, next(self._numbers), item))

    def _new_level(self, number: int) -> _Level:
        level = _Level(number, self._policies.get(number, self._policy))
        self._levels[number] = level
        insort(self._order, level)
        return level


class TimedOut(NaiadError):
    """UNAVAILABLE: a request has waited for as long as it may."""

    def __init__(self, waited_ns: int, retry_after_s: int) -> None:
        super().__init__(
            Code.UNAVAILABLE,
            f"the request timed out after {waited_ns // 1000} us in the queue",
            hint="come back later, or allow more time",
            retry_after_s=retry_after_s,
        )


def _full(level: _Level) -> QueueFull:
    which = f" of priority level {level.number}" if level.number else ""
    return QueueFull(f"the queue{which} is full: {level.live} requests wait already")
