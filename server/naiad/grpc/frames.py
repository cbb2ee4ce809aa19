"""HTTP/2 frames: their numbers and their bytes. Source: RFC 9113."""

import struct
from enum import IntEnum
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

HEADER: Final = struct.Struct(">HBBBI")
"""Length in 16 + 8 bits, type, flags, stream (31 bits)."""

HEADER_SIZE: Final = 9
MAX_STREAM: Final = 2**31 - 1
MAX_WINDOW: Final = 2**31 - 1
FIRST_WINDOW: Final = 65_535
"""Flow-control window of a connection, and of a stream before any SETTINGS."""

SMALLEST_MAX_FRAME: Final = 16_384
LARGEST_MAX_FRAME: Final = 2**24 - 1

# Plain numbers, since every frame is compared with them.
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20


class Setting(IntEnum):
    """Parameters of SETTINGS that we send or heed."""

    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class Reason(IntEnum):
    """Error codes of RST_STREAM and GOAWAY."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class ConnectionFault(Exception):
    """The peer broke a rule that concerns the whole connection, which ends with this reason."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(reason, text)
        self.reason = reason
        self.text = text


def header(length: int, kind: int, flags: int, stream: int) -> bytes:
    """The nine bytes in front of a frame's payload of `length` bytes."""
    return HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return header(len(payload), kind, flags, stream) + payload


def settings(values: dict[Setting, int]) -> bytes:
    """A SETTINGS frame."""
    payload = b"".join(struct.pack(">HI", key, value) for key, value in values.items())
    return frame(SETTINGS, 0, 0, payload)


def window_update(stream: int, increment: int) -> bytes:
    """Let the peer send `increment` more bytes."""
    return frame(WINDOW_UPDATE, 0, stream, increment.to_bytes(4, "big"))


def rst_stream(stream: int, reason: Reason) -> bytes:
    """End one stream at once."""
    return frame(RST_STREAM, 0, stream, reason.to_bytes(4, "big"))


def goaway(last_stream: int, reason: Reason, text: str = "") -> bytes:
    """No more streams above `last_stream`."""
    payload = last_stream.to_bytes(4, "big") + reason.to_bytes(4, "big") + text.encode()
    return frame(GOAWAY, 0, 0, payload)
