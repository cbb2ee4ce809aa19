"""Header blocks of gRPC over HTTP/2: reading a call's head, writing answers' heads and trailers.

Sources: RFC 7541 (HPACK), gRPC over HTTP/2. Reading is the hpack library's work, but clients send
the same block again and again, so blocks that leave the library's table alone are remembered. What
we write needs no table at all.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError

from naiad.grpc.frames import ConnectionFault, Reason

MAX_LIST: Final = 16_384
"""Bytes of a header list that we take, as C-core's hard limit."""

_REMEMBERED: Final = 256

_TIMEOUT: Final = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


@dataclass(frozen=True, slots=True)
class CallHead:
    """What the head of a call says.

    metadata: the client's own headers, lower-case; those that end in -bin are base64 text still.
    timeout: seconds, None for none.  encoding: of the compressed messages, `identity` for none.
    """

    method: str = ""
    path: str = ""
    content_type: str = ""
    encoding: str = "identity"
    timeout: float | None = None
    metadata: Sequence[tuple[str, str]] = ()


class HeadReader:
    """The decoder of one connection, whose blocks must all be read, in order."""

    def __init__(self) -> None:
        self._decoder = Decoder(MAX_LIST)
        self._known: dict[bytes, CallHead] = {}

    def read(self, block: bytes) -> CallHead:
        """The head in a block. Raises ConnectionFault for one that cannot be decoded, after which
        the connection is of no use any more."""
        head = self._known.get(block)
        if head is not None:
            return head
        table = self._decoder.header_table
        before = table.maxsize, tuple(table.dynamic_entries)
        try:
            fields = self._decoder.decode(block, raw=True)
        except OversizedHeaderListError as error:
            raise ConnectionFault(
                Reason.ENHANCE_YOUR_CALM, f"more than {MAX_LIST} bytes of headers"
            ) from error
        except HPACKError as error:
            raise ConnectionFault(Reason.COMPRESSION_ERROR, str(error)) from error
        head = _head(fields)
        if before == (table.maxsize, tuple(table.dynamic_entries)):
            if len(self._known) == _REMEMBERED:
                self._known.clear()
            self._known[block] = head
        else:
            # Indices mean something else from now on.
            self._known.clear()
        return head


def _head(fields: Iterable[tuple[bytes, bytes]]) -> CallHead:
    special: dict[str, str] = {}
    metadata: list[tuple[str, str]] = []
    for raw_name, raw_value in fields:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name in _SPECIAL:
            special[name] = value
        elif name[:1] != ":":
            metadata.append((name, value))
    found = _TIMEOUT.fullmatch(special.get("grpc-timeout", ""))
    return CallHead(
        special.get(":method", ""),
        special.get(":path", ""),
        special.get("content-type", ""),
        special.get("grpc-encoding", "identity"),
        int(found[1]) * _UNITS[found[2]] if found else None,
        tuple(metadata),
    )


_SPECIAL: Final = frozenset((":method", ":path", "content-type", "grpc-encoding", "grpc-timeout"))


def binary_value(text: str) -> bytes:
    """The bytes of a `-bin` header, whose padding may be left out."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        return b""


def _literal(name: str, value: str) -> bytes:
    """A header field that is in no table and goes into none (RFC 7541, 6.2.2)."""
    return b"\x00" + _text(name.encode()) + _text(value.encode("latin-1"))


def _text(text: bytes) -> bytes:
    """A string as it is: a length with a 7-bit prefix, then the bytes."""
    length = len(text)
    if length < 0x7F:
        return bytes((length,)) + text
    head = bytearray((0x7F,))
    length -= 0x7F
    while length >= 0x80:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + text


_STATUS_200: Final = b"\x88"  # entry 8 of the static table
_CONTENT_TYPE: Final = _literal("content-type", "application/grpc")

RESPONSE: Final = (
    _STATUS_200 + _CONTENT_TYPE + _literal("grpc-accept-encoding", "identity,deflate,gzip")
)
"""The block in front of an answer's messages."""

TRAILERS_OK: Final = _literal("grpc-status", "0")
"""The block behind the messages of a call that went well."""


def trailers(status: int, message: str) -> bytes:
    """The block that ends a call with an error. The text is percent-encoded UTF-8."""
    return _literal("grpc-status", str(status)) + _literal("grpc-message", quote(message, _PLAIN))


_PLAIN: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


def trailers_only(status: int, message: str) -> bytes:
    """The block of an error that comes before any message: head and trailers in one."""
    return _STATUS_200 + _CONTENT_TYPE + trailers(status, message)


def http_error(status: int) -> bytes:
    """The block of an answer to what is no gRPC call at all."""
    return _literal(":status", str(status))
