"""The server's end of a socket to a worker: messages there and back, without waiting for either.

Lives on the event loop. Knows nothing of what messages mean.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable

from naiad_backends.python.runtime.frames import Frames

Take = Callable[[int, bytes, bytearray, int], None]
"""Takes a message from the worker: kind, head, data, block."""

READ = 262_144
READ_LITTLE = 32_768
"""Bytes at once, from who has few things to say at a time, or may have very many small ones, which
must not keep the event loop from others."""


class Channel:
    """One of them. `other` is the worker's end, until it has it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        take: Take,
        ended: Callable[[], None],
        broken: Callable[[Exception], None],
        at_once: int,
    ) -> None:
        """ended: called when the other end is closed.  broken: when a message cannot be taken.
        Nothing is read after either.  at_once: bytes that are read in one turn of the loop."""
        self.socket, self.other = socket.socketpair()
        self.socket.setblocking(False)
        self._loop = loop
        self._take = take
        self._ended = ended
        self._broken = broken
        self._at_once = at_once
        self._reading = True
        self._frames = Frames()
        self._out: deque[bytes] = deque()
        self._flushing = False
        self._open = True
        loop.add_reader(self.socket.fileno(), self.read)

    def write(self, message: bytes) -> None:
        """Send with what else is said in this turn of the loop."""
        self._out.append(message)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def send(self, message: bytes) -> None:
        """Send at once, behind what was said before."""
        self._out.append(message)
        if not self._flushing:
            self._flushing = True
            self._flush()

    def _flush(self) -> None:
        if not self._open:
            return
        data = self._out.popleft() if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        try:
            sent = self.socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            # The end of the process tells the rest.
            return
        if sent < len(data):
            self._out.append(data[sent:])
            self._loop.add_writer(self.socket.fileno(), self._go_on)
        else:
            self._flushing = False

    def _go_on(self) -> None:
        self._loop.remove_writer(self.socket.fileno())
        self._flush()

    def read(self) -> bool:
        """Take what has come in; whether there was anything."""
        if not self._reading:
            return False
        try:
            data = self.socket.recv(self._at_once)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        if not data:
            self._read_no_more()
            self._ended()
            return False
        try:
            for message in self._frames.feed(data):
                self._take(*message)
        except Exception as error:
            self._read_no_more()
            self._broken(error)
        return self._reading

    def _read_no_more(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self.socket.fileno())

    def close(self) -> None:
        if self._open:
            self._open = False
            self._read_no_more()
            self._loop.remove_writer(self.socket.fileno())
            self.socket.close()
            self.other.close()
