"""What one instance of a sequence model runs next, out of the requests that sequences hand out.

Pure: times are nanoseconds that the caller gives. Knows nothing of ids or tensors. Source: the two
strategies of Triton's sequence batcher.
"""

from collections.abc import Collection, Sequence
from typing import Generic, Protocol

from naiad.core.scheduling.batcher import Batcher
from naiad.core.scheduling.patience import FixedPatience
from naiad.core.scheduling.queue import ItemT, RequestQueue
from naiad.repository.scheduling import QueuePolicy


class Lane(Protocol[ItemT]):
    """The requests that wait for one instance, at most one of each slot."""

    @property
    def wake(self) -> int | None:
        """When to form at the latest, if `form` gave nothing; None if nothing waits."""

    def __len__(self) -> int:
        """Requests that wait."""

    def put(self, item: ItemT, slot: int) -> None:
        """Let the request of a slot wait."""

    def remove(self, item: ItemT, slot: int) -> bool:
        """Forget a request; False if it does not wait any more."""

    def form(self, now: int, highest: int) -> Sequence[ItemT | None]:
        """Take out the requests that are to run now, None for a row without one; nothing if it is
        better to wait.  highest: of the slots that are owned."""

    def hurry(self) -> None:
        """Wait for no more requests from now on."""


class Rows(Generic[ItemT]):
    """Strategy direct: a slot is a row of the batch, so that rows without a request stay empty."""

    def __init__(self, rows: int, utilization: float, delay_ns: int) -> None:
        """utilization, delay_ns: the share of the rows worth sending at once, and how long the
        oldest request may wait for it; both have to be given to have an effect."""
        self._least = rows * utilization if delay_ns else 0.0
        self._delay_ns = delay_ns
        self._rows: dict[int, ItemT] = {}
        self.wake: int | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, item: ItemT, slot: int) -> None:
        self._rows[slot] = item

    def remove(self, item: ItemT, slot: int) -> bool:
        if self._rows.get(slot) is not item:
            return False
        del self._rows[slot]
        return True

    def form(self, now: int, highest: int) -> Sequence[ItemT | None]:
        rows = self._rows
        self.wake = None
        if not rows:
            return []
        # The oldest decides on the shape, so that none waits for ever.
        oldest = min(rows.values(), key=lambda item: item.arrived)
        if len(rows) < self._least and now < oldest.arrived + self._delay_ns:
            self.wake = oldest.arrived + self._delay_ns
            return []
        key = oldest.key
        batch: list[ItemT | None] = []
        for slot in range(highest + 1):
            item = rows.get(slot)
            batch.append(rows.pop(slot) if item is not None and item.key == key else None)
        return batch

    def hurry(self) -> None:
        self._least = 0.0


class Candidates(Generic[ItemT]):
    """Strategy oldest: batches are formed of whatever waits, the oldest first."""

    def __init__(self, preferred: Collection[int], largest: int, delay_ns: int) -> None:
        """preferred, largest, delay_ns: as a dynamic batcher has them."""
        self._queue: RequestQueue[ItemT] = RequestQueue(QueuePolicy(), {})
        self._batcher = Batcher(self._queue, preferred, largest, FixedPatience(delay_ns))

    @property
    def wake(self) -> int | None:
        return self._batcher.wake

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, item: ItemT, slot: int) -> None:
        self._queue.put(item)

    def remove(self, item: ItemT, slot: int) -> bool:
        return self._queue.remove(item)

    def form(self, now: int, highest: int) -> Sequence[ItemT | None]:
        return self._batcher.form(now)

    def hurry(self) -> None:
        self._batcher.hurry()
