"""The process of an instance as the server sees it: started, watched, ended.

Lives on the event loop. Knows neither what is said to it nor what it answers.
"""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from traceback import extract_tb
from typing import Generic, Protocol, TypeVar

from naiad_backends.child import exits
from naiad_backends.child.channel import READ, Channel
from naiad_backends.child.output import Output
from naiad_backends.errors import internal

logger = logging.getLogger(__name__)

T = TypeVar("T")
ReadyT = TypeVar("ReadyT")

GRACE_SECONDS = 1.0
"""For a process to end that cannot be spoken to any more, or is asked to end in its own way."""


class End(Protocol):
    """The child's end of something that connects it with the server."""

    def fileno(self) -> int: ...
    def close(self) -> None: ...


class ChildProcess(ABC, Generic[ReadyT]):
    """One process. Begun by `start`; ended by `stop`, `kill` or its own doing: `ended` tells."""

    what: str
    """It, for people, such as `worker`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        output: Output,
        ended: Callable[[str], None],
        stop_seconds: float,
    ) -> None:
        """name: for people.  output: where what it prints goes.  ended: called once with how it
        came to its end, when nothing can come any more.  stop_seconds: for it to end when told."""
        self.name = name
        self._loop = loop
        self._output = output
        self._ended = ended
        self._stop_seconds = stop_seconds
        self._channels: list[Channel] = []
        self._given: list[End] = []
        self._spawning: asyncio.Future[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._reason = ""
        self._gone = asyncio.Event()

    # -- for those who inherit

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """What to run. The numbers of the descriptors that it is given come behind it."""

    def _variables(self) -> Mapping[str, str] | None:
        """Its environment; None for the server's."""
        return None

    @abstractmethod
    async def _greet(self) -> ReadyT:
        """Tell it what to begin with; what it says when it is ready. Raises its error."""

    @abstractmethod
    def _dismiss(self) -> None:
        """Tell it to end."""

    def _channel(self, take: Callable[[bytes], None], at_once: int = READ) -> Channel:
        """A new way to it, given to it after those that were made before."""
        channel = Channel(self._loop, take, self._silent, self._broken, at_once)
        self._channels.append(channel)
        self._given.append(channel.other)
        return channel

    async def _heard(self, answer: Awaitable[T]) -> T:
        """Wait for something that it says. Raises INTERNAL if it ends before."""
        getting = asyncio.ensure_future(answer)
        gone = asyncio.ensure_future(self._gone.wait())
        try:
            await asyncio.wait((getting, gone), return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
        finally:
            getting.cancel()
            gone.cancel()
        raise internal(f"{self.what} '{self.name}' has ended: {self._reason}")

    # -- the beginning

    async def start(self) -> ReadyT:
        """Start it and wait until it is ready. Raises its error, INTERNAL if the process ends or
        cannot be started. It has ended then."""
        spawning = self._spawning = asyncio.ensure_future(asyncio.to_thread(self._spawn))
        try:
            await asyncio.shield(spawning)
            for channel in self._channels:
                channel.listen()
            return await self._greet()
        except (OSError, RuntimeError) as error:
            # There are no more descriptors, processes or threads.
            await self._give_up("it could not be started")
            raise internal(f"{self.what} '{self.name}' cannot be started: {error}") from error
        except BaseException:
            # A thread that is starting the process cannot be cancelled.
            await asyncio.wait((spawning,))
            await self._give_up("it is not wanted any more")
            raise

    async def _give_up(self, reason: str) -> None:
        self.kill(reason)
        if self._process is not None:
            await self._gone.wait()

    def _spawn(self) -> None:
        """On a thread."""
        try:
            given = [end.fileno() for end in self._given]
            reading, writing = os.pipe()
            try:
                self._process = subprocess.Popen(
                    [*self._command(), *map(str, given)],
                    stdin=subprocess.DEVNULL,
                    stdout=writing,
                    stderr=writing,
                    pass_fds=given,
                    env=self._variables(),
                    start_new_session=True,
                )
            except BaseException:
                os.close(reading)
                raise
            finally:
                os.close(writing)
        finally:
            for end in self._given:
                end.close()
        self._loop.call_soon_threadsafe(self._output.read, reading)
        waiting = threading.Thread(target=self._wait, name=f"{self.name}: wait", daemon=True)
        try:
            waiting.start()
        except RuntimeError:
            # Too many threads.
            _kill_group(self._process.pid)
            self._process.wait()
            self._process = None
            raise

    # -- the middle

    @property
    def end(self) -> str:
        """How it has come to its end; empty while it runs."""
        return self._reason if self._gone.is_set() else ""

    @property
    def pid(self) -> int:
        """Its number; 0 before it is started."""
        return 0 if self._process is None else self._process.pid

    def _silent(self) -> None:
        """It is about to end, or has closed what it needs to be of use."""
        reason = "it has closed its connection to the server"
        self._loop.call_later(GRACE_SECONDS, self.kill, reason)

    def _broken(self, error: Exception) -> None:
        what, name = self.what, self.name
        logger.error("%s '%s' has sent what cannot be read: %s", what, name, _in_short(error))
        self.kill("it has sent what cannot be read")

    # -- the end

    async def stop(self) -> None:
        """Tell it to end; kill it if that takes too long."""
        if self._spawning is not None:
            await asyncio.wait((self._spawning,))
        if self._process is None:
            self._close()
            return
        self._dismiss()
        seconds = self._stop_seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._gone.wait()
        if not self._gone.is_set():
            what, name = self.what, self.name
            logger.warning("%s '%s' has not ended within %g s, killing it", what, name, seconds)
            self.kill("it has not ended in time")
            await self._gone.wait()

    def kill(self, reason: str) -> None:
        """End it at once, with all that it has started."""
        if self._process is None:
            self._close()
        elif self._process.returncode is None:
            self._reason = self._reason or reason
            _kill_group(self._process.pid)

    def _wait(self) -> None:
        """Wait for the end, on a thread of its own. What it has started ends with it: its group's
        number cannot become another's before it is reaped."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(OSError):
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        _kill_group(process.pid)
        code = process.wait()
        # Without a loop there is nobody left to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._is_gone, code)

    def _is_gone(self, code: int) -> None:
        # What it said last may still be on its way.
        for channel in self._channels:
            while channel.read():
                pass
        self._reason = self._reason or exits.reason(code)
        self._gone.set()
        self._close()
        self._ended(self._reason)

    def _close(self) -> None:
        """Close the server's ends, and the child's if it has not got them."""
        for channel in self._channels:
            channel.close()
        for end in self._given:
            end.close()


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _in_short(error: Exception) -> str:
    """With the place, because it may also be a mistake of ours."""
    place = extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"
