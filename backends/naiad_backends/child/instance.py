"""An instance that has a process: begun, and begun anew when that has died.

Lives on the event loop. What the process is asked, and what it answers, is a matter of those who
inherit.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic

from naiad_backends.api import (
    Execution,
    InstanceState,
    Placement,
    RemoteInstance,
    Request,
    Responder,
    Response,
)
from naiad_backends.child.backoff import Backoff
from naiad_backends.child.output import Output
from naiad_backends.child.process import ChildProcess, ReadyT
from naiad_backends.errors import Code, NaiadError, internal, unavailable
from naiad_backends.services import Services

logger = logging.getLogger(__name__)

_ATTEMPTS = 5


class ChildInstance(RemoteInstance, Generic[ReadyT]):
    """`start` comes first. Those who inherit set `_process` when they are made."""

    _process: ChildProcess[ReadyT]

    def __init__(self, services: Services, placement: Placement) -> None:
        self.name = placement.name
        self._loop = services.loop
        self._output = Output(self._loop, placement.name)
        self._backoff = Backoff(_ATTEMPTS)
        self._state = InstanceState.DOWN
        self._trouble = "it has not been started"
        self._listeners: list[Callable[[], None]] = []
        self._serving = False
        self._closing = False
        self._start_seconds = 0.0
        self._restarting: asyncio.Task[None] | None = None

    # -- for those who inherit

    @abstractmethod
    def _new_process(self) -> ChildProcess[ReadyT]:
        """One that is not started, with all that belongs to it and ends with it. Its end is told
        by `_died`."""

    @abstractmethod
    def _soon(self, wait: float) -> bool:
        """Whether work should wait for a process that is started after so many seconds."""

    @abstractmethod
    def _ready(self, ready: ReadyT) -> None:
        """A process has come up and said this. It knows no work."""

    @abstractmethod
    def _lose(self, error: NaiadError) -> None:
        """The process is gone: end all work that it had, with this."""

    async def _drained(self) -> None:
        """Wait for the end of work that the process would not finish when it is told to end."""

    # -- the contract

    @property
    def state(self) -> InstanceState:
        return self._state

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def watch(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def trouble(self) -> str:
        return self._trouble

    # -- the beginning

    async def start(self) -> None:
        """Start the process and wait until it is ready. Raises its error."""
        begun, process = self._loop.time(), self._process
        ready = await process.start()
        if process.end:
            # Before this task went on.
            raise internal(f"{process.what} '{self.name}' has ended: {process.end}")
        now = self._loop.time()
        self._start_seconds = now - begun
        self._backoff.started(now)
        self._serving = True
        self._ready(ready)
        self._become(InstanceState.READY, "")

    def _become(self, state: InstanceState, trouble: str) -> None:
        self._state, self._trouble = state, trouble
        self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    # -- the end of a process

    def _died(self, reason: str) -> None:
        serving, self._serving = self._serving, False
        if not serving:
            # `start` tells its caller.
            return
        what = self._process.what
        wait = self._backoff.next(self._loop.time())
        soon = self._soon(wait) and not self._closing
        # Before the ends of work are told, so that nobody sends some here.
        self._state = InstanceState.RESTARTING if soon else InstanceState.DOWN
        text = f"the {what} of '{self.name}' has ended: {reason}"
        error = unavailable(text, hint="try again")
        error.retry_after_s = max(math.ceil(wait + self._start_seconds), 1)
        self._lose(error)
        if not self._closing:
            logger.error("%s", text)
            self.restarts += 1
            self._restarting = self._loop.create_task(self._restart(wait))
        self._become(self._state, f"its {what} has ended: {reason}")

    async def _restart(self, wait: float) -> None:
        what = self._process.what
        while True:
            await asyncio.sleep(wait)
            try:
                self._process = self._new_process()
                await self.start()
                logger.info("the %s of '%s' serves again", what, self.name)
                return
            except (NaiadError, OSError) as error:
                # An OSError is of the server's own lack, such as of descriptors.
                self._backoff.failed()
                if self._backoff.exhausted:
                    text = f"its {what} failed to start {_ATTEMPTS} times: {error}"
                    logger.error("'%s' stays down: %s", self.name, text)
                    self._become(InstanceState.DOWN, text)
                    return
                wait = self._backoff.next(self._loop.time())
                logger.error("'%s': %s; next attempt in %g s", self.name, error, wait)
                self._become(InstanceState.DOWN, f"its {what} fails to start: {error}")

    def close(self) -> None:
        """End the process behind the work that it has. Not on the event loop."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()

    async def _close(self) -> None:
        self._closing = True
        if self._restarting is not None:
            self._restarting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._restarting
        await self._drained()
        await self._process.stop()

    # -- for callers on other threads

    def execute(self, requests: Sequence[Request]) -> Execution:
        """The same as `begin`, but waits."""
        result = self._begin_and_wait(requests, ())
        if isinstance(result, NaiadError):
            raise result
        return result

    def stream(self, request: Request, responder: Responder) -> None:
        """The same for a decoupled model; waits until the next request may come."""
        result = self._begin_and_wait((request,), (responder,))
        if isinstance(result, NaiadError):
            responder.send(Response(error=result), True)

    def _begin_and_wait(
        self, requests: Sequence[Request], responders: Sequence[Responder]
    ) -> Execution | NaiadError:
        result: concurrent.futures.Future[Execution | NaiadError | None] = (
            concurrent.futures.Future()
        )
        self._loop.call_soon_threadsafe(self.begin, requests, responders, result.set_result)
        return result.result() or NaiadError(
            Code.UNAVAILABLE, f"'{self.name}' cannot run now: {self._trouble}"
        )
