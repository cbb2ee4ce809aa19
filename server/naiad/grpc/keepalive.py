"""When a connection is pinged, sent away for its age or its pings, or given up.

Told of the time and of what passed; sends nothing and has no timer. As gRPC's C core does it: its
rules for the pings of clients are what clients are built to keep.
"""

import math
from enum import Enum, auto
from typing import Final

from naiad.grpc.options import MOST_MS, KeepaliveOptions

_IDLE_INTERVAL_S: Final = 7200.0
"""Between the pings of a client without calls, if it should send none."""


class Act(Enum):
    """What is to be done with a connection."""

    NOTHING = auto()
    PING = auto()
    RETIRE = auto()
    CUT = auto()


class Keepalive:
    """Of one connection. Times are seconds of a clock that never goes back.

    heard: to be set when anything comes in.  spoke: to be set when a part of an answer goes out.
    """

    __slots__ = (
        "_age_due",
        "_last_ping",
        "_options",
        "_ping_due",
        "_pings",
        "_retired",
        "_sent",
        "_strikes",
        "_waiting",
        "heard",
        "spoke",
    )

    def __init__(self, options: KeepaliveOptions, now: float, stretch: float = 1.0) -> None:
        """stretch: of the greatest age, so that connections that began together end apart."""
        self._options = options
        self.heard = False
        self.spoke = False
        # Our pings.
        self._ping_due = now + _seconds(options.time_ms)
        self._sent = now
        self._waiting = False
        self._pings = 0
        # The client's pings.
        self._last_ping = -math.inf
        self._strikes = 0
        # Age.
        self._age_due = now + stretch * _seconds(options.age_ms or MOST_MS)
        self._retired = False

    @property
    def due(self) -> float:
        """When `tick` has something to do; infinite for never."""
        return min(self._ping_due, self._age_due)

    def tick(self, now: float, calls: bool) -> Act:
        """What is to be done now. calls: whether any call runs."""
        if now >= self._age_due:
            return self._grow_old(now)
        if now < self._ping_due:
            return Act.NOTHING
        if self._waiting and not self.heard:
            return Act.CUT
        if self._waiting:
            self._waiting = False
            self._ping_due = self._sent + _seconds(self._options.time_ms)
            if now < self._ping_due:
                return Act.NOTHING
        return self._ping(now, calls)

    def pinged(self, now: float, calls: bool) -> bool:
        """The client has sent a ping; True if it sends too many."""
        self._settle()
        options = self._options
        interval = options.least_interval_ms / 1000
        if not calls and not options.without_calls:
            interval = _IDLE_INTERVAL_S
        early = now < self._last_ping + interval
        self._last_ping = now
        self._strikes += early
        return early and 0 < options.most_strikes < self._strikes

    def _ping(self, now: float, calls: bool) -> Act:
        self._settle()
        options = self._options
        wanted = calls or options.without_calls
        if not wanted or 0 < options.most_pings <= self._pings:
            self._ping_due = now + _seconds(options.time_ms)
            return Act.NOTHING
        self._pings += 1
        self._expect_life(now)
        return Act.PING

    def _grow_old(self, now: float) -> Act:
        if self._retired:
            return Act.CUT
        self._retired = True
        self._age_due = now + _seconds(self._options.grace_ms or MOST_MS)
        # The client has to confirm that it knows, and the wait for that is as that for any ping.
        self._expect_life(now)
        return Act.RETIRE

    def _expect_life(self, now: float) -> None:
        self.heard = False
        self._waiting = True
        self._sent = now
        self._ping_due = now + _seconds(self._options.timeout_ms)

    def _settle(self) -> None:
        """Answers make up for pings, on both sides."""
        if self.spoke:
            self.spoke = False
            self._pings = self._strikes = 0
            self._last_ping = -math.inf


def _seconds(milliseconds: int) -> float:
    return math.inf if milliseconds >= MOST_MS else milliseconds / 1000
