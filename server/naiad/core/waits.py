"""Which instances wait for which, while models call each other, and whether a call would wait for
ever: all that could run it wait themselves, in the end for the call.

Knows no requests, no queues and no models: only who waits for whom.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from naiad_backends.errors import unavailable


@dataclass(frozen=True, slots=True, eq=False)
class _Wait:
    """A call: the last of the callers has made it, the others wait for that one."""

    callers: Sequence[Hashable]
    targets: Sequence[Hashable]

    def stuck(self, instance: Hashable, stuck: set[Hashable]) -> bool:
        """Whether one of its callers waits for nobody but instances that are stuck."""
        last = self.callers[-1]
        return all(one in stuck for one in self.targets) if instance == last else last in stuck


class Waits:
    """The calls of models that are on their way. On the event loop."""

    def __init__(self) -> None:
        self._waits: dict[_Wait, None] = {}
        self._callers: Counter[Hashable] = Counter()
        """In how many of them an instance waits; only those that do."""

    @contextmanager
    def waiting(
        self, callers: Sequence[Hashable], targets: Callable[[], Sequence[Hashable]], model: str
    ) -> Iterator[None]:
        """While a call is on its way.

        callers: the instances that do nothing but wait for it; nothing is looked at if there are
        none.  targets: any of these instances could run it; nothing is looked at if there are none,
            as of an ensemble, whose steps are calls themselves.  model: their model's name.
        Raises UNAVAILABLE if none of them ever could.
        """
        able = targets() if callers else ()
        if not able:
            yield
            return
        wait = _Wait(callers, able)
        self._waits[wait] = None
        waiting = self._callers
        waiting.update(callers)
        try:
            idle = any(target not in waiting for target in wait.targets)
            if not idle and callers[-1] in self._stuck():
                raise unavailable(
                    f"model '{model}' cannot take this call: each of its instances waits for a call"
                    " that cannot be answered before this one",
                    hint="give the model more instances, or do not have it call itself",
                )
            yield
        finally:
            del self._waits[wait]
            for caller in callers:
                waiting[caller] -= 1
                if not waiting[caller]:
                    del waiting[caller]

    def _stuck(self) -> set[Hashable]:
        """The instances that wait for ever."""
        of: dict[Hashable, list[_Wait]] = {}
        for wait in self._waits:
            for caller in wait.callers:
                of.setdefault(caller, []).append(wait)
        stuck = set(of)
        while True:
            free = {one for one in stuck if not any(w.stuck(one, stuck) for w in of[one])}
            if not free:
                return stuck
            stuck -= free
