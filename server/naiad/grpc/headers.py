"""Field blocks of gRPC: reading a call's head, writing answers' heads and trailers.

Clients send the same block again and again, so blocks that leave the decoder's table alone are
remembered. What we write needs no table at all. Source: gRPC over HTTP/2.
"""

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from naiad.grpc.frames import ConnectionFault, Reason
from naiad.grpc.hpack import BrokenBlock, Decoder, Field, literal

MAX_LIST: Final = 16_384
"""Bytes of a header list that we take, as C-core's hard limit."""

_MOST_REMEMBERED: Final = 256
_LONGEST_REMEMBERED: Final = 1024

_GRPC: Final = re.compile(r"application/grpc(?:[+;].*)?", re.IGNORECASE)
_NAME: Final = re.compile(r"[^\s,]+")
_TIMEOUT: Final = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


@dataclass(frozen=True, slots=True)
class CallHead:
    """What the head of a call says.

    http_status: 0 for a gRPC call; else what HTTP answers to it, 400 if it is malformed.
    fault: why gRPC cannot take the call, empty if it can.
    metadata: the client's own headers, lower-case; those that end in -bin are base64 text still.
    timeout: seconds, None for none.  encoding: of the compressed messages, `identity` for none.
    accepted: encodings that answers may have.
    """

    http_status: int = 0
    fault: str = ""
    path: str = ""
    encoding: str = "identity"
    timeout: float | None = None
    metadata: Sequence[tuple[str, str]] = ()
    accepted: frozenset[str] = frozenset()


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
        changes = self._decoder.changes
        try:
            fields = self._decoder.decode(block)
        except BrokenBlock as error:
            raise ConnectionFault(Reason.COMPRESSION_ERROR, str(error)) from error
        head = CallHead(431) if fields is None else _head(fields)
        if changes != self._decoder.changes:
            self._known.clear()
        elif len(block) <= _LONGEST_REMEMBERED:
            if len(self._known) == _MOST_REMEMBERED:
                self._known.clear()
            self._known[block] = head
        return head


_SPECIAL: Final = frozenset(
    (b"content-type", b"grpc-accept-encoding", b"grpc-encoding", b"grpc-timeout", b"te")
)
_PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))
_FORBIDDEN: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)


def _head(fields: Iterable[Field]) -> CallHead:
    special: dict[bytes, str] = {}
    metadata: list[tuple[str, str]] = []
    pseudo = True
    for name, value in fields:
        text = value.decode("latin-1")
        if name[:1] == b":":
            if not pseudo or name not in _PSEUDO or name in special:
                return CallHead(400)
            special[name] = text
            continue
        pseudo = False
        if name in _SPECIAL:
            special[name] = text
        elif name in _FORBIDDEN or name != name.lower():
            return CallHead(400)
        else:
            metadata.append((name.decode("latin-1"), text))
    status = _http_status(special)
    if status:
        return CallHead(status)
    fault = ""
    timeout = None
    if b"grpc-timeout" in special:
        timeout = _seconds(special[b"grpc-timeout"])
        fault = "" if timeout is not None else "grpc-timeout is no number of 8 digits and a unit"
    encoding = special.get(b"grpc-encoding", "identity")
    accepted = frozenset(_NAME.findall(special.get(b"grpc-accept-encoding", "")))
    return CallHead(0, fault, special[b":path"], encoding, timeout, tuple(metadata), accepted)


def _http_status(special: dict[bytes, str]) -> int:
    """0 if these fields make a gRPC call, else what is wrong with them in terms of HTTP."""
    if not (special.get(b":path") and special.get(b":scheme")):
        return 400
    if b":method" not in special or special.get(b"te", "trailers") != "trailers":
        return 400
    if special[b":method"] != "POST":
        return 405
    return 0 if _GRPC.fullmatch(special.get(b"content-type", "")) else 415


def _seconds(timeout: str) -> float | None:
    found = _TIMEOUT.fullmatch(timeout)
    return int(found[1]) * _UNITS[found[2]] if found else None


def binary_value(text: str) -> bytes:
    """The bytes of a `-bin` header, whose padding may be left out."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        return b""


# Our first block on a connection begins with this, so that a client which wants a smaller table
# than HTTP/2's never has to be told. It is a head, hence all heads begin so; it costs one byte.
_NO_TABLE: Final = b"\x20"
_STATUS_200: Final = b"\x88"  # entry 8 of the static table

RESPONSE: Final = (
    _NO_TABLE
    + _STATUS_200
    + literal("content-type", "application/grpc")
    + literal("grpc-accept-encoding", "identity,deflate,gzip")
)
"""The block in front of an answer's messages."""


def response(encoding: str) -> bytes:
    """The same in front of messages that may be compressed so."""
    return RESPONSE + literal("grpc-encoding", encoding)


TRAILERS_OK: Final = literal("grpc-status", "0")
"""The block behind the messages of a call that went well."""


def trailers(status: int, message: str) -> bytes:
    """The block that ends a call with an error. The text is percent-encoded UTF-8."""
    return literal("grpc-status", str(status)) + literal("grpc-message", quote(message, _PLAIN))


_PLAIN: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


def trailers_only(status: int, message: str) -> bytes:
    """The block of an error that comes before any message: head and trailers in one."""
    return RESPONSE + trailers(status, message)


def http_error(status: int) -> bytes:
    """The block of an answer to what is no gRPC call at all."""
    return _NO_TABLE + literal(":status", str(status))
