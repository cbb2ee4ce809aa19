"""Whether a version can serve: what is known of its instances, and what they say when asked.

Lives on the event loop. It tells, and refuses nothing: requests go to the instances that are left.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import StrEnum

from naiad_backends.api import Instance, RemoteInstance

logger = logging.getLogger(__name__)

LIMIT_S = 6.0
"""How long an instance may think. Backends have a shorter limit, and can say more of it."""


class ModelReadiness(StrEnum):
    """How many instances have to be fine for a model to count as ready. Triton wants all."""

    ALL = "all"
    ANY = "any"


class Readiness:
    """The instances of one version, and what is wrong with them."""

    def __init__(self, title: str, rule: ModelReadiness, names: Mapping[Instance, str]) -> None:
        """title: of the version, for the log.  names: of its instances, at least one."""
        self.listener: Callable[[], None] | None = None
        """Called when an instance has told of a change; must be quick."""
        self._title = title
        self._rule = rule
        self._names: Mapping[Instance, str] = {}
        self._asking: dict[Instance, asyncio.Task[str]] = {}
        self._restarts_before = 0
        self._told: Sequence[str] = []
        self._ended = False
        self.exchange(names)

    def exchange(self, names: Mapping[Instance, str]) -> None:
        """Look at these instances from now on."""
        before = _remote(self._names)
        self._restarts_before += sum(gone.restarts for gone in before if gone not in names)
        self._names = names
        for instance in _remote(names):
            if instance not in before:
                instance.watch(self._changed)
        self._changed()

    def end(self) -> None:
        """The version goes out of service: what becomes of its instances is no news any more."""
        self._ended = True

    # -- what is known

    @property
    def count(self) -> int:
        """How many instances there are."""
        return len(self._names)

    @property
    def live(self) -> int:
        """How many of them can serve, as far as is known."""
        return self.count - len(self.troubles)

    @property
    def troubles(self) -> Sequence[str]:
        """Why the others cannot, each behind its name."""
        return [
            f"{name}: {trouble}"
            for instance, name in self._names.items()
            if (trouble := instance.trouble())
        ]

    @property
    def remote(self) -> bool:
        """Whether there are instances that may die alone."""
        return bool(_remote(self._names))

    @property
    def restarts(self) -> int:
        """How often instances had to be begun anew; those that are gone count, too."""
        return self._restarts_before + sum(one.restarts for one in _remote(self._names))

    def _changed(self) -> None:
        troubles = self.troubles
        if self._ended or troubles == self._told:
            return
        self._told = troubles
        live = self.count - len(troubles)
        if not troubles:
            logger.info("%s is ready again", self._title)
        elif live:
            texts = "; ".join(troubles)
            logger.warning(
                "%s goes on with %d of %d instances: %s", self._title, live, self.count, texts
            )
        else:
            logger.warning("%s is not ready: %s", self._title, "; ".join(troubles))
        if self.listener is not None:
            self.listener()

    # -- what they say

    async def unready(self) -> str:
        """Why the version does not count as ready; empty if it does.

        Instances with an opinion of their own are asked, side by side, unless the answer is known
        without them. Several may ask at once: an instance is asked once, and all get its answer.
        """
        reasons = list(self.troubles)
        asked = [one for one in self._names if _has_opinion(one) and not one.trouble()]
        fine = self.count - len(reasons) - len(asked)
        if asked and not self._decided(reasons, fine):
            for answer in asyncio.as_completed([self._ask(instance) for instance in asked]):
                reason = await answer
                if reason:
                    reasons.append(reason)
                else:
                    fine += 1
                if self._decided(reasons, fine):
                    break
        return "" if self._rule is ModelReadiness.ANY and fine else "; ".join(reasons)

    def _decided(self, reasons: Sequence[str], fine: int) -> bool:
        return fine > 0 if self._rule is ModelReadiness.ANY else bool(reasons)

    def _ask(self, instance: Instance) -> asyncio.Task[str]:
        task = self._asking.get(instance)
        if task is None:
            answer = _answer(instance, self._names[instance])
            task = asyncio.get_running_loop().create_task(answer)
            self._asking[instance] = task
            task.add_done_callback(lambda _: self._asking.pop(instance))
        return task

    async def unasked(self, instances: Collection[Instance]) -> None:
        """Wait until these have given the answers that somebody wants of them."""
        asking = [task for one, task in self._asking.items() if one in instances]
        if asking:
            await asyncio.wait(asking)


async def _answer(instance: Instance, name: str) -> str:
    try:
        async with asyncio.timeout(LIMIT_S):
            reason = await instance.unready()
    except TimeoutError:
        reason = f"did not say within {LIMIT_S:g} s whether it is ready"
    return reason and f"{name}: {reason}"


def _has_opinion(instance: Instance) -> bool:
    return type(instance).unready is not Instance.unready


def _remote(instances: Collection[Instance]) -> list[RemoteInstance]:
    return [instance for instance in instances if isinstance(instance, RemoteInstance)]
