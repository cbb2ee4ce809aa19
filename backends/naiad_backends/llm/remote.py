"""An instance whose engine is a process: begun, and begun anew when it has died.

What its requests are is a matter of those who inherit. Lives on the event loop.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from naiad_backends.api import (
    Execution,
    InstanceState,
    Placement,
    RemoteInstance,
    Request,
    Responder,
    Response,
)
from naiad_backends.backoff import Backoff
from naiad_backends.errors import Code, NaiadError, internal, unavailable
from naiad_backends.llm.messages import Failed, FromEngine, Ready, Start
from naiad_backends.llm.process import EngineProcess, failure
from naiad_backends.output import Output
from naiad_backends.services import Services

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ATTEMPTS = 5
_SOON_SECONDS = 10.0
"""Requests wait for an engine that should serve again within this; else they are refused."""

_RETRY_AFTER_S = 5

_WINDOW = 1 << 30
"""The engine has a queue of its own, which knows what fits."""

_DRAIN_SECONDS = 30.0


class EngineInstance(RemoteInstance):
    """`start` comes first."""

    def __init__(self, services: Services, placement: Placement, begin: Start) -> None:
        """begin: what to load, and where."""
        self.name = placement.name
        self._loop = services.loop
        self._begin = begin
        self._output = Output(self._loop, placement.name)
        self._backoff = Backoff(_ATTEMPTS)
        self._state = InstanceState.DOWN
        self._trouble = "it has not been started"
        self._listeners: list[Callable[[], None]] = []
        self._serving = False
        self._closing = False
        self._load_seconds = 0.0
        self._restarting: asyncio.Task[None] | None = None
        self._engine = self._new_engine()

    def _new_engine(self) -> EngineProcess:
        return EngineProcess(self._loop, self.name, self._output, self._heard, self._died)

    # -- for those who inherit

    @abstractmethod
    def _ready(self, ready: Ready) -> None:
        """An engine has come up, and knows no request."""

    @abstractmethod
    def _take(self, message: FromEngine) -> None:
        """The engine says something."""

    @abstractmethod
    def _lose(self, error: NaiadError) -> None:
        """The engine is gone: end all requests with this."""

    @abstractmethod
    async def _idle(self) -> None:
        """Wait until all requests have ended."""

    # -- the contract

    @property
    def state(self) -> InstanceState:
        return self._state

    @property
    def window(self) -> int:
        return _WINDOW

    @property
    def pid(self) -> int:
        """Of the engine's process."""
        return self._engine.pid

    def watch(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def trouble(self) -> str:
        return self._trouble

    # -- the beginning

    async def start(self) -> None:
        """Start the engine and wait until the model is loaded. Raises the engine's error."""
        begun = self._loop.time()
        ready = await self._engine.start(self._begin)
        if self._engine.end:
            # Before this task went on.
            raise internal(f"engine '{self.name}' has ended: {self._engine.end}")
        now = self._loop.time()
        self._load_seconds = now - begun
        self._backoff.started(now)
        self._serving = True
        logger.info("'%s' is loaded in %.1f s: %s", self.name, now - begun, ready.description)
        self._ready(ready)
        self._become(InstanceState.READY, "")

    def _become(self, state: InstanceState, trouble: str) -> None:
        self._state, self._trouble = state, trouble
        for listener in self._listeners:
            listener()

    def _heard(self, message: FromEngine) -> None:
        if isinstance(message, Failed):
            logger.error("engine '%s' cannot go on: %s", self.name, failure(message))
            self._engine.kill(message.message)
        else:
            self._take(message)

    # -- the end of an engine

    def _died(self, reason: str) -> None:
        serving, self._serving = self._serving, False
        if not serving:
            # `start` tells its caller.
            return
        wait = self._backoff.next(self._loop.time())
        soon = wait + self._load_seconds <= _SOON_SECONDS and not self._closing
        # Before the ends of requests are told, so that nobody sends one here.
        self._state = InstanceState.RESTARTING if soon else InstanceState.DOWN
        error = unavailable(f"the engine of '{self.name}' has ended: {reason}", hint="try again")
        error.retry_after_s = _RETRY_AFTER_S
        self._lose(error)
        if not self._closing:
            logger.error("the engine of '%s' has ended: %s", self.name, reason)
            self.restarts += 1
            self._restarting = self._loop.create_task(self._restart(wait))
        self._become(self._state, f"its engine has ended: {reason}")

    async def _restart(self, wait: float) -> None:
        while True:
            await asyncio.sleep(wait)
            try:
                self._engine = self._new_engine()
                await self.start()
                return
            except (NaiadError, OSError) as error:
                # An OSError is of the server's own lack, such as of descriptors.
                self._backoff.failed()
                if self._backoff.exhausted:
                    text = f"its engine failed to start {_ATTEMPTS} times: {error}"
                    logger.error("'%s' stays down: %s", self.name, text)
                    self._become(InstanceState.DOWN, text)
                    return
                wait = self._backoff.next(self._loop.time())
                logger.error("'%s': %s; next attempt in %g s", self.name, error, wait)
                self._become(InstanceState.DOWN, f"its engine fails to start: {error}")

    def close(self) -> None:
        """End the engine behind the requests that it has. Not on the event loop."""
        _wait(self._loop, self._close())

    async def _close(self) -> None:
        self._closing = True
        if self._restarting is not None:
            self._restarting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._restarting
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self._idle()
        await self._engine.stop()

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


def _wait(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(work, loop).result()
