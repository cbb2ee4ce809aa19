"""The server's end of a socket to a child: bytes there and back, without waiting for either.

Lives on the event loop. Knows no messages.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable

READ = 262_144
READ_LITTLE = 32_768
"""Bytes at once, from who has few things to say at a time, or may have very many small ones, which
must not keep the event loop from others."""


class Channel:
    """One of them. `other` is the child's end, until it has it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        take: Callable[[bytes], None],
        ended: Callable[[], None],
        broken: Callable[[Exception], None],
        at_once: int,
    ) -> None:
        """take: takes what has come in, and raises for what it cannot take.
        ended: called when the other end is closed.  broken: called with what `take` has raised.
        Nothing is read after either.  at_once: bytes that are read in one turn of the loop."""
        self.other: socket.socket
        self._socket, self.other = socket.socketpair()
        self._socket.setblocking(False)
        self._loop = loop
        self._take = take
        self._ended = ended
        self._broken = broken
        self._at_once = at_once
        self._reading = False
        self._out: deque[bytes] = deque()
        self._flushing = False
        self._open = True

    def listen(self) -> None:
        """Take what comes in from now on."""
        self._reading = True
        self._loop.add_reader(self._socket.fileno(), self.read)

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

    def read(self) -> bool:
        """Take what has come in; whether there was anything."""
        if not self._reading:
            return False
        try:
            data = self._socket.recv(self._at_once)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        if not data:
            self._read_no_more()
            self._ended()
            return False
        try:
            self._take(data)
        except Exception as error:
            self._read_no_more()
            self._broken(error)
        return self._reading

    def _read_no_more(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket.fileno())

    def close(self) -> None:
        if self._open:
            self._open = False
            self._read_no_more()
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
            self.other.close()
