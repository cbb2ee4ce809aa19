"""Content encodings: which one an answer gets, and bodies into and out of it.

gzip and deflate (zlib's form) only. Knows nothing of what the bodies mean.
Source: RFC 9110, 8.4 and 12.5.3; Triton's rules for `Accept-Encoding`.
"""

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

from naiad_backends.api import Buffer
from naiad_backends.errors import invalid

WINDOW_BITS = {"gzip": 31, "deflate": 15}
"""What zlib calls the encodings that there are."""

IDENTITY = "identity"

SMALLEST = 512
"""Bytes that an answer needs to be compressed: less is not worth the time."""

_ENTRY = re.compile(
    r"\s*(gzip|deflate|identity)\s*(?:;\s*q\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\s*)?",
    re.IGNORECASE | re.ASCII,
)

# Numbers hardly get smaller with more effort: level 1 takes a fifth of the default level's time.
_LEVEL = 1


@lru_cache(maxsize=64)
def choose(accepted: str) -> str:
    """The best encoding by an `Accept-Encoding`: `gzip`, `deflate` or `identity`.

    The highest weight wins, of equal ones the first. Entries that are malformed or not known here
    are passed over; nothing left, or only weights of 0, means `identity`.
    """
    best, highest = IDENTITY, 0.0
    for text in accepted.split(","):
        entry = _ENTRY.fullmatch(text)
        if entry is None:
            continue
        weight = 1.0 if entry[2] is None else float(entry[2])
        if weight > highest:
            best, highest = entry[1].lower(), weight
    return best


def deflate(parts: Sequence[Buffer], encoding: str) -> bytes:
    """The parts, end to end, compressed. encoding: a key of WINDOW_BITS."""
    deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, WINDOW_BITS[encoding])
    pieces = [deflater.compress(part) for part in parts]
    pieces.append(deflater.flush())
    return b"".join(pieces)


def inflate(body: Buffer, encoding: str, limit: int) -> bytes:
    """Decompress, but never to more than `limit` bytes. encoding: a key of WINDOW_BITS.

    Raises INVALID_ARG for a body that is larger, corrupt, cut off, or goes on behind its end.
    """
    inflater = zlib.decompressobj(WINDOW_BITS[encoding])
    try:
        plain = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise invalid(
            f"the compressed body is corrupt: {error}", field="Content-Encoding"
        ) from None
    if len(plain) > limit:
        raise invalid(
            f"the body inflates to more than {limit} bytes", hint="raise --http-max-input-size"
        )
    if not inflater.eof or inflater.unused_data:
        raise invalid(
            "the compressed body is cut off or goes on behind its end", field="Content-Encoding"
        )
    return plain
