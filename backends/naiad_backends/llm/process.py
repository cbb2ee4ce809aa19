"""The process of an engine as the server sees it: started, spoken to, watched, ended.

Lives on the event loop. Knows how messages travel, not what they mean.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import msgspec

from naiad_backends import exits
from naiad_backends.errors import Code, NaiadError, internal
from naiad_backends.llm.frames import Frames, frame
from naiad_backends.llm.messages import Failed, FromEngine, Ready, Start, ToEngine
from naiad_backends.output import Output

logger = logging.getLogger(__name__)

_WORKER = "naiad_backends.llm.engine.worker"

_READ = 262_144

_GRACE_SECONDS = 1.0
"""For a process to end that cannot be spoken to any more."""

_STOP_SECONDS = 10.0


class EngineProcess:
    """One process. Begun by `start`; ended by `stop`, `kill` or its own doing: `ended` tells."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        output: Output,
        take: Callable[[FromEngine], None],
        ended: Callable[[str], None],
    ) -> None:
        """name: for people.  output: where what it prints goes.  take: what it says once it is
        ready.  ended: called once with how it came to its end, when nothing can come any more."""
        self.name = name
        self._loop = loop
        self._output = output
        self._take = take
        self._ended = ended
        self._socket, self._other = socket.socketpair()
        self._socket.setblocking(False)
        self._frames = Frames()
        self._decode = msgspec.msgpack.Decoder(FromEngine).decode
        self._out: list[bytes] = []
        self._flushing = False
        self._reading = False
        self._answer: asyncio.Future[FromEngine] = loop.create_future()
        self._spawning: asyncio.Future[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._reason = ""
        self._gone = asyncio.Event()

    # -- the beginning

    async def start(self, begin: Start) -> Ready:
        """Start it and wait until it has loaded the model. Raises the engine's error, INTERNAL if
        the process ends; it has ended then."""
        spawning = self._spawning = asyncio.ensure_future(asyncio.to_thread(self._spawn))
        try:
            await asyncio.shield(spawning)
            self._reading = True
            self._loop.add_reader(self._socket.fileno(), self._read)
            self.send(begin)
            return await self._ready()
        except (OSError, RuntimeError) as error:
            # There are no more descriptors, processes or threads.
            await self._give_up("it could not be started")
            raise internal(f"engine '{self.name}' cannot be started: {error}") from error
        except BaseException:
            # A thread that is starting the process cannot be cancelled.
            await asyncio.wait((spawning,))
            await self._give_up("it is not wanted any more")
            raise

    async def _ready(self) -> Ready:
        gone = asyncio.ensure_future(self._gone.wait())
        try:
            await asyncio.wait((self._answer, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if not self._answer.done():
            raise internal(f"engine '{self.name}' has ended: {self._reason}")
        answer = self._answer.result()
        if isinstance(answer, Failed):
            raise failure(answer)
        if not isinstance(answer, Ready):
            raise internal(f"engine '{self.name}' has answered something unexpected")
        return answer

    async def _give_up(self, reason: str) -> None:
        self.kill(reason)
        if self._process is not None:
            await self._gone.wait()

    def _spawn(self) -> None:
        reading, writing = os.pipe()
        try:
            self._process = subprocess.Popen(
                # -P: the folder that the server runs in is no place for modules.
                [sys.executable, "-P", "-m", _WORKER, str(self._other.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                pass_fds=(self._other.fileno(),),
                start_new_session=True,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
            self._other.close()
        self._loop.call_soon_threadsafe(self._output.read, reading)
        waiting = threading.Thread(target=self._wait, name=f"{self.name}: wait", daemon=True)
        try:
            waiting.start()
        except RuntimeError:
            # Too many threads.
            self._process.kill()
            self._process.wait()
            self._process = None
            raise

    # -- the middle

    @property
    def pid(self) -> int:
        """Its number; 0 before it is started."""
        return 0 if self._process is None else self._process.pid

    @property
    def end(self) -> str:
        """How it has come to its end; empty while it runs."""
        return self._reason if self._gone.is_set() else ""

    def send(self, message: Start | ToEngine) -> None:
        """Send with what else is said in this turn of the event loop. Never blocks."""
        self._out.append(frame(message))
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._socket.fileno() < 0:
            return
        data = b"".join(self._out)
        self._out.clear()
        try:
            sent = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            # The end of the process tells the rest.
            return
        if sent < len(data):
            self._out.append(data[sent:])
            self._loop.add_writer(self._socket.fileno(), self._go_on)
        else:
            self._flushing = False

    def _go_on(self) -> None:
        self._loop.remove_writer(self._socket.fileno())
        self._flush()

    def _read(self) -> bool:
        """Take what has come in; whether there may be more."""
        if not self._reading:
            return False
        try:
            data = self._socket.recv(_READ)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        if not data:
            self._read_no_more("it has closed its connection to the server")
            return False
        try:
            for message in self._frames.feed(data):
                self._hear(self._decode(message))
        except Exception:
            logger.exception("engine '%s' has sent what cannot be taken", self.name)
            self._read_no_more("it has sent what cannot be taken")
        return self._reading

    def _hear(self, message: FromEngine) -> None:
        if self._answer.done():
            self._take(message)
        else:
            self._answer.set_result(message)

    def _read_no_more(self, reason: str) -> None:
        """It is about to end, or is of no use any more."""
        self._reading = False
        self._loop.remove_reader(self._socket.fileno())
        self._loop.call_later(_GRACE_SECONDS, self.kill, reason)

    # -- the end

    async def stop(self) -> None:
        """End it, whatever it is doing."""
        if self._spawning is not None:
            await asyncio.wait((self._spawning,))
        self._close()
        if self._process is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await self._gone.wait()
        if not self._gone.is_set():
            logger.warning("engine '%s' has not ended in time, killing it", self.name)
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

    def _wait(self) -> None:
        """Wait for the end, on a thread of its own."""
        process = self._process
        if process is None:
            return
        code = process.wait()
        # Without a loop there is nobody left to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._is_gone, code)

    def _is_gone(self, code: int) -> None:
        # What it said last may still be on its way.
        while self._read():
            pass
        self._reason = self._reason or exits.reason(code)
        self._gone.set()
        self._close()
        self._ended(self._reason)

    def _close(self) -> None:
        if self._socket.fileno() >= 0:
            self._reading = False
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
            self._other.close()


def failure(said: Failed) -> NaiadError:
    """The error that an engine tells of."""
    code = Code(said.code) if said.code in Code.__members__ else Code.INTERNAL
    return NaiadError(code, said.message)
