"""The engine's end of the socket to the server. Knows messages, not what becomes of them."""

import contextlib
import socket
import struct

import msgspec

from naiad_backends.llm.frames import Frames, frame
from naiad_backends.llm.messages import FromEngine, Start, ToEngine

_READ = 262_144
_PATIENCE_SECONDS = 60
"""For a server that does not read. It always does, unless it is stuck or stopped."""


class Link:
    """Messages in and out, for one thread."""

    def __init__(self, connection: socket.socket) -> None:
        patience = struct.pack("@ll", _PATIENCE_SECONDS, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        self._socket = connection
        self._frames = Frames()
        self._decode = msgspec.msgpack.Decoder(ToEngine).decode

    def first(self) -> Start:
        """Wait for the first message, behind which there is nothing before it is answered."""
        messages: list[Start] = []
        while not messages:
            for message in self._frames.feed(self._read(0)):
                messages.append(msgspec.msgpack.decode(message, type=Start))
        return messages[0]

    def receive(self, wait: bool) -> list[ToEngine]:
        """The messages that are there, at least one if it is to `wait`. EOFError at the end."""
        messages: list[ToEngine] = []
        while wait and not messages:
            self._take(self._read(0), messages)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._take(self._read(socket.MSG_DONTWAIT), messages)
        return messages

    def send(self, message: FromEngine) -> None:
        """Send all of it. ConnectionError if the server has gone, or does not read any more."""
        try:
            self._socket.sendall(frame(message))
        except BlockingIOError:
            raise ConnectionError("the server does not read") from None

    def _read(self, flags: int) -> bytes:
        data = self._socket.recv(_READ, flags)
        if not data:
            raise EOFError("the server has gone")
        return data

    def _take(self, data: bytes, messages: list[ToEngine]) -> None:
        messages += [self._decode(message) for message in self._frames.feed(data)]
