"""One call on an HTTP/2 connection: messages in, messages out, and how it ends.

Knows gRPC's framing (five bytes, then a message) and nothing of frames or windows, which are the
connection's. Source: gRPC over HTTP/2.
"""

import asyncio
import struct
import zlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Final, Protocol

import grpc
import numpy as np

from naiad.grpc.headers import CallHead, binary_value
from naiad_backends.api import Buffer

LARGEST: Final = 2**31 - 1
"""Bytes that a message may have, in either direction."""

_PREFIX: Final = struct.Struct(">BI")
_UNREAD_LIMIT: Final = 4 * 2**20
_UNSENT_LIMIT: Final = 2**20
_WINDOW_BITS: Final = {"gzip": 31, "deflate": 15}


class CallFault(Exception):
    """The call cannot go on and ends with this status."""

    def __init__(self, status: grpc.StatusCode, text: str) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text


class Wire(Protocol):
    """What a call needs of its connection."""

    def pump(self, call: "Call") -> None:
        """Send what the windows allow of `call.unsent`."""

    def grant(self, call: "Call") -> None:
        """Let the client send as much as the call has room for."""


class Call:
    """A stream of the connection. All of it happens on the event loop."""

    __slots__ = (
        "_arrived",
        "_at",
        "_compressed",
        "_message",
        "_partial",
        "_room",
        "_wire",
        "deadline",
        "ended",
        "finished",
        "head",
        "head_sent",
        "messages",
        "receive_window",
        "send_window",
        "stream",
        "task",
        "trailers",
        "unread",
        "unsent",
        "unsent_size",
    )

    def __init__(
        self, wire: Wire, stream: int, head: CallHead, send_window: int, receive_window: int
    ) -> None:
        """send_window, receive_window: bytes that either side may send now."""
        self._wire = wire
        self.stream = stream
        self.head = head
        self.send_window = send_window
        self.receive_window = receive_window
        self.task: asyncio.Task[None] | None = None
        self.deadline: asyncio.TimerHandle | None = None
        # Receiving: the message that is coming in, then the messages that nobody has taken.
        self._partial = b""
        self._message: memoryview | None = None
        self._compressed = False
        self._at = 0
        self.messages: deque[Buffer] = deque()
        self.unread = 0
        self.ended = False
        self._arrived: asyncio.Event | None = None
        # Sending: messages in their framing, then the trailers.
        self.unsent: deque[memoryview] = deque()
        self.unsent_size = 0
        self._room: asyncio.Event | None = None
        self.head_sent = False
        self.trailers: bytes | None = None
        self.finished = False

    # -- what the connection delivers

    def feed(self, chunk: memoryview) -> None:
        """Take a piece of the client's stream. Raises CallFault for what is no gRPC message."""
        while len(chunk):
            if self._message is None:
                chunk = self._begin(chunk)
            else:
                size = min(len(chunk), len(self._message) - self._at)
                self._message[self._at : self._at + size] = chunk[:size]
                chunk = chunk[size:]
                self.received(size)

    def place(self) -> memoryview | None:
        """Where the next bytes of the client's stream may be put without passing `feed`."""
        return None if self._message is None else self._message[self._at :]

    def received(self, size: int) -> None:
        """That many bytes were put into `place`."""
        message = self._message
        if message is not None:
            self._at += size
            if self._at == len(message):
                self._message = None
                self._complete(message)

    def end(self) -> None:
        """The client sends nothing more. Raises CallFault if a message was cut off."""
        if self._message is not None or self._partial:
            raise CallFault(grpc.StatusCode.INTERNAL, "the last message is cut off")
        self.ended = True
        if self._arrived is not None:
            self._arrived.set()

    def _begin(self, chunk: memoryview) -> memoryview:
        """Read a message's five bytes, and the message too if it is here in whole."""
        if self._partial or len(chunk) < _PREFIX.size:
            missing = _PREFIX.size - len(self._partial)
            prefix = self._partial + bytes(chunk[:missing])
            chunk = chunk[missing:]
            if len(prefix) < _PREFIX.size:
                self._partial = prefix
                return chunk
            self._partial = b""
            flag, size = _PREFIX.unpack(prefix)
        else:
            flag, size = _PREFIX.unpack_from(chunk)
            chunk = chunk[_PREFIX.size :]
        if flag > 1 or size > LARGEST:
            raise _bad_prefix(flag, size)
        self._compressed = flag == 1
        if size <= len(chunk):
            self._complete(bytes(chunk[:size]))
            return chunk[size:]
        # np.empty does not clear its memory first, as bytearray would.
        self._message = np.empty(size, np.uint8).data.cast("B")
        self._at = 0
        return chunk

    def _complete(self, message: Buffer) -> None:
        if self._compressed:
            message = _inflate(message, self.head.encoding)
        self.messages.append(message)
        self.unread += len(message)
        if self._arrived is not None:
            self._arrived.set()

    # -- what the handler uses

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """The client's metadata; values of keys that end in -bin are bytes."""
        return [
            (name, binary_value(value) if name.endswith("-bin") else value)
            for name, value in self.head.metadata
        ]

    async def requests(self) -> AsyncIterator[Buffer]:
        """The client's messages as they come, until it has no more."""
        self._arrived = asyncio.Event()
        while True:
            while self.messages:
                message = self.messages.popleft()
                self.unread -= len(message)
                self._wire.grant(self)
                yield message
            if self.ended:
                return
            self._arrived.clear()
            await self._arrived.wait()

    async def write(self, message: Buffer) -> None:
        """Send a message; waits while the client is slow to take the ones before."""
        self.put(message)
        self._wire.pump(self)
        while self.unsent_size > _UNSENT_LIMIT and not self.finished:
            self._room = asyncio.Event()
            await self._room.wait()

    def put(self, message: Buffer) -> None:
        """Frame a message and lay it out for sending."""
        prefix = _PREFIX.pack(0, len(message))
        self.unsent += (memoryview(prefix), memoryview(message))
        self.unsent_size += _PREFIX.size + len(message)

    def sent(self, size: int) -> None:
        """The connection has taken that many bytes of `unsent`."""
        self.unsent_size -= size
        if self._room is not None and self.unsent_size <= _UNSENT_LIMIT:
            self._room.set()

    def hungry(self) -> bool:
        """Whether the client should go on sending: always in the middle of a message."""
        return not self.ended and (self._message is not None or self.unread < _UNREAD_LIMIT)

    def finish(self) -> None:
        """The call is over: whoever waits for it goes on."""
        self.finished = self.ended = True
        self.messages.clear()
        if self._arrived is not None:
            self._arrived.set()
        self.unsent.clear()
        self.unsent_size = 0
        if self.deadline is not None:
            self.deadline.cancel()
        if self._room is not None:
            self._room.set()


def frame(message: Buffer) -> bytes:
    """A message behind its five bytes."""
    return b"".join((_PREFIX.pack(0, len(message)), message))


def _bad_prefix(flag: int, size: int) -> CallFault:
    if flag > 1:
        return CallFault(grpc.StatusCode.INTERNAL, f"{flag} is no compression flag of a message")
    return CallFault(
        grpc.StatusCode.RESOURCE_EXHAUSTED, f"a message of {size} bytes; the most are {LARGEST}"
    )


def _inflate(message: Buffer, encoding: str) -> bytes:
    window_bits = _WINDOW_BITS.get(encoding)
    if window_bits is None:
        raise CallFault(
            grpc.StatusCode.UNIMPLEMENTED, f"message encoding '{encoding}'; use gzip or deflate"
        )
    inflater = zlib.decompressobj(window_bits)
    try:
        plain = inflater.decompress(message, LARGEST)
    except zlib.error as error:
        raise CallFault(grpc.StatusCode.INTERNAL, f"a corrupt {encoding} message") from error
    if not inflater.eof:
        raise CallFault(
            grpc.StatusCode.RESOURCE_EXHAUSTED, f"a {encoding} message that is cut off or too large"
        )
    return plain
