"""What an operator may choose of the gRPC port, for either of its wires. Data, and its defaults.

Times are in milliseconds, as in gRPC's own options. Source: gRPC's keepalive guide.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

MOST_MS: Final = 2**31 - 1
"""This many milliseconds or more stand for ever, as in gRPC."""

LARGEST: Final = 2**31 - 1
"""Bytes that a message may have, in either direction; protobuf ends there."""


class Effort(StrEnum):
    """How much an answer is compressed."""

    NONE = "none"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


@dataclass(frozen=True)
class KeepaliveOptions:
    """How idle connections are looked after.

    time_ms: from one ping of ours to the next.  timeout_ms: in which a client has to show life.
    without_calls: ping, and let clients ping, while no call runs.
    most_pings: that we send in a row without an answer between them; 0 for any number.
    least_interval_ms: between a client's pings.  most_strikes: pings that may come sooner; 0 for
    any number.
    age_ms: after which a connection takes no new calls, 0 for never.  grace_ms: that its running
    calls have then, 0 for no end.
    """

    time_ms: int = 7_200_000
    timeout_ms: int = 20_000
    without_calls: bool = False
    most_pings: int = 2
    least_interval_ms: int = 300_000
    most_strikes: int = 2
    age_ms: int = 0
    grace_ms: int = 0


@dataclass(frozen=True)
class GrpcOptions:
    """All of them. most_received: bytes of a client's message, also once it is decompressed.
    compression: of the answers to inference calls."""

    keepalive: KeepaliveOptions = field(default_factory=KeepaliveOptions)
    most_received: int = LARGEST
    compression: Effort = Effort.NONE
