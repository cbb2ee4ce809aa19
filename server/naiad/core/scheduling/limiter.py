"""The rate limiter: which instance runs next when executions take tokens out of common pools.

Pure: it knows neither clock nor threads nor models. Source: Triton's rate limiter, in two points
more patient. An instance that was idle does not catch up, so that one that is always busy is not
held up by newcomers. And an instance that waits for tokens stands in the way only of those behind
it that want tokens of the same pools.
"""

from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count

from naiad.repository.instances import InstancePlan, Resource
from naiad_backends.errors import NaiadError, invalid

Pool = tuple[str, int | None]
"""A resource and its device; None is the machine."""

OPTION = "--rate-limit-resource"


class Seat:
    """One instance at the limiter.

    needs: tokens that an execution takes, by pool.
    turn: grows by the priority with each execution; the least one is the next.
    holds: whether it has its tokens now.
    """

    __slots__ = ("_leaving", "_number", "_start", "holds", "needs", "priority", "turn")

    def __init__(self, needs: Mapping[Pool, int], priority: int) -> None:
        self.needs = needs
        self.priority = priority
        self.turn = 0
        self.holds = False
        self._number = 0
        self._start: Callable[[], bool] | None = None
        self._leaving = False

    @property
    def staged(self) -> bool:
        """Whether it has asked, and waits."""
        return self._start is not None

    def __lt__(self, other: "Seat") -> bool:
        return (self.turn, self._number) < (other.turn, other._number)


class Limiter:
    """The pools of one server, and the instances that share them."""

    def __init__(self, sizes: Mapping[Pool, int]) -> None:
        """sizes: of pools. One without a device is for all devices that have none of their own,
        and for the machine. A pool without a size is as large as any instance needs."""
        self._given = sizes
        self._sizes: Counter[Pool] = Counter()
        self._used: Counter[Pool] = Counter()
        self._seats: set[Seat] = set()
        self._staged: list[Seat] = []
        self._numbers = count()
        self._clocks: Counter[Pool] = Counter()  # the turn that a pool has come to
        self._granting = False

    def admit(self, plans: Sequence[InstancePlan]) -> list[Seat]:
        """Seats for instances, in their order.

        Raises INVALID_ARG, naming the field, for one that needs more than there is of a pool, and
        for a resource that is the machine's for one instance and a device's for another.
        """
        for plan in plans:
            for resource in plan.resources:
                self._check(resource, plan.placement.device)
        seats = [
            Seat({_pool(r, plan.placement.device): r.count for r in plan.resources}, plan.priority)
            for plan in plans
        ]
        self._seats.update(seats)
        self._measure()
        # A pool may be larger now.
        self.grant()
        return seats

    def _check(self, resource: Resource, device: int) -> None:
        name = resource.name
        pool = _pool(resource, device)
        taken = {other for seat in self._seats for other in seat.needs if other[0] == name}
        if any((other[1] is None) != resource.everywhere for other in taken):
            one, other_one = ("global", "not") if resource.everywhere else ("not global", "so")
            raise invalid(
                f"'{name}' is {one} here, but {other_one} for another model",
                field=f"{resource.path}.global",
                hint="make them equal, or rename one",
            )
        size = self._size(pool)
        if size is not None and resource.count > size:
            raise invalid(
                f"{resource.count} of '{name}' are needed, but {OPTION} gives {size}",
                field=f"{resource.path}.count",
            )

    def _size(self, pool: Pool) -> int | None:
        """The size that was given; None for none. A device means nothing to the machine's pool."""
        name, device = pool
        own = self._given.get(pool, self._given.get((name, None)))
        if own is None and device is None:
            return max(
                (size for (one, _), size in self._given.items() if one == name), default=None
            )
        return own

    def _measure(self) -> None:
        sizes: Counter[Pool] = Counter()
        for seat in self._seats:
            for pool, number in seat.needs.items():
                given = self._size(pool)
                sizes[pool] = max(sizes[pool], number) if given is None else given
        self._sizes = sizes
        self._clocks = Counter({pool: self._clocks[pool] for pool in sizes})

    def leave(self, seats: Iterable[Seat]) -> None:
        """These instances ask no more; one that holds tokens leaves when it has released them."""
        for seat in seats:
            if seat.staged:
                self._staged.remove(seat)
                seat._start = None
            seat._leaving = seat.holds
            if not seat.holds:
                self._seats.discard(seat)
        self._measure()
        self.grant()

    def ask(self, seat: Seat, start: Callable[[], bool]) -> None:
        """Call `start` when the instance has its tokens, maybe at once. If that returns False there
        is nothing to run after all, and the tokens are given back."""
        seat.turn = max([seat.turn, *[self._clocks[pool] for pool in seat.needs]])
        seat._number = next(self._numbers)
        seat._start = start
        insort(self._staged, seat)
        self.grant()

    def release(self, seat: Seat) -> None:
        """Give the tokens of an execution back. Nobody gets them before `grant`, so that whoever
        has more to run can ask before and have a place in the order."""
        seat.holds = False
        self._used.subtract(seat.needs)
        if seat._leaving:
            self.leave((seat,))

    def grant(self) -> None:
        """Let all run that can."""
        if self._granting:
            # What runs has asked or released; the loop below looks again.
            return
        self._granting = True
        try:
            while (seat := self._next()) is not None:
                self._begin(seat)
        finally:
            self._granting = False

    def _next(self) -> Seat | None:
        """The first in the order that can run and overtakes nobody who wants of the same pools."""
        wanted: set[Pool] = set()
        for seat in self._staged:
            if wanted.isdisjoint(seat.needs) and self._fits(seat):
                return seat
            wanted.update(seat.needs)
        return None

    def _fits(self, seat: Seat) -> bool:
        used, sizes = self._used, self._sizes
        return all(used[pool] + number <= sizes[pool] for pool, number in seat.needs.items())

    def _begin(self, seat: Seat) -> None:
        start = seat._start
        self._staged.remove(seat)
        seat._start = None
        seat.holds = True
        self._used.update(seat.needs)
        before = seat.turn
        seat.turn += seat.priority
        if start is not None and start():
            for pool in seat.needs:
                self._clocks[pool] = max(self._clocks[pool], before)
        else:
            seat.turn = before
            self.release(seat)


def _pool(resource: Resource, device: int) -> Pool:
    return resource.name, None if resource.everywhere else device


def pool_sizes(entries: Sequence[str]) -> dict[Pool, int]:
    """`--rate-limit-resource` entries of the form <name>:<count>[:<device>] as pool -> size.

    Raises INVALID_ARG for one of another form, or two for the same pool.
    """
    sizes: dict[Pool, int] = {}
    for entry in entries:
        name, _, rest = entry.partition(":")
        number, colon, device = rest.partition(":")
        if not (name and _is_number(number) and int(number) and (_is_number(device) or not colon)):
            raise _refusal(entry, "is not of the form <name>:<count> or <name>:<count>:<device>")
        pool = name, int(device) if colon else None
        if pool in sizes:
            raise _refusal(entry, "gives a pool a second size")
        sizes[pool] = int(number)
    return sizes


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _refusal(entry: str, text: str) -> NaiadError:
    return invalid(f"'{entry[:60]}' {text}", field=OPTION)
