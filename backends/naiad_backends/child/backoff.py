"""How long to wait before a worker that has died is started again. Knows no clock."""

FIRST = 0.1
LONGEST = 30.0
QUIET = 60.0
"""Seconds: the first wait, the longest, and how long all has to go well until it is the first
again."""


class Backoff:
    """Waits that double from one death to the next."""

    def __init__(self, attempts: int) -> None:
        """attempts: starts that may fail in a row."""
        self._attempts = attempts
        self._delay = 0.0
        self._failed = 0
        self._started = 0.0

    @property
    def exhausted(self) -> bool:
        """Whether too many starts in a row have failed."""
        return self._failed >= self._attempts

    def started(self, now: float) -> None:
        """A start has succeeded. now: in seconds, of any clock that only goes on."""
        self._failed = 0
        self._started = now

    def failed(self) -> None:
        """A start has failed."""
        self._failed += 1

    def next(self, now: float) -> float:
        """Seconds to wait now."""
        quiet = self._failed == 0 and now - self._started >= QUIET
        self._delay = FIRST if quiet or not self._delay else min(2 * self._delay, LONGEST)
        return self._delay
