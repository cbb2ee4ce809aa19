"""A model whose instances have processes, which are started side by side."""

import asyncio
import concurrent.futures
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from naiad_backends.api import Model, Placement
from naiad_backends.child.instance import ChildInstance
from naiad_backends.errors import NaiadError
from naiad_backends.services import Services

InstanceT = TypeVar("InstanceT", bound=ChildInstance[Any])


class ChildModel(Model, Generic[InstanceT]):
    """All processes of the placements are started at once; `instance` waits for one."""

    def __init__(self, services: Services, placements: Sequence[Placement]) -> None:
        """Those who inherit have all that `_made` needs before."""
        self._services = services
        self._starting: dict[str, tuple[InstanceT, concurrent.futures.Future[None]]] = {}
        try:
            for placement in placements:
                self._starting[placement.name] = self._begin(placement)
        except OSError:
            # There are no more descriptors.
            self.close()
            raise

    @abstractmethod
    def _made(self, placement: Placement) -> InstanceT:
        """A new instance, not started. On the event loop."""

    def _begin(self, placement: Placement) -> tuple[InstanceT, concurrent.futures.Future[None]]:
        async def made() -> InstanceT:
            return self._made(placement)

        loop = self._services.loop
        instance = asyncio.run_coroutine_threadsafe(made(), loop).result()
        return instance, asyncio.run_coroutine_threadsafe(instance.start(), loop)

    def instance(self, placement: Placement) -> InstanceT:
        """Raises the process's own error, INTERNAL if it does not start."""
        begun = self._starting.pop(placement.name) if placement.name in self._starting else None
        instance, starting = begun or self._begin(placement)
        try:
            starting.result()
        except NaiadError as error:
            instance.close()
            error.message = f"instance '{placement.name}': {error.message}"
            raise
        return instance

    def close(self) -> None:
        """End the processes that nobody has asked for."""
        for instance, starting in self._starting.values():
            starting.cancel()
            instance.close()
        self._starting.clear()
