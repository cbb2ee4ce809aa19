"""Messages between a server and a worker: a head of plain values, and bytes that go with it.

To a worker a head is written by `marshal`, which any CPython reads at once and exactly. From a
worker it is JSON, because a worker that a model has damaged must not be able to damage the server.
"""

import json
import marshal
import socket
import struct
import threading
from collections import deque
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

HEADER = struct.Struct("<IIIB3s")
"""Bytes of the head, bytes of data, number of the sender's block (0: none), kind, and the mark of
a message."""

MARK = b"nai"
"""What a model writes into a channel by mistake does not have it, so that nobody waits for the rest
of a message that is none."""

LARGEST = 1 << 30
"""Bytes of a head or of data that a sane sender stays below."""

_READ = 262_144


class Kind(IntEnum):
    """What a message is."""

    # On the channel of work, to the worker.
    START = 1
    EXECUTE = 2
    STOP = 3
    # The same, from the worker.
    HELLO = 10
    READY = 11
    FAILED = 12
    RESULT = 13
    PART = 14
    # On the channel beside it, both ways.
    CALL = 20
    ANSWER = 21
    ERROR = 22
    TELL = 23
    RESPONSE = 24


def to_worker(kind: Kind, head: Any, data: bytes = b"", block: int = 0) -> bytes:
    """The bytes of a message to a worker."""
    text = marshal.dumps(head, 4)
    return HEADER.pack(len(text), len(data), block, kind, MARK) + text + data


def to_server(kind: int, head: str, data: bytes = b"", block: int = 0) -> bytes:
    """The bytes of a message to the server.  head: as `encode` gives it."""
    # Half of a surrogate pair, as in the name of a file, is no text for a reader of JSON.
    text = head.encode("utf-8", "replace")
    return HEADER.pack(len(text), len(data), block, kind, MARK) + text + data


encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode
"""Plain values as JSON text."""


class Frames:
    """Cuts what comes in into messages. Raises ValueError for what is none."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> "list[tuple[int, bytes, bytearray, int]]":
        """The messages that are complete now: kind, head, data, block."""
        buffer = self._buffer
        buffer += data
        found = []
        at = 0
        end = len(buffer)
        while end - at >= HEADER.size:
            head, body, block, kind, mark = HEADER.unpack_from(buffer, at)
            if mark != MARK or head > LARGEST or body > LARGEST:
                raise ValueError("what has come in is no message")
            start = at + HEADER.size
            if end - start < head + body:
                break
            middle = start + head
            found.append((kind, bytes(buffer[start:middle]), buffer[middle : middle + body], block))
            at = middle + body
        if at:
            del buffer[:at]
        return found


class Port:
    """A worker's end of a channel: one thread reads, any may write."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._frames = Frames()
        self._ready: deque[tuple[int, bytes, bytearray, int]] = deque()
        self._lock = threading.Lock()
        self.left = False
        """Whether this is a process that was forked off, which has no business here."""

    def leave(self) -> None:
        """For that process: what is written from now on goes nowhere."""
        self.left = True
        self._channel.close()

    @property
    def waiting(self) -> bool:
        """Whether a message has come in already."""
        return bool(self._ready)

    def read(self) -> tuple[int, Any, bytearray, int]:
        """The next message: kind, head, data, block. Raises EOFError when the server is gone."""
        while not self._ready:
            self._receive()
        kind, head, body, block = self._ready.popleft()
        return kind, marshal.loads(head), body, block

    def wait_for(self, wanted: int) -> tuple[Any, bytearray, int]:
        """The next message of a kind: head, data, block. Others stay for `read`."""
        seen = 0
        while True:
            while seen == len(self._ready):
                self._receive()
            if self._ready[seen][0] == wanted:
                _, head, body, block = self._ready[seen]
                del self._ready[seen]
                return marshal.loads(head), body, block
            seen += 1

    def _receive(self) -> None:
        data = self._channel.recv(_READ)
        if not data:
            raise EOFError("the server is gone")
        self._ready += self._frames.feed(data)

    def write(self, kind: int, head: Sequence[Any], data: bytes = b"", block: int = 0) -> None:
        """Send a message. Waits while the server does not read."""
        self.write_text(kind, encode(head), data, block)

    def write_text(self, kind: int, head: str, data: bytes = b"", block: int = 0) -> None:
        """The same with a head that is JSON already."""
        message = to_server(kind, head, data, block)
        if self.left:
            return
        with self._lock:
            self._channel.sendall(message)
