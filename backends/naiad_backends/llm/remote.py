"""An instance whose engine is a process.

What its requests are is a matter of those who inherit. Lives on the event loop.
"""

import asyncio
import contextlib
import math
from abc import abstractmethod

from naiad_backends.api import Placement
from naiad_backends.child.instance import ChildInstance
from naiad_backends.errors import QueueFull
from naiad_backends.llm.messages import FromEngine, Ready, Start
from naiad_backends.llm.process import EngineProcess
from naiad_backends.llm.queue import Queue
from naiad_backends.services import Services

_SOON_SECONDS = 10.0
"""Requests wait for an engine that should serve again within this; else they are refused."""

_WINDOW = 1 << 30
"""The engine has a queue of its own, which knows what fits."""

_DRAIN_SECONDS = 30.0


class EngineInstance(ChildInstance[Ready]):
    """`start` comes first."""

    _process: EngineProcess

    def __init__(self, services: Services, placement: Placement, begin: Start) -> None:
        """begin: what to load, and where."""
        super().__init__(services, placement)
        self._begin = begin
        options = begin.options
        self._queue = Queue(
            options.max_num_seqs, options.max_num_queued_reqs, options.max_num_queued_tokens
        )
        self._process = self._new_process()

    def _new_process(self) -> EngineProcess:
        return EngineProcess(
            self._loop, self.name, self._output, self._begin, self._take, self._died
        )

    def _soon(self, wait: float) -> bool:
        return wait + self._start_seconds <= _SOON_SECONDS

    @property
    def window(self) -> int:
        return _WINDOW

    @property
    def window_for_calls(self) -> int:
        """An engine waits for no other model."""
        return _WINDOW

    def refusal(self, waiting: int) -> QueueFull | None:
        """An engine that is expected back has as many places as one that is there."""
        return self._queue.refusal(waiting, max(math.ceil(self._start_seconds), 1))

    # -- for those who inherit

    @abstractmethod
    def _take(self, message: FromEngine) -> None:
        """The engine says something."""

    async def _drained(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self._queue.empty()
