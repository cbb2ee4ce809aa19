"""Which of the waiting requests run together, and whether to send them now or to wait for more.

Pure: a queue and the time in, requests out. Source: Triton's dynamic batcher; how long to wait is
a `Patience`.
"""

from collections.abc import Collection
from typing import Generic

from naiad.core.scheduling.patience import Patience
from naiad.core.scheduling.queue import ItemT, RequestQueue


class Batcher(Generic[ItemT]):
    """Forms one batch at a time from a queue.

    It remembers how far it has looked, so that requests which come one by one while a batch is
    waiting cost the same each.
    """

    def __init__(
        self,
        queue: RequestQueue[ItemT],
        preferred: Collection[int],
        largest: int,
        patience: Patience,
    ) -> None:
        """preferred: sizes worth sending at once; none means `largest`.
        largest: batch elements that may run together; a single request may have more."""
        self._queue = queue
        self._largest = largest
        self._preferred = frozenset(preferred) or frozenset((largest,))
        self._goal = max(self._preferred)
        self._patience = patience
        self._hurried = False
        self.wake: int | None = None
        """When a batch that waits has to be formed at the latest; None if none waits."""
        self._restart()

    def _restart(self) -> None:
        self._seen = self._queue.changes
        self._first: ItemT | None = None
        self._count = 0  # requests collected
        self._size = 0  # their batch elements
        self._best = 0  # requests up to the last preferred size
        self._oldest = 0
        self._full = False

    def hurry(self) -> None:
        """Wait for no more requests from now on."""
        self._hurried = True

    def form(self, now: int) -> list[ItemT]:
        """Take the requests out of the queue that are to run now, at once; none if it is better
        to wait until `wake`, or for another request."""
        self._look()
        number, self.wake = self._decide(now)
        return self._queue.take(number) if number else []

    def ready(self, now: int) -> bool:
        """Whether `form` would give a batch now."""
        self._look()
        number, self.wake = self._decide(now)
        return number > 0

    def _look(self) -> None:
        queue = self._queue
        if self._seen != queue.changes:
            self._restart()
            self._collect(queue)
        elif not self._full:
            self._collect(queue.newest(len(queue) - self._count))

    def _collect(self, items: "RequestQueue[ItemT] | list[ItemT]") -> None:
        for item in items:
            first = self._first
            size = self._size + item.size
            if first is None:
                self._first = item
                self._oldest = item.arrived
            else:
                if size > self._goal and not self._best:
                    self._best = self._count
                if size > self._largest or item.key != first.key:
                    self._full = True
                    return
                self._oldest = min(self._oldest, item.arrived)
            self._size = size
            self._count += 1
            if size in self._preferred:
                self._best = self._count

    def _decide(self, now: int) -> tuple[int, int | None]:
        """How many requests to send, and if none, when to look again."""
        if not self._count:
            return 0, None
        until = now if self._hurried else self._patience.until(self._size, self._oldest, now)
        if self._best and not (self._patience.waits and until <= now):
            return self._best, None
        if self._full or self._size >= self._goal or until <= now:
            return self._count, None
        return 0, until
