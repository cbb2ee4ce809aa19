"""Messages as bytes on a stream: each behind a mark and its length, four bytes each, little-endian.

Knows nothing of what a message says, nor of how the bytes travel.
"""

import struct
from collections.abc import Iterator

import msgspec

_HEAD = struct.Struct("<4sI")
_MARK = b"nllm"
"""Without it nobody waits for the rest of a message that is none."""

_encoder = msgspec.msgpack.Encoder()


def frame(message: msgspec.Struct) -> bytes:
    """The bytes of one message."""
    buffer = bytearray(_HEAD.size)
    _encoder.encode_into(message, buffer, _HEAD.size)
    _HEAD.pack_into(buffer, 0, _MARK, len(buffer) - _HEAD.size)
    return bytes(buffer)


class Frames:
    """Cuts what arrives on a stream into messages."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[memoryview]:
        """The messages, without what stands before them, that these bytes complete.

        They must be decoded before the next one is asked for, and all be taken. Raises ValueError
        for what is none.
        """
        self._rest += data
        start = 0
        with memoryview(self._rest) as view:
            while len(view) - start >= _HEAD.size:
                mark, length = _HEAD.unpack_from(view, start)
                if mark != _MARK:
                    raise ValueError("what has come in is no message")
                end = start + _HEAD.size + length
                if end > len(view):
                    break
                with view[start + _HEAD.size : end] as message:
                    yield message
                start = end
        del self._rest[:start]
