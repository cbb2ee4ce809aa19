"""Messages as bytes on a stream: each behind its length, four bytes, little-endian.

Knows nothing of what a message says, nor of how the bytes travel.
"""

import struct
from collections.abc import Iterator

import msgspec

_LENGTH = struct.Struct("<I")
_encoder = msgspec.msgpack.Encoder()


def frame(message: msgspec.Struct) -> bytes:
    """The bytes of one message."""
    buffer = bytearray(_LENGTH.size)
    _encoder.encode_into(message, buffer, _LENGTH.size)
    _LENGTH.pack_into(buffer, 0, len(buffer) - _LENGTH.size)
    return bytes(buffer)


class Frames:
    """Cuts what arrives on a stream into messages."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[memoryview]:
        """The messages, without their lengths, that these bytes complete.

        They must be decoded before the next one is asked for, and all be taken.
        """
        self._rest += data
        start = 0
        with memoryview(self._rest) as view:
            while len(view) - start >= _LENGTH.size:
                end = start + _LENGTH.size + _LENGTH.unpack_from(view, start)[0]
                if end > len(view):
                    break
                with view[start + _LENGTH.size : end] as message:
                    yield message
                start = end
        del self._rest[:start]
