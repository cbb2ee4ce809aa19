"""Where the instances of one model version stand at the rate limiter. Lives on the event loop."""

import asyncio
from collections.abc import Callable, Sequence

from naiad.core.scheduling.limiter import Limiter
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

    def add(self, plans: Sequence[InstancePlan]) -> None:
        """More instances, at the places behind all others. Raises as `Limiter.admit`."""
        self._seats.update(enumerate(self._limiter.admit(plans), self._next))
        self._next += len(plans)

    def leave(self, place: int) -> None:
        """The instance takes no more work; what it runs, it still releases."""
        self._limiter.leave((self._seats[place],))

    def close(self) -> None:
        """All instances leave."""
        self._limiter.leave(self._seats.values())
