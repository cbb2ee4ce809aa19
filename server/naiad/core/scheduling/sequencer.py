"""Which sequences there are, which of them owns which slot, and whose turn it is.

Pure: times are nanoseconds that the caller gives, requests only what is said of them here. Knows
nothing of batches or tensors. Source: Triton's sequence batcher; where it says so, Naiad's own.
"""

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import count
from typing import Any, Generic, Protocol, TypeVar

from naiad_backends.errors import invalid

_SLACK = 64
"""Entries that may be out of use before memory is put in order."""


class Step(Protocol):
    """One request of a sequence.  arrived: when it came.  end: nothing follows it."""

    @property
    def arrived(self) -> int: ...
    @property
    def end(self) -> bool: ...


StepT = TypeVar("StepT", bound=Step)


class Sequence(Generic[StepT]):
    """One sequence from its first request to its last.

    instance, slot: what it owns; slot -1: nothing yet.
    waiting: its requests in order.  running: the one that was handed out and has not ended.
    deadline: when it idles out, or when its time in the backlog is up; None for never.
    memory: what the caller keeps of it from one request to the next.
    """

    __slots__ = (
        "deadline",
        "id",
        "instance",
        "memory",
        "noted",
        "open",
        "running",
        "slot",
        "successor",
        "waiting",
    )

    def __init__(self, id: int | str) -> None:
        self.id = id
        self.instance = -1
        self.slot = -1
        self.open = True  # more requests may come
        self.waiting: deque[StepT] = deque()
        self.running: StepT | None = None
        self.deadline: int | None = None
        self.noted: int | None = None  # its earliest entry among the deadlines
        self.successor: Sequence[StepT] | None = None  # takes over the slot
        self.memory: Any = None

    @property
    def over(self) -> bool:
        """Whether nothing of it is left, nor will come."""
        return not (self.open or self.waiting or self.running is not None)


class Sequencer(Generic[StepT]):
    """Sequences by id, in their slots or in the backlog, which is first in, first out.

    A sequence hands out one request at a time, in the order in which they came. The caller asks for
    what is to be handed out with `take`, after every other call.
    """

    def __init__(self, instances: int, slots: int, idle_ns: int) -> None:
        """slots: of each instance.  idle_ns: so long after its last request has ended a sequence
        is forgotten (in Triton: after that request came)."""
        self._idle_ns = idle_ns
        self._slots = range(slots)
        # The lowest slot of all instances first, so that sequences are spread over them.
        self._free = [(slot, place) for slot in range(slots) for place in range(instances)]
        self._owned: list[dict[int, Sequence[StepT]]] = [{} for _ in range(instances)]
        self._shut: set[int] = set()
        self._open: dict[int | str, Sequence[StepT]] = {}
        self._backlog: OrderedDict[Sequence[StepT], None] = OrderedDict()
        self._due: deque[Sequence[StepT]] = deque()
        self._deadlines: list[tuple[int, int, Sequence[StepT]]] = []
        self._numbers = count()
        self.live = 0
        """Sequences that own a slot or wait for one."""
        self.waiting = 0
        """Requests that were not handed out yet."""

    def __contains__(self, id: int | str) -> bool:
        """Whether a sequence with this id takes requests without START."""
        return id in self._open

    def arrive(
        self, step: StepT, id: int | str, start: bool, timeout_ns: int = 0
    ) -> Sequence[StepT]:
        """Queue a request of the sequence `id`, which is neither 0 nor empty.

        start: it opens the sequence; what of an older one with this id is queued runs before.
        timeout_ns: how long the request may wait in the backlog, 0 for as long as it takes.
        Raises INVALID_ARG if there is no such sequence.
        """
        sequence = self._open.get(id)
        if start:
            sequence = self._begin(id, sequence)
        elif sequence is None:
            raise invalid(
                f"there is no sequence {id!r:.60}: its first request must be a start, and one that"
                " is idle for too long is forgotten",
                field='parameters["sequence_start"]',
                hint="set sequence_start on the first request",
            )
        if step.end:
            self._close(sequence)
        sequence.waiting.append(step)
        self.waiting += 1
        if sequence.slot < 0:
            if timeout_ns:
                deadline = step.arrived + timeout_ns
                self._expect(sequence, min(deadline, sequence.deadline or deadline))
        else:
            sequence.deadline = None
            if sequence.running is None and len(sequence.waiting) == 1:
                self._due.append(sequence)
        return sequence

    def take(self) -> Iterator[tuple[Sequence[StepT], StepT]]:
        """Hand out the next request of every sequence that can go on."""
        while self._due:
            sequence = self._due.popleft()
            if sequence.running is None and sequence.waiting and sequence.slot >= 0:
                sequence.running = sequence.waiting.popleft()
                self.waiting -= 1
                yield sequence, sequence.running

    def done(self, sequence: Sequence[StepT], now: int) -> None:
        """The request that it handed out has ended, well or not."""
        sequence.running = None
        if sequence.waiting:
            self._due.append(sequence)
        elif sequence.open:
            self._expect(sequence, now + self._idle_ns)
        else:
            self._vacate(sequence)

    def cancel(self, sequence: Sequence[StepT]) -> list[StepT]:
        """End a sequence because one of its requests was cancelled. Returns those that were queued:
        they never run. One that was handed out has its `done` as ever."""
        if sequence.over:
            return []
        self._close(sequence)
        return self._drop(sequence)

    def forget(self, id: int | str) -> None:
        """Let requests with this id begin anew; what is queued still runs."""
        sequence = self._open.get(id)
        if sequence is not None:
            self._close(sequence)
            if sequence.over:
                self._vacate(sequence)

    def forget_all(self) -> None:
        """Forget all sequences, because no more requests come."""
        for id in list(self._open):
            self.forget(id)

    def expire(self, now: int) -> list[StepT]:
        """Forget what is idle for too long. Returns the requests of those sequences whose time in
        the backlog is up: they never run."""
        refused: list[StepT] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            at, _, sequence = heapq.heappop(self._deadlines)
            if sequence.noted != at:
                continue
            sequence.noted = None
            if sequence.deadline is None or sequence.over:
                continue
            if sequence.deadline > now:
                self._expect(sequence, sequence.deadline)
                continue
            self._close(sequence)
            refused += self._drop(sequence)
        return refused

    def highest(self, instance: int) -> int:
        """The highest slot of an instance that a sequence owns; -1 for none."""
        return max(self._owned[instance], default=-1)

    def next_deadline(self) -> int | None:
        """When to call `expire` at the latest; None for never. It may find nothing then."""
        return self._deadlines[0][0] if self._deadlines else None

    # -- slots

    def _begin(self, id: int | str, before: Sequence[StepT] | None) -> Sequence[StepT]:
        sequence = self._open[id] = Sequence(id)
        self.live += 1
        if before is not None:
            before.open = False
            before.successor = sequence
            if before.over:
                self._vacate(before)
        else:
            self._seat(sequence)
        return sequence

    def _seat(self, sequence: Sequence[StepT], first: bool = False) -> None:
        """Give it a free slot, or else a place in the backlog, the last or the first one."""
        if self._free:
            self._own(sequence, *heapq.heappop(self._free))
        else:
            self._backlog[sequence] = None
            self._backlog.move_to_end(sequence, last=not first)

    def _own(self, sequence: Sequence[StepT], slot: int, place: int) -> None:
        sequence.slot, sequence.instance = slot, place
        self._owned[place][slot] = sequence
        sequence.deadline = None
        if sequence.waiting:
            self._due.append(sequence)

    def _close(self, sequence: Sequence[StepT]) -> None:
        sequence.open = False
        if self._open.get(sequence.id) is sequence:
            del self._open[sequence.id]

    def _drop(self, sequence: Sequence[StepT]) -> list[StepT]:
        dropped = list(sequence.waiting)
        sequence.waiting.clear()
        self.waiting -= len(dropped)
        if sequence.over:
            self._vacate(sequence)
        return dropped

    def _vacate(self, sequence: Sequence[StepT]) -> None:
        """A sequence is over: its slot, or its place in the backlog, goes to the next one."""
        self.live -= 1
        sequence.deadline = None
        successor = sequence.successor
        while successor is not None and successor.over:
            successor = successor.successor
        if sequence.slot >= 0:
            self._pass_on(sequence, successor)
        elif sequence in self._backlog:
            if successor is None:
                del self._backlog[sequence]
                return
            # Rare, so that it may cost a walk along the backlog.
            others = (successor if one is sequence else one for one in self._backlog)
            self._backlog = OrderedDict.fromkeys(others)

    def _pass_on(self, sequence: Sequence[StepT], heir: Sequence[StepT] | None) -> None:
        slot, place = sequence.slot, sequence.instance
        del self._owned[place][slot]
        if place in self._shut:
            if heir is not None:
                self._seat(heir, first=True)
            return
        if heir is None and self._backlog:
            heir = self._backlog.popitem(last=False)[0]
        if heir is None:
            heapq.heappush(self._free, (slot, place))
        else:
            self._own(heir, slot, place)

    # -- instances that are out of service

    @property
    def closed(self) -> bool:
        """Whether no instance is in service."""
        return len(self._shut) == len(self._owned)

    def shut(self, instance: int) -> list[Sequence[StepT]]:
        """An instance is out of service: nothing gets a slot there. Returns the sequences that it
        has, each of which is to be cancelled or displaced now."""
        self._shut.add(instance)
        self._free = [entry for entry in self._free if entry[1] != instance]
        heapq.heapify(self._free)
        return list(self._owned[instance].values())

    def displace(self, sequence: Sequence[StepT]) -> None:
        """Let a sequence that has a slot, and of which nothing has run, begin somewhere else."""
        if sequence.running is not None:
            sequence.waiting.appendleft(sequence.running)
            sequence.running = None
            self.waiting += 1
        del self._owned[sequence.instance][sequence.slot]
        sequence.slot = sequence.instance = -1
        self._seat(sequence, first=True)

    def reopen(self, instance: int) -> None:
        """An instance is in service again."""
        if instance not in self._shut:
            return
        self._shut.remove(instance)
        for slot in self._slots:
            if slot not in self._owned[instance]:
                heapq.heappush(self._free, (slot, instance))
        while self._free and self._backlog:
            sequence = self._backlog.popitem(last=False)[0]
            self._own(sequence, *heapq.heappop(self._free))

    def homeless(self) -> list[Sequence[StepT]]:
        """The sequences that wait for a slot."""
        return list(self._backlog)

    # -- time

    def _expect(self, sequence: Sequence[StepT], deadline: int) -> None:
        """Have `expire` look at a sequence. One entry that comes early is enough for all later
        deadlines, so that a request does not cost one each."""
        sequence.deadline = deadline
        if sequence.noted is not None and sequence.noted <= deadline:
            return
        sequence.noted = deadline
        if len(self._deadlines) > 2 * self.live + _SLACK:
            self._deadlines = [e for e in self._deadlines if not e[2].over and e[2].noted == e[0]]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (deadline, next(self._numbers), sequence))
