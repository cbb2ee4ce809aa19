"""One call on an HTTP/2 connection: messages in, messages out, and how it ends.

Knows gRPC's framing (five bytes, then a message) and nothing of frames or windows, which are the
connection's. Source: gRPC over HTTP/2.
"""

import asyncio
import struct
import zlib
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

import grpc
import numpy as np

from naiad.core.trace import RequestTrace
from naiad.grpc.compression import WINDOW_BITS, Encoder
from naiad.grpc.headers import CallHead, binary_value
from naiad.grpc.options import LARGEST
from naiad_backends.api import Buffer

_PREFIX: Final = struct.Struct(">BI")
_UNREAD_LIMIT: Final = 4 * 2**20
_UNREAD_WEIGHT: Final = 64
"""What a message costs beside its bytes, of which it may have none."""
_UNSENT_LIMIT: Final = 2**20
_SMALL: Final = 16_384
"""Up to this size, one piece costs less to send than several."""

_INFLATED_RATIO: Final = 16
_INFLATED_ALWAYS: Final = 64 * 2**20
"""A compressed message may grow to 16 times its size, and any to 64 MiB. Without a limit, 2 MB of
zeros that were compressed cost us 2 GiB; tensors that shrink more are hardly more than a constant.
"""


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
    """A stream of the connection, and an iterator over the client's messages that ends with them.
    All of it happens on the event loop."""

    __slots__ = (
        "_arrived",
        "_at",
        "_compressed",
        "_message",
        "_most",
        "_partial",
        "_room",
        "_wire",
        "came",
        "credit",
        "deadline",
        "encoder",
        "ended",
        "finished",
        "head",
        "head_sent",
        "messages",
        "receive_window",
        "stream",
        "task",
        "trace",
        "trailers",
        "unread",
        "unsent",
        "unsent_size",
    )

    def __init__(
        self,
        wire: Wire,
        stream: int,
        head: CallHead,
        receive_window: int,
        ended: bool,
        most_received: int = LARGEST,
    ) -> None:
        """receive_window: bytes that the client may send now.  ended: it sends nothing at all.
        most_received: bytes of a message."""
        self._wire = wire
        self.stream = stream
        self.head = head
        self.receive_window = receive_window
        self.credit = 0
        """Bytes that we may send beyond what every call begins with; those sent are taken off."""
        self.task: asyncio.Task[None] | None = None
        self.deadline: asyncio.TimerHandle | None = None
        self.came = 0
        self.trace: RequestTrace | None = None
        # Receiving: the message that is coming in, then the messages that nobody has taken.
        self._partial = b""
        self._message: memoryview | None = None
        self._compressed = False
        self._most = most_received
        self._at = 0
        self.messages: deque[Buffer] = deque()
        self.unread = 0
        self.ended = ended
        self._arrived: asyncio.Event | None = None
        # Sending: messages in their framing, then the trailers.
        self.unsent: deque[memoryview] = deque()
        self.unsent_size = 0
        self._room: asyncio.Event | None = None
        self.encoder: Encoder | None = None
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
        if self.begun():
            raise CallFault(grpc.StatusCode.INTERNAL, "the last message is cut off")
        self.ended = True
        if self._arrived is not None:
            self._arrived.set()

    def begun(self) -> bool:
        """Whether a part of a message has come in, and not all of it."""
        return self._message is not None or self._partial != b""

    def _begin(self, chunk: memoryview) -> memoryview:
        """Read a message's five bytes, and the message too if it is here in whole."""
        if self._partial or len(chunk) < _PREFIX.size:
            missing = _PREFIX.size - len(self._partial)
            self._partial += bytes(chunk[:missing])
            chunk = chunk[missing:]
            if len(self._partial) < _PREFIX.size:
                return chunk
            flag, size = _PREFIX.unpack(self._partial)
            self._partial = b""
        else:
            flag, size = _PREFIX.unpack_from(chunk)
            chunk = chunk[_PREFIX.size :]
        if flag > 1 or size > self._most:
            raise _bad_prefix(flag, size, self._most)
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
            message = _inflate(message, self.head.encoding, self._most)
        self.messages.append(message)
        self.unread += len(message) + _UNREAD_WEIGHT
        if self._arrived is not None:
            self._arrived.set()

    # -- what the handler uses

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """The client's metadata; values of keys that end in -bin are bytes."""
        return [
            (name, binary_value(value) if name.endswith("-bin") else value)
            for name, value in self.head.metadata
        ]

    def __aiter__(self) -> "Call":
        return self

    async def __anext__(self) -> Buffer:
        while not self.messages:
            if self.ended:
                raise StopAsyncIteration
            self._arrived = asyncio.Event()
            await self._arrived.wait()
        message = self.messages.popleft()
        self.unread -= len(message) + _UNREAD_WEIGHT
        self._wire.grant(self)
        return message

    async def write(self, parts: Sequence[Buffer]) -> None:
        """Send a message; waits while the client is slow to take the ones before."""
        if self.finished:
            return
        flag = 0
        if self.encoder is not None:
            flag, parts = await self.encoder.encode(parts)
            if self.finished:
                return
        self.put(parts, flag)
        self._wire.pump(self)
        while self.unsent_size > _UNSENT_LIMIT and not self.finished:
            self._room = asyncio.Event()
            await self._room.wait()

    def put(self, parts: Sequence[Buffer], flag: int = 0) -> None:
        """Frame a message and lay it out for sending. flag: 1 if it is compressed."""
        size = sum(map(len, parts))
        if size <= _SMALL:
            self.unsent.append(memoryview(b"".join((prefix(size, flag), *parts))))
        else:
            self.unsent.append(memoryview(prefix(size, flag)))
            self.unsent += [memoryview(part) for part in parts if len(part)]
        self.unsent_size += _PREFIX.size + size

    def take(self, size: int) -> list[memoryview]:
        """Cut `size` bytes off the front of what is to be sent, without copying them."""
        pieces: list[memoryview] = []
        self.unsent_size -= size
        self.credit -= size
        while size:
            piece = self.unsent.popleft()
            if len(piece) > size:
                self.unsent.appendleft(piece[size:])
                piece = piece[:size]
            pieces.append(piece)
            size -= len(piece)
        if self._room is not None and self.unsent_size <= _UNSENT_LIMIT:
            self._room.set()
        return pieces

    def hungry(self) -> bool:
        """Whether the client should go on sending; if not, it should once a message is taken."""
        return not self.ended and self.unread < _UNREAD_LIMIT

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


def prefix(size: int, flag: int = 0) -> bytes:
    """The five bytes in front of a message. flag: 1 if it is compressed."""
    return _PREFIX.pack(flag, size)


def _bad_prefix(flag: int, size: int, most: int) -> CallFault:
    if flag > 1:
        return CallFault(grpc.StatusCode.INTERNAL, f"{flag} is no compression flag of a message")
    return CallFault(
        grpc.StatusCode.RESOURCE_EXHAUSTED, f"a message of {size} bytes; the most are {most}"
    )


def _inflate(message: Buffer, encoding: str, limit: int) -> bytes:
    if encoding == "identity":
        raise CallFault(grpc.StatusCode.INTERNAL, "a compressed message without grpc-encoding")
    window_bits = WINDOW_BITS.get(encoding)
    if window_bits is None:
        raise CallFault(
            grpc.StatusCode.UNIMPLEMENTED,
            f"unknown message encoding '{encoding[:32]}'; use gzip or deflate",
        )
    most = min(max(len(message) * _INFLATED_RATIO, _INFLATED_ALWAYS), limit)
    inflater = zlib.decompressobj(window_bits)
    try:
        plain = inflater.decompress(message, most + 1)
    except zlib.error as error:
        raise CallFault(grpc.StatusCode.INTERNAL, f"a corrupt {encoding} message") from error
    if len(plain) > most:
        raise CallFault(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"a {encoding} message of {len(message)} bytes that grows beyond {most} bytes; send it"
            " without compression",
        )
    if not inflater.eof or inflater.unused_data:
        raise CallFault(grpc.StatusCode.INTERNAL, f"a corrupt {encoding} message: a wrong end")
    return plain
