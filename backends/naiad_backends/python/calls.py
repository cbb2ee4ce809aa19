"""What models ask of the server, by name: one table for all of them, wherever they run."""

import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from naiad_backends.child.output import Voice
from naiad_backends.errors import NaiadError, invalid
from naiad_backends.services import Services

_LEVELS = {
    "VERBOSE": logging.DEBUG,
    "INFO": logging.INFO,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
}

_OWNERS = itertools.count(1)


class Calls:
    """The wishes of one instance. On the event loop."""

    def __init__(self, services: Services, model: str, instance: str) -> None:
        """model, instance: names of who asks."""
        self._services = services
        self._model = model
        self._voice = Voice(services.loop, instance)
        # Instances of a model and of its successor have the same names for a while.
        metrics, owner = services.metrics, f"{instance} {next(_OWNERS)}"
        self._owner = owner
        self._quick: Mapping[str, Callable[..., Any]] = {
            "metric_family": lambda *given: metrics.family(owner, *given),
            "drop_family": lambda name: metrics.drop_family(owner, name),
            "metric": lambda *given: metrics.metric(owner, *given),
            "drop_metric": lambda handle: metrics.drop_metric(owner, handle),
            "metric_update": lambda *given: metrics.update(owner, *given),
            "metric_value": lambda handle: metrics.value(owner, handle),
            "log": self._log,
            "left_out": lambda count: self._voice.leave_out(int(count)),
        }
        self._slow: Mapping[str, Callable[..., Awaitable[Any]]] = {
            "load_model": self._load,
            "unload_model": self._unload,
            "is_model_ready": services.model_ready,
        }

    async def call(self, what: str, arguments: Sequence[Any]) -> Any:
        """Carry out what is asked. Raises NaiadError."""
        slow = self._slow.get(what)
        return self.tell(what, arguments) if slow is None else await slow(*arguments)

    def tell(self, what: str, arguments: Sequence[Any]) -> Any:
        """The same for what is done at once. Raises NaiadError."""
        quick = self._quick.get(what)
        if quick is None:
            raise invalid(f"'{what[:40]}' is nothing that a model can ask for")
        try:
            return quick(*arguments)
        except (TypeError, ValueError) as error:
            raise invalid(f"{what}: {error}") from error

    def forget(self) -> None:
        """The instance's process has ended: nothing is its own any more."""
        self._services.metrics.forget(self._owner)

    async def _load(self, name: str, parameters: Mapping[str, object]) -> None:
        await self._services.load_model(self._model, name, parameters)

    async def _unload(self, name: str, unload_dependents: bool) -> None:
        await self._services.unload_model(self._model, name, unload_dependents)

    def _log(self, severity: str, text: str, file: str, line: int, source: str) -> None:
        where = f" ({file}:{line})" if file else ""
        self._voice.write(_LEVELS.get(severity, logging.INFO), f"{text}{where}", source)


def text(error: BaseException) -> str:
    """What a model reads of an error."""
    return str(error) if isinstance(error, NaiadError) else f"{type(error).__name__}: {error}"
