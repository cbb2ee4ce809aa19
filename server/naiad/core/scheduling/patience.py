"""How long a batch waits for more requests: a fixed time, or one that follows what is measured.

Pure: all times are nanoseconds that the caller gives.
"""

import math
from typing import Protocol


class Patience(Protocol):
    """What the batcher asks, and what it is told of."""

    waits: bool
    """False: never wait at all."""

    def until(self, size: int, oldest: int, now: int) -> int:
        """When to send `size` batch elements, the oldest of which came at `oldest`, even if no
        more come. A time that is not after `now` means now."""

    def arrived(self, now: int) -> None:
        """A request came."""

    def executed(self, size: int, ns: int) -> None:
        """A batch of `size` elements took `ns` on its instance."""


class FixedPatience:
    """`max_queue_delay_microseconds`: counted from the oldest request."""

    def __init__(self, delay_ns: int) -> None:
        self._delay_ns = delay_ns
        self.waits = delay_ns > 0

    def until(self, size: int, oldest: int, now: int) -> int:
        return oldest + self._delay_ns

    def arrived(self, now: int) -> None:
        """Nothing depends on it."""

    def executed(self, size: int, ns: int) -> None:
        """Nothing depends on it."""


_MEMORY = 1 / 16
"""Weight of the newest observation."""

_SILENCE = 4.0
"""After so many usual gaps without a request, no more are expected to come soon."""

_LONGEST_GAP_NS = 1_000_000_000

_LEAST_NS = 500_000
"""A batch that costs less by itself is not worth a timer and another turn of the loop."""

_DOUBT = 1 / 4
"""How much less an execution counts that took longer than expected: what slows one down is mostly
something else on the machine."""


class AdaptivePatience:
    """Waits for one more request as long as that pays.

    An execution of n elements takes a + n * c: `a` is paid for each batch, whatever its size. A
    request that comes just too late pays `a` once more and waits for the batch before it; one that
    is waited for costs the n that are here the time until it comes. So waiting pays while n times
    the expected gap between requests is less than `a`, and while a gap like those before is not
    long over. Both are measured: `a` by a regression over the last executions, the gap by the
    geometric mean of the last gaps, which a pause between bursts does not spoil. Where `a` is small
    nothing is waited for.
    """

    waits = True

    def __init__(self) -> None:
        self._last = 0
        self._log_gap = math.log(_LONGEST_GAP_NS)
        # Means of size, ns, size * size and size * ns over the last executions.
        self._size = self._ns = self._size_size = self._size_ns = 0.0
        self._fixed_ns = self._slope_ns = 0.0

    def until(self, size: int, oldest: int, now: int) -> int:
        gap = math.exp(self._log_gap)
        if self._fixed_ns < _LEAST_NS or size * gap >= self._fixed_ns:
            return now
        return self._last + int(min(_SILENCE * gap, self._fixed_ns / size))

    def arrived(self, now: int) -> None:
        gap = min(max(now - self._last, 1), _LONGEST_GAP_NS)
        self._last = now
        self._log_gap += _MEMORY * (math.log(gap) - self._log_gap)

    def executed(self, size: int, ns: int) -> None:
        # The first one counts in full, so that there is no time of learning from nothing.
        weight = _MEMORY if self._size else 1.0
        if self._size and ns > self._ns + self._slope_ns * (size - self._size):
            weight *= _DOUBT
        self._size += weight * (size - self._size)
        self._ns += weight * (ns - self._ns)
        self._size_size += weight * (size * size - self._size_size)
        self._size_ns += weight * (size * ns - self._size_ns)
        variance = self._size_size - self._size * self._size
        if variance < 0.01:
            # Batches of one size only tell nothing of what a larger one would save.
            return
        self._slope_ns = max((self._size_ns - self._size * self._ns) / variance, 0.0)
        self._fixed_ns = max(self._ns - self._slope_ns * self._size, 0.0)
