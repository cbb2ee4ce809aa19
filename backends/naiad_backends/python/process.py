"""A worker's process as the server sees it: what it is begun with, and its channels.

Lives on the event loop. Knows messages, not what they mean.
"""

import asyncio
import contextlib
import io
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from naiad_backends.child.channel import READ_LITTLE
from naiad_backends.child.output import Output
from naiad_backends.child.process import GRACE_SECONDS, ChildProcess
from naiad_backends.errors import internal, invalid
from naiad_backends.python.environment import Environment
from naiad_backends.python.runtime.blocks import Mapped, announcer
from naiad_backends.python.runtime.frames import Frames, Kind, to_worker

Take = Callable[[int, bytes, bytearray, int], None]
"""Takes a message from the worker: kind, head, data, block."""

_SCRIPT = Path(__file__).with_name("bootstrap.py")
_STOP_SECONDS = 30.0

# Where a socket can keep messages apart, and does not lose any.
_MESSAGES = getattr(socket, "SOCK_SEQPACKET", socket.SOCK_DGRAM)


class WorkerProcess(ChildProcess[Any]):
    """One process. What it says when it is ready are plain values."""

    what = "worker"

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        output: Output,
        environment: Environment,
        head: dict[str, Any],
        start_seconds: float,
        side: Take,
        ended: Callable[[str], None],
        stop_seconds: float = _STOP_SECONDS,
    ) -> None:
        """As `ChildProcess`.  head: what it begins with.
        start_seconds: for the process to come up; loading the model may take longer.
        side: takes messages of the channel beside the work."""
        super().__init__(loop, name, output, ended, stop_seconds)
        self.work: Take = self._unexpected
        """Takes messages of the channel of work, once the worker is ready."""
        self._environment = environment
        self._head = head
        self._start_seconds = start_seconds
        self._work = self._channel(_cut(self._take))
        self._side = self._channel(_cut(side), READ_LITTLE)
        self._blocks, blocks = socket.socketpair(type=_MESSAGES)
        # A worker that takes no more of them must not hold up the server.
        self._blocks.setblocking(False)
        self.mapped = Mapped(self._blocks)
        self.announce = announcer(self._blocks)
        lifeline, ours = os.pipe()
        self._lifeline = io.FileIO(ours, "w")
        self._given += (blocks, io.FileIO(lifeline))
        self._answers: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        self._said = 0

    # -- the beginning

    def _command(self) -> Sequence[str]:
        return str(self._environment.interpreter), str(_SCRIPT)

    def _variables(self) -> Mapping[str, str]:
        return self._environment.variables(os.environ)

    async def _greet(self) -> Any:
        """Raises INVALID_ARG with the model's text if it fails."""
        seconds = self._start_seconds
        try:
            async with asyncio.timeout(seconds):
                await self._expect(Kind.HELLO)
        except TimeoutError:
            text = f"not come up within {seconds:g} s"
            self.kill(f"it has {text}")
            raise internal(
                f"worker '{self.name}' has {text}",
                hint="raise --backend-config=python,stub-timeout-seconds",
            ) from None
        self._work.write(to_worker(Kind.START, self._head))
        return await self._expect(Kind.READY)

    async def _expect(self, wanted: Kind) -> Any:
        kind, said = await self._heard(self._answers.get())
        if kind == Kind.FAILED:
            raise invalid(str(said))
        if kind != wanted:
            raise internal(f"worker '{self.name}' has answered something unexpected")
        return said

    def _take(self, kind: int, head: bytes, data: bytearray, block: int) -> None:
        if kind in (Kind.HELLO, Kind.READY, Kind.FAILED):
            if self._said == kind or self._said >= Kind.READY:
                raise ValueError(f"message {kind} has come before")
            self._said = kind
            said = orjson.loads(head)
            if not isinstance(said, list) or not said:
                raise ValueError(f"message {kind} says nothing")
            self._answers.put_nowait((kind, said[0]))
        else:
            self.work(kind, head, data, block)

    def _unexpected(self, kind: int, head: bytes, data: bytearray, block: int) -> None:
        raise ValueError(f"message {kind} came before the worker was ready")

    # -- the middle

    def send(self, kind: Kind, head: Any, data: bytes = b"", block: int = 0) -> None:
        """Send on the channel of work, at once."""
        self._work.send(to_worker(kind, head, data, block))

    def send_beside(self, kind: Kind, head: Any, data: bytes = b"", block: int = 0) -> None:
        """Send on the channel beside it."""
        self._side.write(to_worker(kind, head, data, block))

    # -- the end

    def _dismiss(self) -> None:
        """It finishes what it has before."""
        self.send(Kind.STOP, None)

    def abort(self, reason: str) -> None:
        """Kill it, but let it write first where it is: its interpreter does that on SIGABRT, even
        if nothing else runs any more."""
        if self._process is not None and self._process.returncode is None:
            self._reason = self._reason or reason
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._process.pid, signal.SIGABRT)
            self._loop.call_later(GRACE_SECONDS, self.kill, reason)

    def _close(self) -> None:
        super()._close()
        self._blocks.close()
        self.mapped.close()
        self._lifeline.close()


def _cut(take: Take) -> Callable[[bytes], None]:
    """What takes bytes, and hands on the messages in them."""
    feed = Frames().feed

    def received(data: bytes) -> None:
        for message in feed(data):
            take(*message)

    return received
