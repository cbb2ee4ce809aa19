"""Which models wait for one another, so that a request that could never run is refused.

A request that a model made holds up the instance that made it, and all that wait for that one in
turn: its callers. Models are at a dead end if each instance of each of them is held up by a request
to one of them. Pure: knows models by what the caller takes them for, and instances by name.
"""

from collections.abc import Callable, Collection, Hashable, Iterable
from itertools import chain

from naiad_backends.errors import NaiadError, unavailable

Callers = tuple[str, ...]


class DeadEnds:
    """The requests that models have made and that have not ended, by the model that they are to."""

    def __init__(self) -> None:
        self._open: dict[Hashable, list[Callers]] = {}
        self._names: dict[Hashable, Callable[[], Collection[str]]] = {}

    def enter(
        self, model: Hashable, callers: Callers, instances: Callable[[], Collection[str]]
    ) -> None:
        """A model makes a request to a model.

        callers: at least one.  instances: tells the names of the model's instances.
        Raises UNAVAILABLE if that would be a dead end; else `leave` is to be called at its end.
        """
        self._open.setdefault(model, []).append(callers)
        self._names[model] = instances
        stuck = self._stuck()
        if model in stuck:
            self.leave(model, callers)
            raise _dead_end(len(stuck))

    def leave(self, model: Hashable, callers: Callers) -> None:
        """A request that has entered has ended."""
        requests = self._open[model]
        requests.remove(callers)
        if not requests:
            del self._open[model], self._names[model]

    def _stuck(self) -> Collection[Hashable]:
        """All models at a dead end: those that are left when one by one goes of which an instance
        is not held up by requests to the others."""
        stuck = set(self._open)
        while free := {model for model in stuck if not self._held_up(model, stuck)}:
            stuck -= free
        return stuck

    def _held_up(self, model: Hashable, stuck: Iterable[Hashable]) -> bool:
        held = set(chain.from_iterable(chain.from_iterable(self._open[one] for one in stuck)))
        names = self._names[model]()
        return bool(names) and held.issuperset(names)


def _dead_end(models: int) -> NaiadError:
    if models == 1:
        what = "all instances of its model wait for this very request"
    else:
        what = f"all instances of {models} models wait for one another, and for this request"
    return unavailable(
        f"the request could never run: {what}", hint="give the models more instances"
    )
