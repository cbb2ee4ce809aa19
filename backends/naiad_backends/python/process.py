"""A worker's process as the server sees it: started, spoken to, watched, ended.

Lives on the event loop. Knows messages, not what they mean.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from traceback import extract_tb
from typing import Any

import orjson

from naiad_backends import exits
from naiad_backends.errors import internal, invalid
from naiad_backends.output import Output
from naiad_backends.python.channel import READ, READ_LITTLE, Channel, Take
from naiad_backends.python.environment import Environment
from naiad_backends.python.runtime.blocks import Mapped, announcer
from naiad_backends.python.runtime.frames import Kind, to_worker

logger = logging.getLogger(__name__)

_SCRIPT = Path(__file__).with_name("bootstrap.py")
_STOP_SECONDS = 30.0

_GRACE_SECONDS = 1.0
"""For a process to end that cannot be spoken to any more, or is asked to end in its own way."""

# Where a socket can keep messages apart, and does not lose any.
_MESSAGES = getattr(socket, "SOCK_SEQPACKET", socket.SOCK_DGRAM)


class WorkerProcess:
    """One process. Begun by `start`; ended by `stop`, `kill` or its own doing: `ended` tells."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        environment: Environment,
        output: Output,
        side: Take,
        ended: Callable[[str], None],
    ) -> None:
        """name: for people.  side: takes messages of the channel beside the work.
        ended: called once with how the process came to its end, when no message can come any more.
        """
        self.name = name
        self.work: Take = self._unexpected
        """Takes messages of the channel of work, once the worker is ready."""
        self._loop = loop
        self._environment = environment
        self._output = output
        self._ended = ended
        self._work = Channel(loop, self._take, self._silent, self._broken, READ)
        self._side = Channel(loop, side, self._silent, self._broken, READ_LITTLE)
        self._blocks, self._other_blocks = socket.socketpair(type=_MESSAGES)
        # A worker that takes no more of them must not hold up the server.
        self._blocks.setblocking(False)
        self.mapped = Mapped(self._blocks)
        self.announce = announcer(self._blocks)
        self._answers: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        self._said = 0
        self._spawning: asyncio.Future[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        self._reason = ""
        self._gone = asyncio.Event()

    # -- the beginning

    async def start(self, head: dict[str, Any], seconds: float) -> bytes:
        """Start the process and let it begin with `head`; what it says when it is ready.

        seconds: for the process to come up; loading the model may take longer. Raises INVALID_ARG
        with the model's text if it fails, INTERNAL if the process does. It has ended then.
        """
        spawning = self._spawning = asyncio.ensure_future(asyncio.to_thread(self._spawn))
        try:
            await asyncio.shield(spawning)
            async with asyncio.timeout(seconds):
                await self._expect(Kind.HELLO)
            self._work.write(to_worker(Kind.START, head))
            return await self._expect(Kind.READY)
        except TimeoutError:
            await self._give_up(f"it has not come up within {seconds:g} s")
            raise internal(
                f"worker '{self.name}' has not come up within {seconds:g} s",
                hint="raise --backend-config=python,stub-timeout-seconds",
            ) from None
        except (OSError, RuntimeError) as error:
            # There are no more descriptors, processes or threads.
            await self._give_up("it could not be started")
            raise internal(f"worker '{self.name}' cannot be started: {error}") from error
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
        lifeline, self._lifeline = os.pipe()
        try:
            reading, writing = os.pipe()
        except OSError:
            os.close(lifeline)
            raise
        given = (
            self._work.other.fileno(),
            self._side.other.fileno(),
            self._other_blocks.fileno(),
            lifeline,
        )
        try:
            self._process = subprocess.Popen(
                [str(self._environment.interpreter), str(_SCRIPT), *map(str, given)],
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                pass_fds=given,
                env=self._environment.variables(os.environ),
                start_new_session=True,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            for descriptor in (lifeline, writing):
                os.close(descriptor)
            for one in (self._work.other, self._side.other, self._other_blocks):
                one.close()
        self._loop.call_soon_threadsafe(self._output.read, reading)
        waiting = threading.Thread(target=self._wait, name=f"{self.name}: wait", daemon=True)
        try:
            waiting.start()
        except RuntimeError:
            # Too many threads.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            raise

    async def _expect(self, wanted: Kind) -> bytes:
        getting = asyncio.ensure_future(self._answers.get())
        gone = asyncio.ensure_future(self._gone.wait())
        try:
            await asyncio.wait((getting, gone), return_when=asyncio.FIRST_COMPLETED)
            if not getting.done():
                raise internal(f"worker '{self.name}' has ended: {self._reason}")
            kind, head = getting.result()
        finally:
            getting.cancel()
            gone.cancel()
        if kind == Kind.FAILED:
            raise invalid(_text(head))
        if kind != wanted:
            raise internal(f"worker '{self.name}' has answered something unexpected")
        return head

    def _take(self, kind: int, head: bytes, data: bytearray, block: int) -> None:
        if kind in (Kind.HELLO, Kind.READY, Kind.FAILED):
            if self._said == kind or self._said >= Kind.READY:
                raise ValueError(f"message {kind} has come before")
            self._said = kind
            self._answers.put_nowait((kind, head))
        else:
            self.work(kind, head, data, block)

    def _unexpected(self, kind: int, head: bytes, data: bytearray, block: int) -> None:
        raise ValueError(f"message {kind} came before the worker was ready")

    # -- the middle

    @property
    def end(self) -> str:
        """How it has come to its end; empty while it runs."""
        return self._reason if self._gone.is_set() else ""

    @property
    def pid(self) -> int:
        """Its number; 0 before it is started."""
        return 0 if self._process is None else self._process.pid

    def send(self, kind: Kind, head: Any, data: bytes = b"", block: int = 0) -> None:
        """Send on the channel of work, at once."""
        self._work.send(to_worker(kind, head, data, block))

    def send_beside(self, kind: Kind, head: Any, data: bytes = b"", block: int = 0) -> None:
        """Send on the channel beside it."""
        self._side.write(to_worker(kind, head, data, block))

    def _silent(self) -> None:
        """It is about to end, or has closed what it needs to be of use."""
        reason = "it has closed its connection to the server"
        self._loop.call_later(_GRACE_SECONDS, self.kill, reason)

    def _broken(self, error: Exception) -> None:
        logger.error("worker '%s' has sent what cannot be read: %s", self.name, _in_short(error))
        self.kill("it has sent what cannot be read")

    # -- the end

    async def stop(self, seconds: float = _STOP_SECONDS) -> None:
        """Let it finish what it has, and end; kill it if that takes too long."""
        if self._spawning is not None:
            await asyncio.wait((self._spawning,))
        if self._process is None:
            self._close()
            return
        self.send(Kind.STOP, None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._gone.wait()
        if not self._gone.is_set():
            logger.warning("worker '%s' has not ended within %g s, killing it", self.name, seconds)
            self.kill("it has not ended in time")
            await self._gone.wait()

    def kill(self, reason: str) -> None:
        """End it at once, with all that it has started."""
        if self._process is None:
            self._close()
        elif self._process.returncode is None:
            self._reason = self._reason or reason
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def abort(self, reason: str) -> None:
        """The same, but let it write first where it is: its interpreter does that on SIGABRT, even
        if nothing else runs any more."""
        if self._process is not None and self._process.returncode is None:
            self._reason = self._reason or reason
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._process.pid, signal.SIGABRT)
            self._loop.call_later(_GRACE_SECONDS, self.kill, reason)

    def _wait(self) -> None:
        """Wait for the end, on a thread of its own. What it has started ends with it: its group's
        number cannot become another's before it is reaped."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(OSError):
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        # Without a loop there is nobody left to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._is_gone, code)

    def _is_gone(self, code: int) -> None:
        # What it said last may still be on its way.
        for channel in (self._work, self._side):
            while channel.read():
                pass
        self._reason = self._reason or exits.reason(code)
        self._gone.set()
        self._close()
        self._ended(self._reason)

    def _close(self) -> None:
        self._work.close()
        self._side.close()
        self._blocks.close()
        self.mapped.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


def _in_short(error: Exception) -> str:
    """With the place, because it may also be a mistake of ours."""
    place = extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"


def _text(head: bytes) -> str:
    return str(orjson.loads(head)[0])
