"""Where the instances of one model version stand at the rate limiter. Lives on the event loop."""

import asyncio
from collections.abc import Callable, Sequence

from naiad.core.scheduling.limiter import Limiter, Seat
from naiad.repository.instances import InstancePlan


class Gate:
    """A seat for each place of a scheduler: places are counted from 0, in the order of instances,
    and one that has left is not used again."""

    def __init__(self, limiter: Limiter, plans: Sequence[InstancePlan]) -> None:
        """Raises INVALID_ARG as `Limiter.admit`."""
        self._limiter = limiter
        self._seats = dict(enumerate(limiter.admit(plans)))
        self._next = len(plans)
        self._loop = asyncio.get_running_loop()

    def ask(self, place: int, start: Callable[[], bool]) -> None:
        """Call `start` when the instance may run, maybe at once; it returns whether it does run."""
        self._limiter.ask(self._seats[place], start)

    def release(self, place: int) -> None:
        """The instance has run. Those that wait come next, but after what is said in this turn of
        the loop: the instance may have more to do and ask again."""
        self._limiter.release(self._seats[place])
        self._loop.call_soon(self._limiter.grant)

    def admit(self, plans: Sequence[InstancePlan]) -> list[Seat]:
        """Seats for more instances, which `add` gives places. Raises as `Limiter.admit`."""
        return self._limiter.admit(plans)

    def add(self, seats: Sequence[Seat]) -> None:
        """More instances come, at the places behind all others."""
        self._seats.update(enumerate(seats, self._next))
        self._next += len(seats)

    def refuse(self, seats: Sequence[Seat]) -> None:
        """These instances do not come after all."""
        self._limiter.leave(seats)

    def leave(self, place: int) -> None:
        """The instance takes no more work; what it runs, it still releases."""
        self._limiter.leave((self._seats[place],))

    def close(self) -> None:
        """All instances leave."""
        self._limiter.leave(self._seats.values())
