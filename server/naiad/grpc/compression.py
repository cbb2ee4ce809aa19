"""Message encodings of gRPC: which one an answer gets, and messages into and out of it.

gzip and deflate (zlib's form). Knows nothing of calls or of what is in a message. Source: gRPC over
HTTP/2, "Message Encoding".
"""

import asyncio
import zlib
from collections.abc import Sequence
from typing import Final

from naiad.grpc.headers import response
from naiad.grpc.options import Effort
from naiad_backends.api import Buffer

WINDOW_BITS: Final = {"gzip": 31, "deflate": 15}
"""What zlib calls the encodings that there are."""

_LEVELS: Final = {Effort.LOW: 1, Effort.MEDIUM: 6, Effort.HIGH: 9}
"""zlib's fastest, its default, its best."""

_SMALLEST: Final = 128
"""Bytes from which on it is worth the try."""

_QUICK: Final = 65_536
"""Bytes that are compressed on the event loop: one or two milliseconds."""


class Encoder:
    """Compresses the messages of a call, each one if that makes it smaller.

    head: the field block in front of them.
    """

    def __init__(self, encoding: str, effort: Effort) -> None:
        self._bits = WINDOW_BITS[encoding]
        self._level = _LEVELS[effort]
        self.head = response(encoding)

    async def encode(self, parts: Sequence[Buffer]) -> tuple[int, Sequence[Buffer]]:
        """The message's compression flag and its parts."""
        size = sum(map(len, parts))
        if size < _SMALLEST:
            return 0, parts
        if size <= _QUICK:
            small = self._deflate(parts)
        else:
            small = await asyncio.to_thread(self._deflate, parts)
        return (1, (small,)) if len(small) < size else (0, parts)

    def _deflate(self, parts: Sequence[Buffer]) -> bytes:
        deflater = zlib.compressobj(self._level, zlib.DEFLATED, self._bits)
        return b"".join([*map(deflater.compress, parts), deflater.flush()])


def encoders(effort: Effort) -> dict[str, Encoder]:
    """By encoding, the preferred one first; none without effort."""
    if effort is Effort.NONE:
        return {}
    return {encoding: Encoder(encoding, effort) for encoding in WINDOW_BITS}
